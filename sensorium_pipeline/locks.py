"""Locks of this machine: of processes that would do the same work at the same time, the second waits and finds it done."""

import fcntl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

from sensorium_pipeline.progress import never

POLL_SECONDS = 0.2


@contextmanager
def locked(file: Path, waiting: Callable[[], None] | None = None, stop: Callable[[], bool] = never) -> Iterator[None]:
    """Hold a lock for as long as the context lasts; it ends with the process, however that ends.

    Args:
        file: the lock; made, with its folder, where it does not exist.
        waiting: called once where another holds it.
        stop: asked while it waits; True ends the waiting.

    Raises:
        CancelledError: `stop` said so.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting and not told:
                    waiting()
                told = True
                if stop():
                    raise CancelledError from None
                time.sleep(POLL_SECONDS)
            else:
                break
        yield
