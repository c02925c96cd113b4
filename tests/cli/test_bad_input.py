"""Bad input: one error that names the file and the field and says what to do, exit code 1, and nothing half-written to be seen."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import as_process, assert_one_error
from small_world import SENSORIUM, World, tree_snapshot, true_predictions, write_code, write_file_submission

from sensorium_pipeline.sessions import catalogue
from sensorium_pipeline.sessions.catalogue import load_hidden, read_session
from sensorium_pipeline.submissions.predictions import write_predictions


def first_scan(raw: Path) -> Path:
    return sorted((raw / "scans").glob("*.tif"))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def replace(path: Path, pattern: str, text: str) -> None:
    before = path.read_text()
    after = re.sub(pattern, text, before, count=1, flags=re.MULTILINE)
    assert after != before
    path.write_text(after)


def change_header(raw: Path) -> None:
    """The header now speaks of more lines than the frames have."""
    path = first_scan(raw)
    content = path.read_bytes()
    assert b"SI.hRoiManager.linesPerFrame = 48" in content
    path.write_bytes(content.replace(b"SI.hRoiManager.linesPerFrame = 48", b"SI.hRoiManager.linesPerFrame = 84"))


def append(raw: Path, table: str) -> None:
    path = raw / "session.toml"
    path.write_text(f"{path.read_text()}\n{table}\n")


def rename_treadmill(raw: Path) -> None:
    with h5py.File(raw / "treadmill.h5", "a") as file:
        file.attrs["session"] = "8-1-1"


RAW: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated TIFF": (lambda raw: cut(first_scan(raw)), (".tif", "is cut off")),
    "missing TIFF": (lambda raw: first_scan(raw).unlink(), ("scans", "holds no .tif files", "Copy the scan files")),
    "frames do not match the header": (change_header, (".tif", "48")),
    "unknown image": (
        lambda raw: replace(raw / "stimulus/presentations.csv", r"^\d+,(?=.*\n\Z)", "777777,"),
        ("presentations.csv", "image_id", "777777"),
    ),
    "onset outside the recording": (
        lambda raw: replace(raw / "stimulus/presentations.csv", r"^(\d+),[\d.]+,[\d.]+\n?\Z", r"\g<1>,99999.0,99999.5"),
        ("presentations.csv", "onset"),
    ),
    "treadmill of another session": (rename_treadmill, ("treadmill.h5", "belongs to session 8-1-1")),
    "unknown parameter": (lambda raw: append(raw, "[parameters.gates.plane]\nmedian_sn = 2.0"), ("parameters.gates.plane.median_sn",)),
    "impossible parameter": (
        lambda raw: append(raw, '[parameters.gates]\nneurons = "many"'),
        ("session.toml", "parameters.gates.neurons", "'many'"),
    ),
    "unknown track": (lambda raw: replace(raw / "session.toml", '"sensorium"', '"sensorium2"'), ("session.toml", "release.track")),
}


@pytest.fixture
def damaged(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.raw(SENSORIUM), tmp_path / "raw"))


@pytest.mark.parametrize("how", RAW)
def test_raw_sessions(sensorium, damaged: Path, how: str) -> None:
    damage, parts = RAW[how]
    damage(damaged)
    assert_one_error(sensorium("inspect", damaged), *parts)


def test_ingesting_a_damaged_session_says_it_once_and_shows_nothing(damaged: Path, tmp_path: Path) -> None:
    cut(first_scan(damaged))
    root = tmp_path / "workspace"
    said = as_process("ingest", damaged, "--root", root, SENSORIUM_WORKERS="1")
    assert_one_error(said, first_scan(damaged).name, "is cut off")
    assert [name for name in tree_snapshot(root) if not name.startswith("services/")] == []


def test_paths_that_are_not_there(sensorium, world: World, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    for arguments in (
        ["inspect", nothing],
        ["extract", nothing, tmp_path / "out", "--frame-rate", "8"],
        ["deconvolve", nothing, tmp_path / "out.npy", "--frame-rate", "8"],
        ["check", nothing, "--root", world.root],
        ["submit", nothing, "--team", "me", "--track", "sensorium", "--root", tmp_path / "fresh"],
        ["score", nothing, "--session", SENSORIUM, "--tier", "test", "--root", world.root],
        ["predict", "baseline", nothing, tmp_path / "out.npz", "--root", world.root],
    ):
        assert_one_error(sensorium(*arguments), str(nothing))
    assert not (tmp_path / "out").exists()
    assert not tree_snapshot(tmp_path)


def test_names_that_are_not_there(sensorium, world: World, tmp_path: Path) -> None:
    root = ["--root", world.root]
    assert_one_error(sensorium("show", "9-9-9", *root), "9-9-9", SENSORIUM)
    assert_one_error(sensorium("audit", "--release", "other", *root), "other", "trial-run")
    assert_one_error(sensorium("release", "new", "9-9-9", *root), "9-9-9", SENSORIUM)
    assert_one_error(sensorium("release", "new", SENSORIUM, "--reference", "sensorium", *root), "--reference", "TRACK=TEAM/NAME")
    assert_one_error(sensorium("explain", "nobody", *root), "nobody", "no submission of this name")
    assert_one_error(
        sensorium("rank", "--track", "sensorium", "--root", tmp_path / "empty"), "there is no release yet", "sensorium release"
    )
    assert not (tmp_path / "empty").exists() or not tree_snapshot(tmp_path / "empty")


def test_submissions(sensorium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "workspace"
    code = write_code(tmp_path / "code", "Code")

    def submit(folder: Path, track: str = "sensorium", team: str = "me"):
        return sensorium("submit", folder, "--team", team, "--track", track, "--root", root)

    assert_one_error(submit(code, track="sensorium2"), "track", "unknown track 'sensorium2'", "sensorium, sensorium+")
    assert_one_error(submit(code, team="../me"), "team")
    replace(code / "submission.toml", "^entry_point.*\n", "")
    assert_one_error(submit(code), "submission.toml", "entry_point")
    replace(code / "submission.toml", "^name", 'entry_point = "modle:build"\nname')
    assert_one_error(submit(code), "submission.toml, entry_point", "no module 'modle'", "model.py")
    replace(code / "submission.toml", "modle:build", "model:make")
    assert_one_error(submit(code), "submission.toml, entry_point", "no function 'make'", "def make(context)")
    replace(code / "submission.toml", "^seeds", "track = 'mouse'\nseeds")
    assert_one_error(submit(code), "submission.toml, track", "unknown track 'mouse'")
    replace(code / "submission.toml", "^track.*\n", "")
    replace(code / "submission.toml", "model:make", "model:build")
    assert_one_error(submit(code), "SENSORIUM_TEAM_TOKEN", "no team token is given", "sensorium team add")
    monkeypatch.setenv("SENSORIUM_TEAM_TOKEN", "mine")
    assert_one_error(submit(code), "SENSORIUM_TEAM_TOKEN", "this is not a team token")
    monkeypatch.setenv("SENSORIUM_TEAM_TOKEN", "sensorium-team.me.1." + "0" * 64)
    assert_one_error(submit(code), "there is no release yet")
    assert not root.exists() or not tree_snapshot(root)


def put_nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["prediction"][0, 0] = np.nan


def drop_neuron(arrays: dict[str, np.ndarray]) -> None:
    arrays["prediction"] = arrays["prediction"][:, 1:]


def change_trial(arrays: dict[str, np.ndarray]) -> None:
    arrays["trial_id"][0] = 999_999


def change_unit(arrays: dict[str, np.ndarray]) -> None:
    arrays["unit_id"][0] = 999_999


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (put_nan, ("prediction", "NaN or infinite", "predict a number for each")),
        (drop_neuron, ("prediction", "shape")),
        (change_trial, ("trial_id", "unknown ids, the first is 999999")),
        (change_unit, ("unit_id", "unknown ids, the first is 999999")),
    ],
)
def test_predictions(
    sensorium, world: World, tmp_path: Path, spoil: Callable[[dict[str, np.ndarray]], None], parts: tuple[str, ...]
) -> None:
    folder = write_file_submission(tmp_path / "file", "File", SENSORIUM, true_predictions(world.workspace, SENSORIUM))
    path = folder / "predictions" / f"{SENSORIUM}.npz"
    truth = true_predictions(world.workspace, SENSORIUM)
    keep = np.isin(truth.trial_id, _test_trials(world))
    write_predictions(path, type(truth)(truth.trial_id[keep], truth.unit_id, truth.prediction[keep]))
    with np.load(path) as stored:
        arrays = dict(stored)
    spoil(arrays)
    np.savez(path, **arrays)
    assert_one_error(sensorium("score", path, "--session", SENSORIUM, "--tier", "test", "--root", world.root), str(path), *parts)


def _test_trials(world: World) -> np.ndarray:
    return load_hidden(world.workspace, read_session(world.workspace.open, SENSORIUM)[1].open_digest, "test").trial_id


def test_files_that_are_not_what_they_are_taken_for(sensorium, world: World, tmp_path: Path) -> None:
    text = tmp_path / "text.npy"
    text.write_text("not an array")
    for arguments in (
        ["deconvolve", text, tmp_path / "out.npy", "--frame-rate", "8"],
        ["extract", text, tmp_path / "out", "--frame-rate", "8"],
        ["predict", "baseline", text, tmp_path / "out.npz", "--root", world.root],
        ["score", text, "--session", SENSORIUM, "--tier", "test", "--root", world.root],
    ):
        assert_one_error(sensorium(*arguments), str(text))
    cube = tmp_path / "cube.npy"
    np.save(cube, np.zeros((2, 3, 4)))
    assert_one_error(sensorium("deconvolve", cube, tmp_path / "out.npy", "--frame-rate", "8"), str(cube), "(2, 3, 4)", "(neurons, frames)")
    empty, line = tmp_path / "empty.npy", tmp_path / "line.npy"
    empty.touch()
    np.save(line, np.zeros(100))
    assert_one_error(sensorium("deconvolve", empty, tmp_path / "out.npy", "--frame-rate", "8"), str(empty), "numpy.save")
    assert_one_error(sensorium("deconvolve", line, tmp_path / "out.npy", "--frame-rate", "8"), str(line), "(1, frames)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cube.npy", "empty.npy", "line.npy", "text.npy"]


def test_frame_rates_that_are_none(sensorium, tmp_path: Path) -> None:
    np.save(tmp_path / "dff.npy", np.zeros((2, 100)))
    for rate in ("0", "-8", "nan"):
        said = sensorium("deconvolve", tmp_path / "dff.npy", tmp_path / "out.npy", "--frame-rate", rate)
        assert said.code == 1, (rate, said)
        assert "internal error" not in said.error
    assert not (tmp_path / "out.npy").exists()


def test_a_result_that_cannot_be_written(sensorium, tmp_path: Path) -> None:
    np.save(tmp_path / "dff.npy", np.random.default_rng(0).normal(size=(2, 100)))
    out = tmp_path / "missing" / "out.npy"
    assert_one_error(sensorium("deconvolve", tmp_path / "dff.npy", out, "--frame-rate", "8"), str(out), "writable")
    assert_one_error(sensorium("deconvolve", tmp_path / "dff.npy", tmp_path, "--frame-rate", "8"), str(tmp_path), "is a folder")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert_one_error(sensorium("deconvolve", tmp_path / "dff.npy", pipe, "--frame-rate", "8"), str(pipe), "no ordinary file")
    assert pipe.is_fifo()


def test_an_internal_error_says_where_it_happened(sensorium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(catalogue, "list_sessions", fail)
    said = sensorium("sessions")
    assert_one_error(said, "internal error TimeoutError", code=2)
    (kept,) = tmp_path.iterdir()
    assert str(kept) in said.error
    assert "in fail" in kept.read_text()
