"""Work on a real Dask cluster: reports come back, a poisonous task is given up, and work notices when nobody waits any more."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sensorium_pipeline.compute import GPU, Channel, cluster_address, run_on_cluster
from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.settings import Settings


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster_address(Settings(workers=2)) as address:
        yield address


def count(steps: int, channel: Channel) -> int:
    for step in range(steps):
        channel.report(Progress("counting", step + 1, steps))
    return steps


def refuse(channel: Channel) -> None:
    raise InputError("is broken", where="file.tif", advice="Copy it again.")


def die(channel: Channel) -> None:
    os._exit(1)


def wait_until_stopped(folder: Path, channel: Channel) -> None:
    (folder / "started").touch()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if channel.stopped():
            (folder / "stopped").touch()
            return
        time.sleep(0.05)


def test_reports_reach_the_caller_in_order(address: str) -> None:
    reports: list[Progress] = []
    assert run_on_cluster(address, count, 3, resources=GPU, progress=reports.append) == 3
    assert [report.done for report in reports] == [1, 2, 3]


def test_errors_of_the_taxonomy_cross_the_cluster_whole(address: str) -> None:
    with pytest.raises(InputError) as caught:
        run_on_cluster(address, refuse)
    assert str(caught.value) == "file.tif: is broken. Copy it again."


def test_a_task_that_kills_its_workers_is_given_up_and_the_cluster_lives_on(address: str) -> None:
    with pytest.raises(PlatformError, match="worker processes that ran it died"):
        run_on_cluster(address, die)
    assert run_on_cluster(address, count, 1) == 1


def test_work_stops_when_the_process_that_waits_for_it_is_killed(address: str, tmp_path: Path) -> None:
    waiter = multiprocessing.get_context("spawn").Process(target=run_on_cluster, args=(address, wait_until_stopped, tmp_path))
    waiter.start()
    _wait_for(tmp_path / "started")
    assert not (tmp_path / "stopped").exists()
    waiter.kill()
    _wait_for(tmp_path / "stopped")


def test_no_scheduler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium_pipeline.compute.START_TIMEOUT", 1)
    with pytest.raises(PlatformError, match="no Dask scheduler answers"):
        run_on_cluster("tcp://127.0.0.1:9", count, 1)


def _wait_for(path: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not happen within {seconds} s"
        time.sleep(0.05)
