"""One submission, from the inbox to its scores. The task itself holds no GPU: the Dask tasks that it starts ask for one each."""

import base64
import time
from concurrent.futures import CancelledError
from contextlib import closing
from typing import Literal

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.compute import GPU, run_all_on_cluster
from sensorium_pipeline.errors import IsolationError
from sensorium_pipeline.evaluation import EvaluationRecord, refuse
from sensorium_pipeline.hidden_scores import score
from sensorium_pipeline.jobs import Job
from sensorium_pipeline.prediction_runs import PredictionRecord
from sensorium_pipeline.progress import Progress, ProgressCallback
from sensorium_pipeline.storage import Workspace, read_file
from sensorium_pipeline.submissions.learning_curve import PICTURE
from tasks.cancellation import cancelled
from tasks.common import RETRIES, RETRY_DELAY, one_at_a_time, worth_a_retry
from tasks.reporting import TaskProgress
from tasks.submission_runs import predict_on_worker, try_out_on_worker
from tasks.workspaces import workspace_at

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
    report = TaskProgress()
    workspace = workspace_at(root)

    def result(status: Literal["scored", "failed", "refused"], reason: str = "") -> State[SubmissionResult]:
        record = SubmissionResult(
            identifier=job.identifier, name=job.submission.name, status=status, reason=reason, seconds=time.monotonic() - started
        )
        report(Progress(job.identifier, 1, 1, reason or status))
        logger.info("%s: %s %s", job.identifier, status, reason)
        return Completed(name="Scored" if status == "scored" else "Unranked", message=reason or None, data=record)

    try:
        with one_at_a_time(job.identifier, [workspace.url, job], report):
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
    calls = [(job, seed, root) for seed in job.submission.seeds]
    names = [f"{job.identifier} seed {seed}" for seed in job.submission.seeds]
    if not job.submission.has_code:
        # A predictions file trains nothing, so it waits for no GPU.
        with closing(run_all_on_cluster(address, predict_on_worker, calls, names=names, progress=report, stop=cancelled)) as ended:
            return [run for _, run in ended]
    smoke_run = [f"{job.identifier} smoke run"]
    with closing(
        run_all_on_cluster(
            address,
            try_out_on_worker,
            [(job, root)],
            names=smoke_run,
            resources=GPU,
            priority=SMOKE_RUNS_FIRST,
            progress=report,
            stop=cancelled,
        )
    ) as tried:
        _, failed = next(tried)
    if failed is not None:
        return [failed]
    runs: dict[int, PredictionRecord] = {}
    with closing(
        run_all_on_cluster(address, predict_on_worker, calls, names=names, resources=GPU, priority=-turn, progress=report, stop=cancelled)
    ) as ended:
        for number, run in ended:
            runs[number] = run
            if run.outcome.failure is not None:
                # The other seeds need not go on.
                return [run]
    return [runs[number] for number in sorted(runs)]


def _show_learning_curve(workspace: Workspace, evaluation: EvaluationRecord) -> None:
    """The curves as an artifact; Prefect's interface is the organisers' alone."""
    if evaluation.curve_digest is not None:
        picture = base64.b64encode(read_file(workspace.sealed, evaluation.curve_digest, PICTURE)).decode()
        text = f"![Training loss and validation score by epoch](data:image/png;base64,{picture})"
        create_markdown_artifact(text, key="learning-curve", description=f"Learning curve of {evaluation.identifier}")
