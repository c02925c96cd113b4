"""What Prefect knows of a run, asked through its API."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, ArtifactFilterType, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, TaskRun


def run_of(state: State[Any]) -> FlowRun:
    """The flow run that ended in this state."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(_run_id(state))


def task_runs_of(state: State[Any], task: str, expected: int | None = None) -> Sequence[TaskRun]:
    """The runs of one task in a flow run, in the order of their names. Prefect hears of them a moment later, through events."""
    deadline = time.monotonic() + 20
    while True:
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[_run_id(state)])))
        found = sorted((run for run in runs if run.name.startswith(task)), key=lambda run: run.name)
        settled = all(run.state is not None and run.state.is_final() for run in found)
        if (settled and (expected is None or len(found) == expected)) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def artifacts_of(state: State[Any], key: str) -> Sequence[Artifact]:
    """The artifacts of one key that a flow run has made."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[_run_id(state)])),
        )


def progress_of(state: State[Any]) -> Sequence[Artifact]:
    """The progress artifacts of the tasks of a flow run, as they were left."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["progress"])),
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[_run_id(state)])),
        )


def _run_id(state: State[Any]) -> UUID:
    found = state.state_details.flow_run_id
    assert found is not None
    return found
