"""Submissions -> predictions in isolation -> scores -> ranking -> publication."""

from typing import Literal, cast

from prefect import flow, get_run_logger
from prefect.states import Cancelled
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.compute import at_worker_start, cluster_address
from sensorium_pipeline.errors import PlatformError, SensoriumError
from sensorium_pipeline.evaluation import is_current
from sensorium_pipeline.intake import record_platform_failure, take_in, update_standings
from sensorium_pipeline.jobs import in_fair_order, list_jobs
from sensorium_pipeline.sessions.release import choose_release
from sensorium_pipeline.submissions.inbox import Decision, RequestDecision
from sensorium_pipeline.submissions.isolation import report_isolation
from tasks.cancellation import cancellable
from tasks.common import WAITING, named_by_release
from tasks.ranking import publish_tables
from tasks.submission import SubmissionResult, evaluate_submission
from tasks.workspaces import settings_for, workspace_at


class EvaluationSummary(BaseModel):
    """What one night did; `refused` are submissions and requests that were decided now, and do not count."""

    model_config = ConfigDict(frozen=True)

    release: str
    evaluated: list[SubmissionResult]
    known: list[str]
    refused: list[Decision | RequestDecision] = []


@flow(name="evaluate-submissions", flow_run_name=named_by_release("evaluate"), task_runner=WAITING)
def evaluate_submissions(
    release: str | None = None,
    root: str | None = None,
    only: list[str] | None = None,
    device_class: Literal["cpu", "cuda"] = "cpu",
    publish: bool = True,
) -> EvaluationSummary:
    """Evaluate every submission that is new, or whose data, environment or metric is; then publish the tables.

    Args:
        release: name of the release; the only one where it is left out.
        root: root URL of the workspace; the environment's where it is left out.
        only: identifiers, teams or digests; every submission where it is left out.
        device_class: what the workers compute on.
        publish: publish the ranking tables afterwards.
    """
    workspace = workspace_at(root)
    logger = get_run_logger()
    current = choose_release(workspace.open, release)
    refused = [decision for decision in take_in(workspace) if decision.reason]
    for decision in refused:
        logger.warning("%s was not taken in: %s", decision.identifier, decision.reason)
    jobs = list_jobs(workspace, current, device_class, only or ())
    pending = [job for job in jobs if not is_current(workspace, job)]
    known = [job.identifier for job in jobs if job not in pending]
    logger.info("%d submissions: %d new, %d evaluated before", len(jobs), len(pending), len(known))
    results: list[SubmissionResult] = []
    broken: dict[str, str] = {}
    if pending:
        queue = in_fair_order(pending)
        with cluster_address(settings_for(root)) as address, cancellable() as stopped:
            at_worker_start(address, report_isolation)
            futures = [evaluate_submission.submit(job, turn, root, address) for turn, job in queue]
            for (_, job), future in zip(queue, futures, strict=True):
                future.wait()
                # A platform's failure of one submission must not hide the results of the others.
                if future.state.is_completed():
                    results.append(cast(SubmissionResult, future.result()))  # the task returns a state that holds it
                elif not stopped.is_set():
                    error = future.state.result(raise_on_failure=False)
                    broken[job.identifier] = error.problem if isinstance(error, SensoriumError) else future.state.message or ""
                    logger.error("%s: the platform failed: %s", job.identifier, broken[job.identifier])
                    record_platform_failure(workspace, job.submission, broken[job.identifier])
        update_standings(workspace, {(job.submission.team, job.track) for job in pending})
        if stopped.is_set():
            # Prefect takes a state that a flow returns for the state of the run.
            return cast(EvaluationSummary, Cancelled(message="What was trained so far is kept; the next run goes on with it."))
    if publish:
        publish_tables(current.name, root)
    if broken:
        reasons = "; ".join(dict.fromkeys(broken.values()))
        advice = "Their task runs say more; the next run tries again."
        raise PlatformError(f"the platform failed on some submissions: {reasons}", where=", ".join(broken), advice=advice)
    return EvaluationSummary(release=current.name, evaluated=results, known=known, refused=refused)
