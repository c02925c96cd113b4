"""Commands on a workspace in which three sessions are released and something was evaluated: what they print, as JSON and for people."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from command_line import Said, as_process, assert_one_error
from moto.server import ThreadedMotoServer
from PIL import Image
from small_world import OPEN, RELEASE, SENSORIUM, SENSORIUM_PLUS, World, send, true_predictions, write_code, write_file_submission

from sensorium_pipeline.intake import take_in
from sensorium_pipeline.scoring import METRIC_VERSION
from sensorium_pipeline.sessions.catalogue import load_hidden, read_session
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import open_workspace
from sensorium_pipeline.submissions.predictions import write_predictions


def parsed(said: Said) -> Any:
    assert said.code == 0, said.error
    return json.loads(said.out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_sessions_and_show(sensorium, world: World) -> None:
    listed = parsed(sensorium("sessions", "--root", world.root, "--json"))
    assert [session["name"] for session in listed] == [OPEN, SENSORIUM, SENSORIUM_PLUS]
    shown = parsed(sensorium("show", SENSORIUM, "--root", world.root, "--json"))
    assert shown["session"] == listed[1]
    assert set(shown["hidden_tiers"]) == {"test", "final_test"}
    assert not shown["behavior"]
    text = sensorium("show", SENSORIUM, "--root", world.root).out
    url = text.split('open_datatree("')[1].split('"')[0]
    with xr.open_datatree(url, engine="zarr") as tree:
        assert tree.attrs["session"] == SENSORIUM
    assert SENSORIUM_PLUS in sensorium("sessions", "--root", world.root).out


def test_the_line_that_opens_a_session_of_another_server_names_it_and_no_key(sensorium, world: World, tmp_path, monkeypatch) -> None:
    here = world.workspace.open
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("SENSORIUM_OPEN__URL", "s3://sensorium-tests/open")
        monkeypatch.setenv("SENSORIUM_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        monkeypatch.setenv("SENSORIUM_ACCESS_KEY", "key")
        monkeypatch.setenv("SENSORIUM_SECRET_KEY", "a secret")
        elsewhere = open_workspace(Settings(root=str(tmp_path))).open
        for entry in here.walk(""):
            elsewhere.replace(entry.path, here.read(entry.path))
        said = sensorium("show", SENSORIUM, "--root", str(tmp_path))
        assert said.code == 0, said.error
        assert "a secret" not in said.out
        # As a person would, who copies the line.
        with eval(said.out.splitlines()[-1], {"xarray": xr, "os": os}) as tree:
            assert tree.attrs["session"] == SENSORIUM
        # The server of another root is nothing that a folder needs.
        monkeypatch.delenv("SENSORIUM_OPEN__URL")
        assert "storage_options" not in sensorium("show", SENSORIUM, "--root", world.root).out
    finally:
        server.stop()


def test_downloaded_session_is_the_published_one(sensorium, world: World, tmp_path) -> None:
    said = sensorium("download", SENSORIUM, tmp_path / "mouse", "--root", world.root)
    assert said.code == 0, said.error
    with xr.open_datatree(said.out.split('open_datatree("')[1].split('"')[0], engine="zarr") as tree:
        assert tree.attrs["session"] == SENSORIUM
    (tmp_path / "mouse" / "zarr.json").unlink()
    assert sensorium("download", SENSORIUM, tmp_path / "mouse", "--root", world.root).code == 0
    assert (tmp_path / "mouse" / "zarr.json").exists()
    (tmp_path / "mouse" / "notes.txt").write_text("mine")
    assert_one_error(sensorium("download", SENSORIUM, tmp_path / "mouse", "--root", world.root), "does not belong", "notes.txt")
    assert_one_error(sensorium("download", "9-9-9", tmp_path / "other", "--root", world.root), "9-9-9")
    assert not (tmp_path / "other").exists()


def test_nothing_secret_is_listed(sensorium, world: World) -> None:
    lab_digests = {path.name for path in (world.folder / "workspace" / "lab" / "manifests").rglob("*")}
    for arguments in (["sessions"], ["show", SENSORIUM], ["audit"]):
        out = sensorium(*arguments, "--root", world.root, "--json").out
        assert not [digest for digest in lab_digests if digest.split(".")[0] and digest.split(".")[0] in out]


def test_release_and_audit(sensorium, changeable: World) -> None:
    made = parsed(sensorium("release", "second", OPEN, SENSORIUM, "--reference", "sensorium=a/b", "--root", changeable.root, "--json"))
    assert [session["name"] for session in made["sessions"]] == [OPEN, SENSORIUM]
    assert made["references"] == {"sensorium": "a/b"}
    assert (made["live"], [phase["final_opened"] for phase in made["phases"]]) == ("open", [None])
    opened = parsed(sensorium("release", "second", "--final", "open", "--root", changeable.root, "--json"))
    assert opened["phases"][0].pop("final_opened")
    assert {**opened, "phases": None} == {**made, "phases": None}
    assert_one_error(sensorium("audit", "--root", changeable.root), "several releases", "second")
    reports = parsed(sensorium("audit", "--release", "second", "--root", changeable.root, "--json"))
    assert [(report["session"], report["findings"]) for report in reports] == [(OPEN, []), (SENSORIUM, [])]
    assert all(report["checks"] for report in reports)
    assert f"{SENSORIUM}: passed" in sensorium("audit", "--release", "second", "--root", changeable.root).out


def test_collect_garbage(sensorium, changeable: World) -> None:
    left = Path(changeable.root) / "sealed" / "data" / "abandoned.zarr" / "zarr.json"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 2_000_000)
    root = ("--root", changeable.root)
    assert "sealed: 0.0 MB in 0 pieces removed, 1 too young to tell" in sensorium("collect-garbage", *root).out
    os.utime(left, (0, 0))
    assert "sealed: 2.0 MB in 1 pieces would be removed" in sensorium("collect-garbage", "--dry-run", *root).out
    assert left.exists()
    assert len(parsed(sensorium("collect-garbage", *root, "--json"))["sealed"]["removed"]) == 1
    assert not left.exists()
    assert parsed(sensorium("audit", *root, "--json"))[0]["findings"] == []


def test_inspect(sensorium, world: World) -> None:
    summary = parsed(sensorium("inspect", world.raw(SENSORIUM), "--json"))
    assert (summary["name"], summary["track"], summary["planes"]) == (SENSORIUM, "sensorium", 1)
    assert "frame rate" in sensorium("inspect", world.raw(SENSORIUM)).out


def test_rank_and_explain(sensorium, evaluated: World, isolated: None) -> None:
    table = parsed(sensorium("rank", "--track", "sensorium", "--root", evaluated.root, "--json"))
    assert table["release"] == RELEASE
    assert table["metric_version"] == METRIC_VERSION
    assert [(row["team"], row["rank"], row["status"]) for row in table["rows"]] == [("sharp", 1, "ranked"), ("baseline", 2, "ranked")]
    second = table["rows"][1]
    assert second["difference_to_leader"]["high"] < 0
    text = sensorium("rank", "--track", "sensorium", "--root", evaluated.root).out
    assert f"{table['rows'][0]['score']['value']:.4f}" in text
    explained = parsed(sensorium("explain", "baseline", "--root", evaluated.root, "--json"))
    assert (explained["team"], explained["status"]) == ("baseline", "ranked")
    assert explained["submission_digest"] == second["submission_digest"]
    values = {number["value"] for number in explained["numbers"]}
    assert second["score"]["value"] in values
    digests = {digest for number in explained["numbers"] for listed in number["digests"].values() for digest in listed}
    assert table["data"][0]["open_digest"] in digests
    said = sensorium("explain", "baseline", "--root", evaluated.root).out
    assert f"{second['score']['value']:.6f}" in said
    # What its run took, beside where its numbers came from.
    assert explained["wall_seconds"] == explained["device_seconds"] > 0
    assert f"{explained['peak_memory_bytes'] / 2**20:.0f} MB at most, energy not readable, bubblewrap" in said


def test_a_closed_tier_is_not_ranked(sensorium, evaluated: World) -> None:
    said = sensorium("rank", "--track", "sensorium", "--tier", "final_test", "--root", evaluated.root)
    assert_one_error(said, f"release {RELEASE}", "the final tier is not open")


def test_score(sensorium, evaluated: World, tmp_path) -> None:
    truth = true_predictions(evaluated.workspace, SENSORIUM)
    hidden = load_hidden(evaluated.workspace, read_session(evaluated.workspace.open, SENSORIUM)[1].open_digest, "test")
    rows = np.isin(truth.trial_id, hidden.trial_id)
    path = tmp_path / "test.npz"
    write_predictions(path, type(truth)(truth.trial_id[rows], truth.unit_id, truth.prediction[rows]))
    metrics = parsed(sensorium("score", path, "--session", SENSORIUM, "--tier", "test", "--root", evaluated.root, "--json"))
    # A neuron that never responded in these trials counts as zero.
    silent = (truth.prediction[rows].std(axis=0) == 0).mean()
    assert metrics["single_trial_correlation"] == pytest.approx(1 - silent, abs=1e-5)
    said = sensorium("score", path, "--session", SENSORIUM, "--tier", "test", "--root", evaluated.root)
    assert f"{rows.sum()} trials of 6 images, {len(truth.unit_id)} neurons" in said.out


def test_new_submission_check_and_submit(sensorium, changeable: World, isolated: None, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "mine"
    assert sensorium("new-submission", folder, "--template", "ln").code == 0
    assert (folder / "submission.toml").is_file()
    assert_one_error(sensorium("new-submission", folder), str(folder), "something lies there already")
    code = write_code(tmp_path / "code", "Mean response")
    report = parsed(sensorium("check", code, "--root", changeable.root, "--json"))
    assert report["passed"]
    assert report["run"]["status"] == "finished"
    issued = sensorium("team", "add", "me", "--root", changeable.root)
    assert issued.code == 0
    assert "not shown again" in issued.error
    monkeypatch.setenv("SENSORIUM_TEAM_TOKEN", issued.out.strip())
    sent = parsed(sensorium("submit", code, "--track", "sensorium", "--root", changeable.root, "--json"))
    assert (sent["identifier"], sent["duplicate"]) == ("me/sensorium/1", False)
    again = sensorium("submit", code, "--team", "me", "--track", "sensorium", "--root", changeable.root)
    assert "you submitted this already, as me/sensorium/1; no quota is used" in again.out
    listed = parsed(sensorium("submissions", "--root", changeable.root, "--json"))
    assert [(each["number"], each["track"], each["state"]) for each in listed] == [(1, "sensorium", "waiting")]
    assert parsed(sensorium("inbox", "--root", changeable.root, "--json"))["inbox"][0]["state"] == "waiting"
    assert "me/sensorium/1 counts on the final tier" in sensorium("choose", "me/sensorium/1", "--root", changeable.root).out
    assert "me/sensorium/1 is withdrawn" in sensorium("withdraw", "me/sensorium/1", "--root", changeable.root).out
    assert [each["what"] for each in parsed(sensorium("inbox", "--root", changeable.root, "--json"))["inbox"]] == [
        "me/sensorium/1",
        "me/sensorium/request 1",
        "me/sensorium/request 2",
    ]
    take_in(changeable.workspace)
    assert "withdrawn" in sensorium("submissions", "--root", changeable.root).out
    token = issued.out.strip()
    for command in (["submissions"], ["inbox"], ["team", "list"]):
        assert token.rpartition(".")[2] not in sensorium(*command, "--root", changeable.root).out
    assert_one_error(
        sensorium("submit", code, "--team", "you", "--track", "sensorium", "--root", changeable.root), "the token is team me's"
    )
    assert_one_error(sensorium("team", "add", "me", "--root", changeable.root), "the team has a token", "sensorium team revoke me")
    assert "holds no longer" in sensorium("team", "revoke", "me", "--root", changeable.root).out
    assert "revoked" in sensorium("team", "list", "--root", changeable.root).out


@pytest.mark.parametrize("kind", ["npy", "pictures"])
def test_a_digital_twin_predicts_any_images(sensorium, evaluated: World, isolated: None, tmp_path, kind: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 144, 256), np.uint8)
    source = tmp_path / ("images.npy" if kind == "npy" else "images")
    if kind == "npy":
        np.save(source, images)
    else:
        source.mkdir()
        for name, image in zip(("c", "a", "b"), images, strict=True):
            Image.fromarray(image).save(source / f"{name}.png")
    out = tmp_path / "responses.npz"
    said = sensorium("predict", "baseline/sensorium/1", source, out, "--session", OPEN, "--root", evaluated.root)
    assert said.code == 0, said.error
    with np.load(out, allow_pickle=False) as stored:
        assert stored["image_name"].tolist() == (["0", "1", "2"] if kind == "npy" else ["a", "b", "c"])
        assert stored["prediction"].shape == (3, len(stored["unit_id"]))
        assert np.isfinite(stored["prediction"]).all()
        assert stored["prediction"].std(axis=0).max() > 0


def test_evaluate_with_services_of_its_own(changeable: World, tmp_path) -> None:
    predictions = true_predictions(changeable.workspace, SENSORIUM, 1.0)
    send(changeable.workspace, write_file_submission(tmp_path / "file", "File", SENSORIUM, predictions), "filer", "sensorium")
    said = as_process("evaluate", "--root", changeable.root, "--json", SENSORIUM_WORKERS="1")
    summary = parsed(said)
    assert [(result["identifier"], result["status"]) for result in summary["evaluated"]] == [("filer/sensorium/1", "scored")]
    # Again there is nothing to do, and nothing is started for it.
    again = as_process("evaluate", "--root", changeable.root, "--json", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert parsed(again)["evaluated"] == []
    assert "filer/sensorium/1" in parsed(again)["known"]
    assert "Traceback" not in said.error


def test_verify_finds_the_object_that_a_disk_has_damaged(sensorium, world: World, tmp_path) -> None:
    copied = world.copy(tmp_path)
    sound = parsed(sensorium("verify", "--root", copied.root, "--json"))
    assert sound["damaged"] == []
    assert sound["datasets"]["open"] >= len((OPEN, SENSORIUM, SENSORIUM_PLUS))
    files = [path for path in (Path(copied.root) / "sealed" / "data").rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(content)
    said = sensorium("verify", "--root", copied.root)
    assert said.code == 2
    assert str(victim.relative_to(copied.root)) in "".join(said.out.split())
    assert "1 of" in said.error
