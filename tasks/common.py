"""What tasks and flows share: where they run, what is worth a second try, and names by which an operator knows their runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task

from sensorium_pipeline.errors import SensoriumError
from sensorium_pipeline.locks import locked
from sensorium_pipeline.prediction_runs import staging_area
from sensorium_pipeline.progress import Progress, ProgressCallback
from sensorium_pipeline.sessions.release import choose_release
from sensorium_pipeline.storage import digest_of
from tasks.cancellation import cancelled
from tasks.workspaces import workspace_at

# Tasks only wait for the Dask cluster, so threads of the flow's process are enough however large the cluster is; and a worker that
# dies takes no task run's state with it.
WAITING: TaskRunner[PrefectFuture[Any]] = ThreadPoolTaskRunner(max_workers=32)  # type: ignore[assignment]

RETRIES = 2
RETRY_DELAY = 5  # seconds


def worth_a_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a failing platform may recover; bad input, a crash of strangers' code or a limit never will."""
    error = state.result(raise_on_failure=False)
    return error.retry if isinstance(error, SensoriumError) else False


@contextmanager
def one_at_a_time(name: str, content: object, report: ProgressCallback) -> Iterator[None]:
    """Tasks of this machine with the same content take turns, whichever flow they are of: the second finds what the first has done.

    Two at once would be right as well, as nothing is stored twice; but both would compute it.

    Args:
        name: of the work, for whoever waits.
        content: all that it depends on, as for a key.
        report: told once that another is at work.

    Raises:
        CancelledError: the flow run was cancelled while it waited.
    """

    def waiting() -> None:
        report(Progress(f"{name}: another run is at work on it; waiting for that", 0, 1))

    with locked(staging_area() / f"{digest_of([name, content])[:32]}.lock", waiting, cancelled):
        yield


def named_by_release(action: str) -> Callable[[], str]:
    """Names runs of a flow with the parameters `release` and `root`: the action and the release, also where the only one is meant."""

    def name() -> str:
        parameters = flow_run.get_parameters() or {}
        release, root = parameters.get("release"), parameters.get("root")
        try:
            return f"{action} {release or choose_release(workspace_at(root).open).name}"
        except SensoriumError:
            return f"{action} (no release)"  # the run itself says why

    return name
