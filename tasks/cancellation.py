"""Cancelling a flow run in Prefect: whoever works for it learns of it within seconds and ends by himself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext, TaskRunContext

POLL_SECONDS = 2.0
_stopped: dict[UUID, threading.Event] = {}


@contextmanager
def cancellable() -> Iterator[threading.Event]:
    """Within the block, tasks of this flow run can ask `cancelled`; the event is set when it is, or the block is left by an error.

    Prefect ends the process of a deployed run, and tells a run in a process of its own nothing; so this asks for its state.
    """
    context = FlowRunContext.get()
    stopped, ended = threading.Event(), threading.Event()
    if context is None or context.flow_run is None:
        yield stopped
        return
    run = context.flow_run.id
    _stopped[run] = stopped
    watcher = threading.Thread(target=_watch, args=(run, stopped, ended), daemon=True)
    watcher.start()
    try:
        yield stopped
    except BaseException:
        # A signal to end, most of all: threads of tasks would keep the process alive while they wait for the cluster.
        stopped.set()
        raise
    finally:
        ended.set()
        watcher.join()
        if not stopped.is_set():  # else tasks have yet to ask
            del _stopped[run]


def cancelled() -> bool:
    """Whether the flow run of the current task was cancelled."""
    context = TaskRunContext.get()
    run = context.task_run.flow_run_id if context is not None else None
    event = _stopped.get(run) if run is not None else None
    return event is not None and event.is_set()


def _watch(run: UUID, stopped: threading.Event, ended: threading.Event) -> None:
    with get_client(sync_client=True) as client:
        while not ended.wait(POLL_SECONDS) and not stopped.is_set():
            if _is_cancelled(client, run):
                stopped.set()


def _is_cancelled(client: SyncPrefectClient, run: UUID) -> bool:
    try:
        state = client.read_flow_run(run).state
    except Exception:  # the server may be restarting; asked again in a second
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())
