"""Which Dask cluster does the heavy work, and how one piece of work is sent to it.

One machine is only the smallest cluster: a scheduler address in `SENSORIUM_DASK_ADDRESS`, GPU workers of dask-cuda where this
machine has GPUs, plain worker processes elsewhere. All of them offer the resource `GPU`, as much of it as models may share one GPU
(`SENSORIUM_GPU_SLOTS`); on a machine without GPUs it is a stand-in that holds the number of models trained at once.
"""

import importlib.util
import os
import queue
import shutil
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import dask
import distributed
from distributed.client import Client, Future
from distributed.comm import CommClosedError
from distributed.deploy.cluster import Cluster
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.scheduler import KilledWorker
from distributed.worker import Worker

from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.progress import Progress, ProgressCallback, never, silent
from sensorium_pipeline.settings import Settings

Result = TypeVar("Result")

GPU = {"GPU": 1.0}
"""Resources that a task asks for which trains or predicts."""

PRELOADED = "sensorium_pipeline.prediction_runs"
"""What workers import before they say that they are there: most of it is part of all their work, and takes over a second."""

START_TIMEOUT = 60  # seconds
TICK = "1s"
POLL_SECONDS = 0.5


def default_workers() -> int:
    """Workers to start on this machine: one a usable core, at least two, at most four."""
    return min(4, max(2, len(os.sched_getaffinity(0))))


@contextmanager
def cluster_address(settings: Settings) -> Iterator[str]:
    """Address of the scheduler that the settings name, or of one started on this machine for as long as the context lasts.

    It keeps this process's connection to the scheduler, which everything that is run there shares.

    Raises:
        PlatformError: no cluster could be started, or no scheduler answers.
    """
    if settings.dask_address:
        with _connection(settings.dask_address):
            yield settings.dask_address
        return
    with local_cluster(settings) as cluster, _connection(cluster.scheduler_address):
        yield cluster.scheduler_address


@contextmanager
def local_cluster(settings: Settings) -> Iterator[Cluster]:
    """A Dask cluster on this machine: one worker a GPU where dask-cuda finds GPUs, else worker processes with a stand-in.

    A worker that dies takes its task with it once; the second time the task is given up, so that one poisonous task cannot
    bring down worker after worker. Workers have one thread for each slot of their GPU and no more: Dask takes tasks that wait for a
    resource to an idle worker only where more of them are assigned than there are threads.
    """
    options: dict[str, Any] = {
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        # Nobody would know the dashboard's port; its server answers /health alone.
        "scheduler_kwargs": {"dashboard": False},
        "preload": [PRELOADED],
        "resources": {"GPU": float(settings.gpu_slots)},
        "threads_per_worker": settings.gpu_slots,
        "silence_logs": 40,
    }
    configuration = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.worker.daemon": False,
        # Fifty times a second, each server of Dask would time its own event loop.
        "distributed.admin.tick.interval": TICK,
        # Workers would sample their own stacks a hundred times a second, for a dashboard that is not there.
        "distributed.worker.profile.enabled": False,
    }
    with dask.config.set(configuration):
        if shutil.which("nvidia-smi") and importlib.util.find_spec("dask_cuda"):
            from dask_cuda import LocalCUDACluster

            cluster: Cluster = LocalCUDACluster(**options)
        else:
            cluster = distributed.LocalCluster(n_workers=settings.workers or default_workers(), processes=True, memory_limit=0, **options)
    try:
        yield cluster
    finally:
        # A worker that does not end within seconds, on a busy machine, was killed: the work is done, and need not fail for that.
        with suppress(TimeoutError):
            cluster.close()


@dataclass(frozen=True)
class Channel:
    """The way of a task's reports back to whoever waits for it; picklable, so it travels to the worker."""

    topic: str
    key: str

    def report(self, progress: Progress) -> None:
        """Send a report from inside a task."""
        distributed.get_worker().log_event(self.topic, {"progress": astuple(progress)})

    def stopped(self) -> bool:
        """Whether nobody waits for this task any more: it was cancelled, or the process that waited for it is gone.

        Dask never interrupts a running task; long work polls this and ends by itself.
        """
        worker = distributed.get_worker()
        state = worker.state.tasks.get(self.key)
        return state is None or state.state == "cancelled"


class _AtStart(WorkerPlugin):
    idempotent = True  # registered again, it is the same one

    def __init__(self, function: Callable[[], object]) -> None:
        self.name = f"{function.__module__}.{function.__name__}"
        self._function = function

    def setup(self, worker: Worker) -> None:
        self._function()


