"""Folders on scratch disk that outlive the process that made them, so that a run that was killed finds its corrected movie again.

A folder is held by one process at a time, through a lock that the system releases when the process ends, however it ends.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent

FORGOTTEN_AFTER = 7 * 24 * 3600.0
"""Seconds after which the folder of a killed run that nobody took up again is removed."""


@contextmanager
def held_folder(root: Path, name: str, progress: ProgressCallback = silent) -> Iterator[Path]:
    """The folder `root/name`, made where it does not exist, for this process alone; another one that asks for it waits.

    It is removed when the block ends well, and when it ends with an `InputError`, as the same input would end alike. After anything
    else it stays with what is in it. So that forgotten ones do not fill the disk, folders beside it that nobody holds and that were
    not touched for `FORGOTTEN_AFTER` are removed as well; `root` has to be a folder for nothing else, or `name` begin with a dot.

    Raises:
        OSError: `root` cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    handle = _lock(folder, progress)
    try:
        if not name.startswith("."):
            _remove_forgotten(root)
        os.utime(folder)
        try:
            yield folder
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(folder: Path, progress: ProgressCallback) -> int:
    """A handle that holds the folder; it is free again when the handle is closed."""
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # removed by the one that had it, a moment ago
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(Progress("waiting for another run of the same", 0, 1))
                fcntl.flock(handle, fcntl.LOCK_EX)
            # The folder may have been removed, and made again by a third one, while this one waited.
            with suppress(FileNotFoundError):
                if os.stat(folder).st_ino == os.fstat(handle).st_ino:
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _remove_forgotten(root: Path) -> None:
    for folder in root.iterdir():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < FORGOTTEN_AFTER:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
