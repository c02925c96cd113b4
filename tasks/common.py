"""What every task shares: where it runs, and what is worth a second try."""

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task

from sensorium_pipeline.errors import SensoriumError

# Tasks only wait for the Dask cluster, so threads of the flow's process are enough however large the cluster is; and a worker that
# dies takes no task run's state with it.
WAITING: TaskRunner[PrefectFuture[Any]] = ThreadPoolTaskRunner(max_workers=32)  # type: ignore[assignment]

RETRIES = 2
RETRY_DELAY = 5  # seconds


def worth_a_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a failing platform may recover; bad input, a crash of strangers' code or a limit never will."""
    error = state.result(raise_on_failure=False)
    return error.retry if isinstance(error, SensoriumError) else False
