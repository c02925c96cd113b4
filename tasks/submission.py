"""One submission, from the inbox to its scores. The task itself holds no GPU: the Dask tasks that it starts ask for one each."""

import os
import time
from pathlib import Path
from typing import Literal

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.compute import GPU, Channel, run_on_cluster
from sensorium_pipeline.errors import IsolationError, PlatformError
from sensorium_pipeline.evaluation import Job, PredictionRecord, predict, refuse, score
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.submissions.run import CPU, Device
from tasks.common import RETRIES, RETRY_DELAY, workspace_at, worth_a_retry
from tasks.reporting import TaskProgress


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
def evaluate_submission(job: Job, root: str | None, address: str) -> State[SubmissionResult]:
    """Train and predict with every seed on the Dask cluster, then score here, where nothing of the submission runs.

    A submission that fails by its own fault completes with the state name "Unranked", so that red in the interface means the platform.
    """
    started = time.monotonic()
    logger = get_run_logger()
    report = TaskProgress(job.identifier)

    def result(status: Literal["scored", "failed", "refused"], reason: str = "") -> State[SubmissionResult]:
        record = SubmissionResult(
            identifier=job.identifier, name=job.submission.name, status=status, reason=reason, seconds=time.monotonic() - started
        )
        report(Progress(job.identifier, 1, 1, reason or status))
        logger.info("%s: %s %s", job.identifier, status, reason)
        return Completed(name="Scored" if status == "scored" else "Unranked", message=reason or None, data=record)

    runs = []
    for seed in job.submission.seeds:
        try:
            # A predictions file trains nothing, so it waits for no GPU.
            needs = GPU if job.submission.has_code else None
            runs.append(run_on_cluster(address, _predict_on_worker, job, seed, root, resources=needs, progress=report))
        except IsolationError as error:
            refuse(workspace_at(root), job, error.problem)
            return result("refused", str(error))
    evaluation = score(workspace_at(root), job, runs)
    return result("failed", evaluation.failure) if evaluation.failure else result("scored")


def _predict_on_worker(job: Job, seed: int, root: str | None, channel: Channel) -> PredictionRecord:
    def report(progress: Progress) -> None:
        channel.report(Progress(f"{job.identifier} {progress.stage}", progress.done, progress.total, progress.detail))

    workspace = workspace_at(root)
    return predict(workspace, job, seed, device=_worker_device(job), progress=report, stop=channel.stopped)


def _worker_device(job: Job) -> Device:
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
    return Device("cuda:0", (gpus[int(visible)], *(node for node in common if node.exists())))
