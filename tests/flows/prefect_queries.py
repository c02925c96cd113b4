"""Flow runs of this process, and what Prefect knows of them, asked through its API."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, ArtifactFilterType, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun


@dataclass(frozen=True)
class Ended:
    """A flow run that ended, with what it returned or raised."""

    run: UUID
    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


def run_flow(flow: Flow[..., Any], *arguments: Any, **options: Any) -> Ended:
    """Run a flow in this process to its end.

    Not by `return_state`: where the answer to its last state got lost, Prefect asks again, and is told the state without the result
    (https://github.com/PrefectHQ/prefect/issues/10263).
    """
    runs: list[UUID] = []
    hooks = [lambda _flow, run, _state: runs.append(run.id)]
    watched = flow.with_options(on_completion=hooks, on_failure=hooks, on_cancellation=hooks, on_crashed=hooks)
    try:
        value = watched(*arguments, **options)
    except BaseException as error:
        if not runs:
            raise
        return Ended(runs[0], error=error)
    return Ended(runs[0], value)


def run_of(ended: Ended) -> FlowRun:
    """The flow run as the server has it."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(ended.run)


def task_runs_of(ended: Ended, task: str, expected: int | None = None) -> Sequence[TaskRun]:
    """The runs of one task in a flow run, in the order of their names. Prefect hears of them a moment later, through events."""
    deadline = time.monotonic() + 20
    while True:
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[ended.run])))
        found = sorted((run for run in runs if run.name.startswith(task)), key=lambda run: run.name)
        settled = all(run.state is not None and run.state.is_final() for run in found)
        if (settled and (expected is None or len(found) == expected)) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def artifacts_of(ended: Ended, key: str) -> Sequence[Artifact]:
    """The artifacts of one key that a flow run has made."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[ended.run])),
        )


def progress_of(ended: Ended) -> Sequence[Artifact]:
    """The progress artifacts of the tasks of a flow run, as they were left."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["progress"])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[ended.run])),
        )
