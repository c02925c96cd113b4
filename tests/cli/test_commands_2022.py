"""What was made for SENSORIUM 2022, through the command line: trees in and out, CSV files and checkpoints submitted."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_one_error
from tree_2022 import write_csv, write_tree

from sensorium_pipeline.submissions.csv_2022 import FILES

NAME = "26872-17-20"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree") / "static26872-17-20-GrayImageNet")


@pytest.fixture
def root(sensorium, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the session in a release, and a team's token in the environment."""
    root = tmp_path / "workspace"
    monkeypatch.setenv("SENSORIUM_ROOT", str(root))
    said = sensorium("import-release", tree, "--track", "sensorium")
    assert said.code == 0, said.error
    assert "session 26872-17-20: 12 neurons; trials 12 train, 3 validation, 6 test, 6 final_test" in said.out
    # Whenever the test runs, it is about noon where the day of the quota is counted; POSIX turns the sign around.
    (tmp_path / "noon.toml").write_text(f'[[phase]]\nname = "competition"\ntime_zone = "Etc/GMT{datetime.now(UTC).hour - 12:+d}"\n')
    assert sensorium("release", "2022", NAME, "--phases", tmp_path / "noon.toml").code == 0
    monkeypatch.setenv("SENSORIUM_TEAM_TOKEN", sensorium("team", "add", "lobe-lab").out.strip())
    return root


def write_files(folder: Path, tree: Path) -> Path:
    folder.mkdir()
    tiers, names, images = (np.load(tree / f"meta/trials/{name}.npy") for name in ("tiers", "trial_idx", "frame_image_id"))
    unit_id = np.load(tree / "meta/neurons/unit_ids.npy")
    for tier, file in FILES.items():
        rows = np.flatnonzero(tiers == tier)
        write_csv(folder / file, names[rows], images[rows], np.ones((len(rows), len(unit_id)), np.float32), unit_id)
    return folder


def test_csv_files_are_checked_and_submitted_in_one_step(sensorium, root: Path, tree: Path, tmp_path: Path) -> None:
    sent = write_files(tmp_path / "ours", tree)
    checked = json.loads(sensorium("check", sent, "--json").out)
    assert (checked["passed"], checked["run"], checked["submission"]["name"]) == (True, None, "ours")
    said = sensorium("submit", sent, "--track", "sensorium", "--name", "Ours of 2022")
    assert "Ours of 2022 is submitted as lobe-lab/sensorium/1" in said.out
    assert_one_error(
        sensorium("submit", write_files(tmp_path / "more", tree), "--track", "sensorium"),
        "lobe-lab/sensorium/1",
        "team lobe-lab has used its 1 submission",
        "The next day begins at",
    )
    path = sent / FILES["test"]
    path.write_text(path.read_text().replace("1.0", "none", 1))
    for command in ("check", "submit"):
        assert_one_error(sensorium(command, sent, "--track", "sensorium"), f"{path}, line 2, prediction: value 1 is 'none'")


def test_a_checkpoint_is_submitted_in_one_step(sensorium, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cnn.pth"
    path.write_bytes(b"weights")
    sent = json.loads(sensorium("submit", path, "--track", "sensorium", "--json").out)
    assert (sent["identifier"], sent["name"]) == ("lobe-lab/sensorium/1", "cnn")
    assert_one_error(sensorium("submit", tmp_path / "missing.pth", "--track", "sensorium"), "missing.pth", "no such folder")


def test_a_phase_that_is_over(sensorium, root: Path, tree: Path, tmp_path: Path) -> None:
    phases = tmp_path / "phases.toml"
    phases.write_text('[[phase]]\nname = "competition"\nopens = 2022-06-20T00:00:00Z\ncloses = 2022-10-15T00:00:00Z\n')
    said = sensorium("release", "2022", "--phases", phases)
    assert "Phase competition: from 2022-06-20 00:00 to 2022-10-15 00:00 UTC, 1 a day for each team and track (UTC)" in said.out
    refused = sensorium("submit", write_files(tmp_path / "late", tree), "--track", "sensorium")
    assert_one_error(refused, "no submissions are taken now", "competition from 2022-06-20 00:00 to 2022-10-15 00:00 UTC")
    phases.write_text('[[phase]]\nname = "competition"\nopens = 2022-06-20\n')
    assert_one_error(sensorium("release", "2022", "--phases", phases), f"{phases}, phase 1, opens", "dates need an offset")
    assert_one_error(sensorium("release", "2022", "--final", "open", "--phase", "winter"), "no phase 'winter'", "competition")


def test_a_tree_goes_out_again(sensorium, root: Path, tree: Path, tmp_path: Path) -> None:
    assert sensorium("export-release", NAME, tmp_path / "out").code == 0
    for name in ("meta/trials/tiers", "meta/neurons/unit_ids", "data/images/0"):
        np.testing.assert_array_equal(np.load(tmp_path / f"out/{name}.npy"), np.load(tree / f"{name}.npy"))
    assert_one_error(sensorium("export-release", NAME, tmp_path / "out"), str(tmp_path / "out"), "something lies there already")
    assert_one_error(sensorium("export-release", "9-9-9", tmp_path / "other"), "9-9-9", NAME)
    assert_one_error(sensorium("import-release", tmp_path), str(tmp_path), "no data/ and meta/")


def test_what_only_the_team_may_do(sensorium, root: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sensorium("submit", write_files(tmp_path / "ours", tree), "--track", "sensorium")
    monkeypatch.setenv("SENSORIUM_TEAM_TOKEN", sensorium("team", "add", "rival").out.strip())
    for action in ("withdraw", "choose"):
        assert_one_error(sensorium(action, "lobe-lab/sensorium/1"), "lobe-lab/sensorium/1", "the token is team rival's")
        assert_one_error(sensorium(action, "rival/sensorium/1"), "rival/sensorium/1", "the team sent no such submission")
    assert_one_error(sensorium("team", "revoke", "nobody"), "nobody", "there is no such team", "lobe-lab, rival")
