"""One submission, from the inbox to its scores. The task itself holds no GPU: the Dask tasks that it starts ask for one each."""

import base64
import os
import time
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import Literal

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.compute import GPU, Channel, run_all_on_cluster
from sensorium_pipeline.errors import IsolationError, PlatformError
from sensorium_pipeline.evaluation import EvaluationRecord, Job, PredictionRecord, RunSettings, predict, refuse, try_out
from sensorium_pipeline.hidden_scores import score
from sensorium_pipeline.progress import Progress, ProgressCallback
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, read_file
from sensorium_pipeline.submissions.learning_curve import PICTURE
from sensorium_pipeline.submissions.run import CPU, Device
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits
from tasks.cancellation import cancelled
from tasks.common import RETRIES, RETRY_DELAY, settings_for, workspace_at, worth_a_retry
from tasks.reporting import TaskProgress

SMOKE_RUNS_FIRST = 1_000_000
"""Priority of smoke runs: a broken submission is told so before others train."""


class SubmissionResult(BaseModel):
    """How the evaluation of one submission ended; scores are in the store, never here."""

    model_config = ConfigDict(frozen=True)

    identifier: str
    name: str
    status: Literal["scored", "failed", "refused"]
    reason: str = ""
    seconds: float


@task(
    name="evaluate submission",
    task_run_name="evaluate {job.identifier}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def evaluate_submission(job: Job, turn: int, root: str | None, address: str) -> State[SubmissionResult]:
    """Try it out, train and predict with every seed on the Dask cluster, then score here, where nothing of the submission runs.

    A submission that fails by its own fault completes with the state name "Unranked", so that red in the interface means the platform.

    Args:
        job: the submission.
        turn: how many submissions of its team come before it; those of a lower turn are run first.
        root: root URL of the workspace.
        address: of the Dask scheduler.
    """
    started = time.monotonic()
    logger = get_run_logger()
    report = TaskProgress(job.identifier)
    workspace = workspace_at(root)

    def result(status: Literal["scored", "failed", "refused"], reason: str = "") -> State[SubmissionResult]:
        record = SubmissionResult(
            identifier=job.identifier, name=job.submission.name, status=status, reason=reason, seconds=time.monotonic() - started
        )
        report(Progress(job.identifier, 1, 1, reason or status))
        logger.info("%s: %s %s", job.identifier, status, reason)
        return Completed(name="Scored" if status == "scored" else "Unranked", message=reason or None, data=record)

    try:
        evaluation = score(workspace, job, _run_seeds(job, turn, root, address, report))
    except IsolationError as error:
        refuse(workspace, job, error.problem)
        return result("refused", str(error))
    except CancelledError:
        return Cancelled(message="The flow run was cancelled; what was trained so far is kept.")
    _show_learning_curve(workspace, evaluation)
    return result("failed", evaluation.failure) if evaluation.failure else result("scored")


def _run_seeds(job: Job, turn: int, root: str | None, address: str, report: ProgressCallback) -> list[PredictionRecord]:
    """The runs of all seeds in their order, or the one that failed."""
    if not job.submission.has_code:
        # A predictions file trains nothing, so it waits for no GPU.
        calls = [(job, seed, root) for seed in job.submission.seeds]
        with closing(run_all_on_cluster(address, _predict_on_worker, calls, progress=report, stop=cancelled)) as ended:
            return [run for _, run in ended]
    with closing(
        run_all_on_cluster(
            address, _try_out_on_worker, [(job, root)], resources=GPU, priority=SMOKE_RUNS_FIRST, progress=report, stop=cancelled
        )
    ) as tried:
        _, failed = next(tried)
    if failed is not None:
        return [failed]
    runs: dict[int, PredictionRecord] = {}
    calls = [(job, seed, root) for seed in job.submission.seeds]
    with closing(
        run_all_on_cluster(address, _predict_on_worker, calls, resources=GPU, priority=-turn, progress=report, stop=cancelled)
    ) as ended:
        for number, run in ended:
            runs[number] = run
            if run.outcome.failure is not None:
                # The other seeds need not go on.
                return [run]
    return [runs[number] for number in sorted(runs)]


def _try_out_on_worker(job: Job, root: str | None, channel: Channel) -> PredictionRecord | None:
    settings = _run_settings(job, settings_for(root))
    return try_out(
        workspace_at(root), job, settings=settings, progress=_reporter(f"{job.identifier} smoke run", channel), stop=channel.stopped
    )


def _predict_on_worker(job: Job, seed: int, root: str | None, channel: Channel) -> PredictionRecord:
    settings = _run_settings(job, settings_for(root))
    name = f"{job.identifier} seed {seed}" if len(job.submission.seeds) > 1 else job.identifier
    return predict(workspace_at(root), job, seed, settings=settings, progress=_reporter(name, channel), stop=channel.stopped)


def _reporter(name: str, channel: Channel) -> ProgressCallback:
    def report(progress: Progress) -> None:
        channel.report(Progress(f"{name} {progress.stage}", progress.done, progress.total, progress.detail))

    return report


def _run_settings(job: Job, settings: Settings) -> RunSettings:
    limits = Limits(checkpoint_seconds=settings.checkpoint_seconds)
    return RunSettings(limits, _worker_device(job, settings.gpu_slots), IsolationTier(settings.isolation))


def _show_learning_curve(workspace: Workspace, evaluation: EvaluationRecord) -> None:
    """The curves as an artifact; Prefect's interface is the organisers' alone."""
    if evaluation.curve_digest is not None:
        picture = base64.b64encode(read_file(workspace.sealed, evaluation.curve_digest, PICTURE)).decode()
        text = f"![Training loss and validation score by epoch](data:image/png;base64,{picture})"
        create_markdown_artifact(text, key="learning-curve", description=f"Learning curve of {evaluation.identifier}")


def _worker_device(job: Job, slots: int) -> Device:
    """The GPU that dask-cuda gave to this worker, with its device nodes alone; the worker itself makes no CUDA context.

    Raises:
        PlatformError: the job is for GPUs and this worker has none; a result from a CPU must not be recorded as one of a GPU.
    """
    if job.device_class == "cpu":
        return CPU
    # In a container the only GPU has the index 0, whatever the number of its node.
    gpus = sorted(Path("/dev").glob("nvidia[0-9]*"), key=lambda node: int(node.name.removeprefix("nvidia")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    if not visible.isdigit() or int(visible) >= len(gpus):
        raise PlatformError(
            "the evaluation asks for a GPU, and this worker has none",
            where=f"CUDA_VISIBLE_DEVICES={visible}",
            advice="Start the workers with `dask cuda worker`, or evaluate with device_class=cpu.",
        )
    common = [Path("/dev") / name for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")]
    # Energy is counted for a whole GPU, so where several models share one it is nobody's.
    gpu = int(visible) if slots == 1 else None
    return Device("cuda:0", (gpus[int(visible)], *(node for node in common if node.exists())), gpu)
