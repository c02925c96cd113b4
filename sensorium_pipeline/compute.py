"""Which Dask cluster does the heavy work, and how one piece of work is sent to it.

One machine is only the smallest cluster: a scheduler address in `SENSORIUM_DASK_ADDRESS`, GPU workers of dask-cuda where this
machine has GPUs, plain worker processes elsewhere. All of them offer the resource `GPU`, one a worker; on a machine without
GPUs it is a stand-in that holds the number of models trained at once.
"""

import importlib.util
import os
import queue
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import dask
import distributed
from distributed.client import Client
from distributed.comm import CommClosedError
from distributed.deploy.cluster import Cluster
from distributed.scheduler import KilledWorker

from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.settings import Settings

Result = TypeVar("Result")

GPU = {"GPU": 1.0}
"""Resources that a task asks for which trains or predicts."""

START_TIMEOUT = 60  # seconds


def default_workers() -> int:
    """Workers to start on this machine: one a usable core, at least two, at most four."""
    return min(4, max(2, len(os.sched_getaffinity(0))))


@contextmanager
def cluster_address(settings: Settings) -> Iterator[str]:
    """Address of the scheduler that the settings name, or of one started on this machine for as long as the context lasts.

    Raises:
        PlatformError: no cluster could be started.
    """
    if settings.dask_address:
        yield settings.dask_address
        return
    with local_cluster(settings) as cluster:
        yield cluster.scheduler_address


@contextmanager
def local_cluster(settings: Settings) -> Iterator[Cluster]:
    """A Dask cluster on this machine: one worker a GPU where dask-cuda finds GPUs, else worker processes with a stand-in.

    A worker that dies takes its task with it once; the second time the task is given up, so that one poisonous task cannot
    bring down worker after worker. Workers have one thread: Dask takes tasks that wait for a resource to an idle worker only where
    more of them are assigned than there are threads.
    """
    options: dict[str, Any] = {
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "resources": GPU,
        "silence_logs": 40,
    }
    with dask.config.set({"distributed.scheduler.allowed-failures": 1, "distributed.worker.daemon": False}):
        if shutil.which("nvidia-smi") and importlib.util.find_spec("dask_cuda"):
            from dask_cuda import LocalCUDACluster

            cluster: Cluster = LocalCUDACluster(**options)
        else:
            cluster = distributed.LocalCluster(
                n_workers=settings.workers or default_workers(), threads_per_worker=1, processes=True, memory_limit=0, **options
            )
    with cluster:
        yield cluster


@dataclass(frozen=True)
class Channel:
    """The way of a task's reports back to whoever waits for it; picklable, so it travels to the worker."""

    topic: str

    def report(self, progress: Progress) -> None:
        """Send a report from inside a task."""
        distributed.get_worker().log_event(self.topic, {"progress": astuple(progress)})

    def stopped(self) -> bool:
        """Whether nobody waits for this task any more: it was cancelled, or the process that waited for it is gone.

        Dask never interrupts a running task; long work polls this and ends by itself.
        """
        worker = distributed.get_worker()
        state = worker.state.tasks.get(self.topic)
        return state is None or state.state == "cancelled"


def run_on_cluster(
    address: str,
    function: Callable[..., Result],
    *arguments: object,
    resources: dict[str, float] | None = None,
    progress: ProgressCallback = silent,
) -> Result:
    """Run `function(*arguments, channel)` on a worker and wait for it; its reports go to `progress`, in the caller's thread.

    Never call it from inside a Dask task that holds resources: a worker frees them only when a task ends.

    Raises:
        PlatformError: no scheduler answers, the workers that ran it died (allowed failures used up), or the cluster went away.
        Exception: whatever the function raised.
    """
    name = getattr(function, "__name__", "work")
    key = f"{name}-{uuid.uuid4().hex}"
    reports: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()

    try:
        client = Client(address, timeout=START_TIMEOUT, set_as_default=False)
    except OSError as error:
        raise PlatformError("no Dask scheduler answers", where=address, advice="Start one, or correct SENSORIUM_DASK_ADDRESS.") from error
    with client:
        client.subscribe_topic(key, lambda event: reports.put(Progress(*event[1]["progress"])))
        future = client.submit(function, *arguments, Channel(key), key=key, resources=resources, pure=False)
        future.add_done_callback(lambda _: reports.put(None))
        try:
            while (report := reports.get()) is not None:
                progress(report)
            return future.result()
        except KilledWorker as error:
            raise PlatformError(
                "the worker processes that ran it died", where=name, advice="See the workers' log; it is tried again next time."
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise PlatformError("the Dask cluster went away while it ran", where=name, advice="It is tried again next time.") from error
