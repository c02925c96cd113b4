"""The digest of a movie's files, made while the libraries that work on the movie are still being loaded."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from errno import EINVAL
from pathlib import Path
from stat import S_ISREG
from threading import Event, Thread
from types import TracebackType
from typing import Self

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress, ProgressCallback

# After each piece the thread waits for the interpreter, which loads libraries meanwhile: few large pieces are done half a second earlier.
READ_BYTES = 64 * 2**20
REPORT_SECONDS = 0.1


class MovieDigest:
    """sha256 over the file or the files of the folder, and the name of the dataset; the thread that reads them ends with the block.

    Args:
        movie: file or folder.
        dataset: which movie, in a file or folder with several.
    """

    def __init__(self, movie: Path, dataset: str | None) -> None:
        self._movie, self._dataset = movie, dataset
        self._state = hashlib.sha256()
        self._total, self._done = 0, 0
        self._seen: dict[Path, tuple[int, int]] = {}
        self._error: OSError | None = None
        self._unwanted = Event()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        self._begin(self._own_files)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._unwanted.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self, progress: ProgressCallback, linked: Sequence[tuple[Path, str]] = ()) -> str:
        """The digest, 64 hexadecimal digits.

        Args:
            progress: told bytes read.
            linked: other files that the movie takes frames from, and the dataset in each.

        Raises:
            InputError: a file cannot be read, or is still being written.
        """
        self._follow(progress)
        if linked:
            self._begin(lambda: ([name for _, name in linked], [file for file, _ in linked]))
            self._follow(progress)
        self.check_unchanged()
        progress(Progress("check the movie", self._total, self._total))
        return self._state.hexdigest()

    def check_unchanged(self) -> None:
        """Raise `InputError` where a file is not any more as it was when the block was entered."""
        for file, (size, changed) in self._seen.items():
            status = file.stat() if file.is_file() else None
            if status is None or (status.st_size, status.st_mtime_ns) != (size, changed):
                now = "is gone" if status is None else f"grew from {size} to {status.st_size} bytes" if status.st_size > size else "changed"
                advice = "Wait until the recording, or the copy of it, has ended; then repeat the command."
                raise InputError(f"{now} while it was worked on", where=file, advice=advice)

    def _own_files(self) -> tuple[object, Sequence[Path]]:
        movie, files = self._movie, [self._movie]
        if movie.is_dir():
            from sensorium_pipeline.recordings.movie import movie_files  # loads what a single file need not wait for

            files = movie_files(movie)
        return [self._dataset or "", [file.relative_to(movie).as_posix() for file in files]], files

    def _begin(self, find: Callable[[], tuple[object, Sequence[Path]]]) -> None:
        """Note how large and old the files are, before anything else looks at them; then begin to read them."""
        try:
            named, files = find()
            for file in files:
                status = file.stat()
                if not S_ISREG(status.st_mode):  # a pipe would be waited for
                    raise OSError(EINVAL, os.strerror(EINVAL), str(file))
                self._seen[file] = (status.st_size, status.st_mtime_ns)
                self._total += status.st_size
        except OSError as error:
            self._error = error
            return
        self._state.update(json.dumps(named).encode())
        self._thread = Thread(target=self._read, args=(files,), daemon=True)
        self._thread.start()

    def _read(self, files: Sequence[Path]) -> None:
        try:
            room = memoryview(bytearray(READ_BYTES))
            for file in files:
                with file.open("rb", buffering=0) as stream:
                    while (count := stream.readinto(room)) and not self._unwanted.is_set():
                        self._state.update(room[:count])
                        self._done += count
        except OSError as error:
            self._error = error

    def _follow(self, progress: ProgressCallback) -> None:
        while self._thread is not None and self._thread.is_alive():
            progress(Progress("check the movie", self._done, max(self._total, 1)))
            self._thread.join(REPORT_SECONDS)
        if self._error is not None:
            problem = f"cannot be read ({self._error.strerror})"
            raise InputError(problem, where=self._error.filename or self._movie, advice="Copy the movie again.") from self._error