def at_worker_start(address: str, function: Callable[[], object]) -> None:
    """Call a function once in every worker of a cluster: in those that run now, and in each that starts later.

    Raises:
        PlatformError: no scheduler answers.
    """
    with _connection(address) as client:
        client.register_plugin(_AtStart(function))


def run_on_cluster(
    address: str,
    function: Callable[..., Result],
    *arguments: object,
    name: str | None = None,
    resources: dict[str, float] | None = None,
    progress: ProgressCallback = silent,
    stop: Callable[[], bool] = never,
) -> Result:
    """Run `function(*arguments, channel)` on a worker and wait for it; its reports go to `progress`, in the caller's thread.

    Raises:
        PlatformError, CancelledError, Exception: as `run_all_on_cluster`.
    """
    names = [name] if name else None
    run = run_all_on_cluster(address, function, [arguments], names=names, resources=resources, progress=progress, stop=stop)
    with closing(run) as results:
        return next(results)[1]


def run_all_on_cluster(
    address: str,
    function: Callable[..., Result],
    calls: Sequence[tuple[object, ...]],
    *,
    names: Sequence[str] | None = None,
    resources: dict[str, float] | None = None,
    priority: int = 0,
    progress: ProgressCallback = silent,
    stop: Callable[[], bool] = never,
) -> Generator[tuple[int, Result], None, None]:
    """Run `function(*arguments, channel)` for several arguments side by side; yields (number of the call, result) as they end.

    Whoever does not want the rest closes the generator: work that nobody waits for is told so (`Channel.stopped`).
    Never call it from inside a Dask task that holds resources: a worker frees them only when a task ends.

    Args:
        address: of the scheduler.
        function: importable on the workers.
        calls: arguments of each call.
        names: of each call, on Dask's pages and in errors; the function's where they are left out.
        resources: that each call holds while it runs.
        priority: work of a higher one is begun first.
        progress: receives all reports, in the caller's thread.
        stop: asked twice a second; True ends the waiting.

    Raises:
        PlatformError: no scheduler answers, the workers that ran it died (allowed failures used up), or the cluster went away.
        CancelledError: `stop` said so.
        Exception: whatever the function raised.
    """
    names = names or [getattr(function, "__name__", "work")] * len(calls)
    topic = uuid.uuid4().hex
    # Reports, and the numbers of calls that ended.
    happened: queue.SimpleQueue[Progress | int] = queue.SimpleQueue()
    with _connection(address) as client:
        client.subscribe_topic(topic, lambda event: happened.put(Progress(*event[1]["progress"])))
        futures = []
        try:
            for number, arguments in enumerate(calls):
                key = f"{names[number]}-{topic}-{number}"
                channel = Channel(topic, key)
                future = client.submit(function, *arguments, channel, key=key, resources=resources, priority=priority, pure=False)
                future.add_done_callback(lambda _, number=number: happened.put(number))
                futures.append(future)
            waiting = len(futures)
            while waiting:
                if stop():
                    raise CancelledError
                try:
                    event = happened.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                if isinstance(event, Progress):
                    progress(event)
                    continue
                waiting -= 1
                yield event, _result_of(futures[event], names[event])
        finally:
            for future in futures:
                future.release()
            if client.status == "running":
                client.unsubscribe_topic(topic)


def _result_of(future: Future, name: str) -> Any:
    try:
        return future.result()
    except KilledWorker as error:
        raise PlatformError(
            "the worker processes that ran it died", where=name, advice="See the workers' log; it is tried again next time."
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise PlatformError("the Dask cluster went away while it ran", where=name, advice="It is tried again next time.") from error


@dataclass
class _Shared:
    client: Client
    users: int = 0


_shared: dict[str, _Shared] = {}
_shared_lock = threading.Lock()


@contextmanager
def _connection(address: str) -> Iterator[Client]:
    """This process's connection to a scheduler: made by the first who needs it, closed by the last."""
    with _shared_lock:
        shared = _shared.get(address)
        if shared is None or shared.client.status not in ("running", "connecting"):
            shared = _shared[address] = _Shared(_client(address))
        shared.users += 1
    try:
        yield shared.client
    finally:
        with _shared_lock:
            shared.users -= 1
            last = not shared.users
            if last and _shared.get(address) is shared:
                del _shared[address]
        if last:
            shared.client.close()


def _client(address: str) -> Client:
    try:
        return Client(address, timeout=START_TIMEOUT, set_as_default=False)
    except OSError as error:
        raise PlatformError("no Dask scheduler answers", where=address, advice="Start one, or correct SENSORIUM_DASK_ADDRESS.") from error
