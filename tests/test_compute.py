"""Work on a real Dask cluster: reports come back, a poisonous task is given up, and work notices when nobody waits any more."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from distributed.client import Client
from distributed.core import Status
from distributed.nanny import WorkerProcess

from sensorium_pipeline.compute import GPU, Channel, at_worker_start, cluster_address, local_cluster, run_all_on_cluster, run_on_cluster
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


def mark() -> None:
    os.environ["SENSORIUM_TEST_MARK"] = os.environ.get("SENSORIUM_TEST_MARK", "") + "x"


def first_or_never(folder: Path, first: bool, channel: Channel) -> str:
    if not first:
        wait_until_stopped(folder, channel)
    return "first"


def meet(folder: Path, awaited: str, own: str, channel: Channel) -> bool:
    (folder / own).touch()
    _wait_for(folder / awaited, 60)
    return True


def note(folder: Path, turn: int, channel: Channel) -> None:
    with (folder / "order").open("a") as file:
        file.write(f"{turn} ")


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
    with pytest.raises(PlatformError, match="worker processes that ran it died") as caught:
        run_on_cluster(address, die, name="team/sensorium/1 seed 0")
    assert caught.value.where == "team/sensorium/1 seed 0"
    assert run_on_cluster(address, count, 1) == 1


def test_work_stops_when_the_process_that_waits_for_it_is_killed(address: str, tmp_path: Path) -> None:
    waiter = multiprocessing.get_context("spawn").Process(target=run_on_cluster, args=(address, wait_until_stopped, tmp_path))
    waiter.start()
    _wait_for(tmp_path / "started")
    assert not (tmp_path / "stopped").exists()
    waiter.kill()
    _wait_for(tmp_path / "stopped")


def test_what_nobody_waits_for_any_more_is_told_so(address: str, tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = [(tmp_path,)]
    with ThreadPoolExecutor(1) as pool:
        stop = threading.Event()
        waiting = pool.submit(list, run_all_on_cluster(address, wait_until_stopped, calls, stop=stop.is_set))
        _wait_for(tmp_path / "started")
        stop.set()
        with pytest.raises(CancelledError):
            waiting.result(timeout=30)
    _wait_for(tmp_path / "stopped")


def test_results_come_as_they_end_and_the_rest_can_be_given_up(address: str, tmp_path: Path) -> None:
    with closing(run_all_on_cluster(address, first_or_never, [(tmp_path, False), (tmp_path, True)])) as results:
        assert next(results) == (1, "first")
    _wait_for(tmp_path / "stopped")


def test_work_of_a_lower_turn_is_begun_first(tmp_path: Path) -> None:
    with cluster_address(Settings(workers=1)) as address, ThreadPoolExecutor(4) as pool:
        blocked = pool.submit(list, run_all_on_cluster(address, meet, [(tmp_path, "go", "blocker")], resources=GPU))
        _wait_for(tmp_path / "blocker")
        with Client(address, set_as_default=False) as client:
            waiting = []
            for turn in (2, 0, 1):
                waiting.append(pool.submit(list, run_all_on_cluster(address, note, [(tmp_path, turn)], resources=GPU, priority=-turn)))
                while len(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))) < len(waiting) + 1:
                    time.sleep(0.02)
            (tmp_path / "go").touch()
            for done in (blocked, *waiting):
                done.result(timeout=60)
    assert (tmp_path / "order").read_text().split() == ["0", "1", "2"]


def test_several_models_share_a_gpu_where_the_settings_say_so(tmp_path: Path) -> None:
    with cluster_address(Settings(workers=1, gpu_slots=2)) as address:
        calls: list[tuple[object, ...]] = [(tmp_path, "one", "other"), (tmp_path, "other", "one")]
        # Each waits for the other, so one after the other would never end.
        assert sorted(run_all_on_cluster(address, meet, calls, resources=GPU)) == [(0, True), (1, True)]


def test_every_worker_is_told_when_it_starts(address: str) -> None:
    at_worker_start(address, mark)
    at_worker_start(address, mark)
    with Client(address, set_as_default=False) as client:
        assert set(client.run(os.getenv, "SENSORIUM_TEST_MARK").values()) == {"x"}


def test_no_scheduler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium_pipeline.compute.START_TIMEOUT", 1)
    with pytest.raises(PlatformError, match="no Dask scheduler answers"):
        run_on_cluster("tcp://127.0.0.1:9", count, 1)


def _wait_for(path: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not happen within {seconds} s"
        time.sleep(0.05)


def test_a_worker_that_had_to_be_killed_at_the_end_fails_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    kill = WorkerProcess.kill

    async def kill_too_late(process: WorkerProcess, *arguments: object, **options: object) -> None:
        await kill(process, *arguments, **options)  # type: ignore[arg-type]
        raise TimeoutError

    monkeypatch.setattr(WorkerProcess, "kill", kill_too_late)
    with local_cluster(Settings(workers=1)) as cluster:
        workers = [worker.process.pid for worker in cluster.workers.values()]
    assert workers
    assert not any(psutil.pid_exists(worker) for worker in workers)
    cluster.status = Status.closed  # else the end of this process waits for it
