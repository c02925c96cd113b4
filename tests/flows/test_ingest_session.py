"""A raw recording through the real flow: published once, gone on with after a kill, refused by a gate."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import xarray as xr
from small_world import SMALL, tree_snapshot

from sensorium_pipeline.archive import archived_plane
from sensorium_pipeline.errors import InputError, QualityGateError
from sensorium_pipeline.recordings import open_session, simulate_recording
from sensorium_pipeline.sessions.catalogue import list_sessions, read_binding
from sensorium_pipeline.sessions.gates import SessionGates
from sensorium_pipeline.sessions.records import SessionParameters, SessionRecord
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import dataset_url, open_workspace, read_file

PLANES = 3
SESSION = SMALL.model_copy(
    update={"animal": 8, "seed": 8, "role": "competition", "track": "sensorium+", "planes": PLANES, "single_images": 40, "test_images": 4}
)
RUN_FLOW = "import sys; from flows.ingest_session import ingest_session; ingest_session(sys.argv[1], sys.argv[2])"


@dataclass(frozen=True)
class Ingested:
    raw: Path
    folder: Path
    ended: Any
    record: SessionRecord


def ingest(raw: Path, root: Path, parameters: SessionParameters | None = None) -> Any:
    """Run the flow in this process to its end."""
    from prefect_queries import run_flow

    from flows.ingest_session import ingest_session

    return run_flow(ingest_session, str(raw), str(root), parameters)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recording") / "raw"
    simulate_recording(out, SESSION)
    return out


@pytest.fixture(scope="module")
def ingested(raw: Path, on_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    folder = tmp_path_factory.mktemp("ingested") / "workspace"
    ended = ingest(raw, folder)
    return Ingested(raw, folder, ended, ended.result())


def test_a_recording_becomes_a_published_session(ingested: Ingested) -> None:
    workspace = open_workspace(Settings(root=str(ingested.folder)))
    assert list_sessions(workspace.open) == [ingested.record.published()]
    assert ingested.record.neurons > 0
    assert set(ingested.record.trials) == {"train", "validation", "test", "final_test"}
    assert read_binding(workspace.sealed, ingested.record.open_digest) == ingested.record


def test_prefect_shows_the_run_and_every_plane(ingested: Ingested) -> None:
    from prefect_queries import run_of, task_runs_of

    run = run_of(ingested.ended)
    assert run.state_name == "Completed"
    assert run.name == f"ingest {ingested.raw}"
    planes = task_runs_of(ingested.ended, "extract plane", PLANES)
    wanted = [(f"extract plane {plane} of {ingested.raw}", "Completed") for plane in range(PLANES)]
    assert [(plane.name, plane.state_name) for plane in planes] == wanted
    assert [task.state_name for task in task_runs_of(ingested.ended, "publish session", 1)] == ["Completed"]


def test_progress_of_every_plane_is_an_artifact_that_says_what_speed_and_how_long(ingested: Ingested) -> None:
    from prefect_queries import progress_of

    texts = [str(artifact.description) for artifact in progress_of(ingested.ended)]
    for plane in range(PLANES):
        (text,) = [text for text in texts if text.startswith(f"{SESSION.name} plane {plane}: ")]
        assert re.search(r"(\d+)/\1 (frames|neurons)", text), text


def test_the_quality_report_is_an_artifact_and_a_file_of_the_lab(ingested: Ingested) -> None:
    from prefect_queries import artifacts_of

    lab = open_workspace(Settings(root=str(ingested.folder))).lab
    report = read_file(lab, ingested.record.report_digest, "report.md").decode()
    assert ingested.record.name in report
    (artifact,) = artifacts_of(ingested.ended, "quality-report")
    assert artifact.type == "markdown"
    # In the interface the pictures are part of the text; in the lab they are files beside it.
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", str(artifact.data))
    assert pictures
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert re.sub(r"\]\([^)]*\)", "]()", str(artifact.data)) == re.sub(r"\]\([^)]*\)", "]()", report)


def test_anyone_opens_the_published_session_with_xarray_alone(ingested: Ingested) -> None:
    url = dataset_url(open_workspace(Settings(root=str(ingested.folder))).open, ingested.record.open_digest)
    with xr.open_datatree(url, engine="zarr") as tree:
        assert set(tree.children) == {"neurons", "trials", "images", "statistics"}
        assert tree["trials"].sizes["trial"] == sum(ingested.record.trials.values())
    with xr.open_zarr(url, group="trials") as trials:
        assert trials["response"].dims == ("trial", "neuron")
        assert trials["response"].attrs["units"]
        trials.load()
        hidden = trials["tier"].isin(["test", "final_test"])
        assert bool(trials["response"].where(hidden, drop=True).isnull().all())
        assert bool(trials["response"].where(~hidden, drop=True).notnull().all())


def test_the_second_run_changes_nothing(ingested: Ingested) -> None:
    before = tree_snapshot(ingested.folder)
    again = ingest(ingested.raw, ingested.folder)
    assert again.result() == ingested.record
    assert tree_snapshot(ingested.folder) == before


@pytest.fixture
def killed_after_one_plane(raw: Path, prefect_api: str, tmp_path: Path) -> Iterator[Path]:
    """A workspace in which a process that ran the flow, with a cluster of its own, was killed when the first plane was done."""
    root = tmp_path / "workspace"
    environment = {name: value for name, value in os.environ.items() if name != "SENSORIUM_DASK_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_FLOW, str(raw), str(root)], env=environment | {"SENSORIUM_WORKERS": "1"}, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not _finished_planes(root):
            assert process.poll() is None, "the flow ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        # Workers of a cluster whose process is gone must not go on by themselves.
        assert psutil.wait_procs(family, timeout=30)[1] == []
        yield root
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _finished_planes(root: Path) -> list[Path]:
    return sorted((root / "lab" / "results" / "planes").rglob("record.json"))


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_digests(ingested: Ingested, killed_after_one_plane: Path) -> None:
    root = killed_after_one_plane
    finished = _finished_planes(root)
    assert 1 <= len(finished) < PLANES
    kept = {path: path.stat().st_mtime_ns for path in finished}
    assert not list_sessions(open_workspace(Settings(root=str(root))).open)
    assert ingest(ingested.raw, root).result() == ingested.record
    assert len(_finished_planes(root)) == PLANES
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_quality_gate_refuses_and_nothing_of_the_session_is_visible(ingested: Ingested, tmp_path: Path) -> None:
    from prefect_queries import run_of, task_runs_of

    root = tmp_path / "workspace"
    shutil.copytree(ingested.folder / "lab" / "results", root / "lab" / "results")
    shutil.copytree(ingested.folder / "lab" / "manifests", root / "lab" / "manifests")
    shutil.copytree(ingested.folder / "lab" / "data", root / "lab" / "data")
    ended = ingest(ingested.raw, root, SessionParameters(gates=SessionGates(neurons=10_000)))
    with pytest.raises(QualityGateError, match=r"neurons is \d+, must be at least 1e\+04 \(.* too little\)") as caught:
        ended.result()
    assert caught.value.where == f"session {SESSION.name}"
    workspace = open_workspace(Settings(root=str(root)))
    assert workspace.open.list("") == []
    assert workspace.sealed.list("") == []
    # The report that the message names is there to be read.
    digest = caught.value.advice.rstrip(".").split()[-1]
    assert (
        "10000" in read_file(workspace.lab, digest, "report.md").decode()
        or "1e+04" in read_file(workspace.lab, digest, "report.md").decode()
    )
    assert run_of(ended).state_name == "Failed"
    # A refusal is never tried again.
    assert [task.run_count for task in task_runs_of(ended, "publish session", 1)] == [1]


def test_bad_input_fails_the_run_with_the_message_and_leaves_nothing(ingested: Ingested, tmp_path: Path) -> None:
    from prefect_queries import run_of

    damaged = tmp_path / "raw"
    shutil.copytree(ingested.raw, damaged)
    last = sorted((damaged / "scans").glob("*.tif"))[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    ended = ingest(damaged, tmp_path / "workspace")
    with pytest.raises(InputError, match="is cut off"):
        ended.result()
    assert last.name in (run_of(ended).state.message or "")
    assert not tree_snapshot(tmp_path / "workspace")


def test_the_raw_movie_is_archived_beside_a_session_that_is_there(ingested: Ingested) -> None:
    from prefect_queries import run_flow, task_runs_of

    from flows.ingest_session import ingest_session

    ended = run_flow(ingest_session, str(ingested.raw), str(ingested.folder), archive=True)
    assert ended.result() == ingested.record
    assert len(task_runs_of(ended, "archive plane", PLANES)) == PLANES
    session, lab = open_session(ingested.raw), open_workspace(Settings(root=str(ingested.folder)))
    for plane in range(PLANES):
        kept = archived_plane(lab, session.digest, plane)
        assert kept is not None
        with xr.open_zarr(dataset_url(lab.lab, kept.digest)) as data:
            assert (data.channel_1.to_numpy() == session.plane(plane).read(0, session.volumes)).all()
