"""Whatever is killed or cancelled while a model trains, the next attempt goes on from the checkpoint and ends in the same bytes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from distributed.client import Client
from small_world import RELEASE, World, send, write_code

from sensorium_pipeline.compute import local_cluster
from sensorium_pipeline.evaluation import latest_evaluation
from sensorium_pipeline.intake import take_in
from sensorium_pipeline.jobs import Job, find_job
from sensorium_pipeline.prediction_runs import PredictionRecord, predict
from sensorium_pipeline.sessions.release import read_release
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.sandbox import IsolationTier

# Our own trainer with everything that it keeps, slow enough to be interrupted.
SLOW = """
    import time
    from dataclasses import replace
    from sensorium_pipeline.submissions.baseline import BaselineModel

    class Slow(BaselineModel):
        def _after_epoch(self, trainer):
            super()._after_epoch(trainer)
            time.sleep(0 if self._context.smoke_run else PAUSE)

    def build(context):
        training = {"epochs": EPOCHS, "batch_size": 16, "patience": EPOCHS}
        parameters = {"architecture": "cnn", "model": {"core": {"channels": 4, "layers": 2}}, "training": training}
        return Slow(replace(context, parameters=parameters))
"""
EPOCHS = 20
PAUSE = 0.2  # seconds after each epoch


@pytest.fixture(scope="module")
def isolated() -> None:
    isolation = probe_isolation()
    if isolation.tier is IsolationTier.REFUSE:
        pytest.skip(f"no isolation here: {'; '.join(isolation.reasons)}")


@pytest.fixture(scope="module")
def workers(prefect_api: str) -> Iterator[str]:
    """Two workers that keep every checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_CHECKPOINT_SECONDS", "0")
        with local_cluster(Settings(workers=2)) as cluster:
            patch.setenv("SENSORIUM_DASK_ADDRESS", cluster.scheduler_address)
            yield cluster.scheduler_address


@pytest.fixture(scope="module")
def undisturbed(world: World, isolated: None, tmp_path_factory: pytest.TempPathFactory) -> PredictionRecord:
    """The same submission run from start to end, without a cluster."""
    folder = tmp_path_factory.mktemp("undisturbed")
    copied = world.copy(folder)
    record = predict(copied.workspace, submitted(copied, folder), 0)
    assert record.outcome.failure is None
    return record


def submitted(world: World, folder: Path) -> Job:
    code = SLOW.replace("PAUSE", str(PAUSE)).replace("EPOCHS", str(EPOCHS))
    send(world.workspace, write_code(folder / "slow", "Slow", code), "patient", "sensorium")
    take_in(world.workspace)
    return find_job(world.workspace, read_release(world.workspace.open, RELEASE), "patient")


def evaluate(root: str):
    from flows.evaluate_submissions import evaluate_submissions

    return evaluate_submissions(RELEASE, root, publish=False)


def last_checkpoint(world: World) -> int:
    return max((int(path.name[:6]) for path in Path(world.root, "sealed", "checkpoints").glob("*/*")), default=0)


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sandboxes() -> list[psutil.Process]:
    """Processes of sandboxes on this machine that belong to our cluster."""
    return [process for process in psutil.Process().children(recursive=True) if "submissions.runner" in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ended_like(undisturbed: PredictionRecord, world: World, job: Job) -> None:
    evaluation = latest_evaluation(world.workspace, job)
    assert evaluation is not None
    (run,) = evaluation.runs
    assert run.outcome.resumed
    assert run.predictions_digest == undisturbed.predictions_digest
    assert run.state_digest == undisturbed.state_digest
    assert run.outcome.epochs == undisturbed.outcome.epochs
    assert evaluation.curve_digest is not None
    # What was only needed while it trained is gone.
    assert not world.workspace.sealed.walk("checkpoints")


def test_tasks_of_a_flow_that_is_ended_by_an_error_are_told_to_end(prefect_api: str) -> None:
    from prefect import flow, task

    from tasks.cancellation import cancellable, cancelled
    from tasks.common import WAITING

    started, told = threading.Event(), threading.Event()

    @task
    def waits_for_work() -> None:
        started.set()
        wait_until(cancelled, 30)
        told.set()

    @flow(task_runner=WAITING)
    def interrupted() -> None:
        with cancellable():
            waits_for_work.submit()
            assert started.wait(30)
            raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        interrupted()
    assert told.is_set()


def test_a_worker_killed_twice_costs_time_and_changes_no_bit(
    world: World, undisturbed: PredictionRecord, workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.evaluate_submissions import evaluate_submission

    monkeypatch.setattr(evaluate_submission, "retry_delay_seconds", 0)
    world = world.copy(tmp_path / "copy")
    job = submitted(world, tmp_path)
    with ThreadPoolExecutor(1) as pool, Client(workers, set_as_default=False) as client:
        night = pool.submit(evaluate, world.root)
        for wanted in (3, 7):
            wait_until(lambda wanted=wanted: last_checkpoint(world) >= wanted or night.done())
            training = [pid for pid in client.run(os.getpid).values() if psutil.Process(pid).children(recursive=True)]
            assert len(training) == 1, night
            os.kill(training[0], signal.SIGKILL)
            wait_until(lambda killed=training[0]: not psutil.pid_exists(killed))
        summary = night.result(timeout=400)
    assert [result.status for result in summary.evaluated] == ["scored"]
    ended_like(undisturbed, world, job)


def test_a_killed_and_a_cancelled_night_leave_nothing_but_checkpoints(
    world: World, undisturbed: PredictionRecord, workers: str, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
    from prefect.exceptions import CancelledRun
    from prefect.states import Cancelling

    world = world.copy(tmp_path / "copy")
    job = submitted(world, tmp_path)

    killed = multiprocessing.get_context("spawn").Process(target=evaluate, args=(world.root,))
    killed.start()
    wait_until(lambda: last_checkpoint(world) >= 2 or not killed.is_alive())
    assert sandboxes()
    killed.kill()
    wait_until(lambda: not sandboxes(), 30)
    assert latest_evaluation(world.workspace, job) is None

    with ThreadPoolExecutor(1) as pool, get_client(sync_client=True) as client:
        running = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Running"])))
        before = {run.id for run in client.read_flow_runs(flow_run_filter=running)}
        first = last_checkpoint(world)
        night = pool.submit(evaluate, world.root)
        wait_until(lambda: last_checkpoint(world) >= first + 2 or night.done())
        assert sandboxes()
        (run,) = [run for run in client.read_flow_runs(flow_run_filter=running) if run.id not in before]
        client.set_flow_run_state(run.id, Cancelling())
        wait_until(lambda: not sandboxes(), 10)
        with pytest.raises(CancelledRun):
            night.result(timeout=300)
        assert client.read_flow_run(run.id).state_name == "Cancelled"
    assert latest_evaluation(world.workspace, job) is None
    assert last_checkpoint(world) < EPOCHS

    summary = evaluate(world.root)
    assert [result.status for result in summary.evaluated] == ["scored"]
    ended_like(undisturbed, world, job)
