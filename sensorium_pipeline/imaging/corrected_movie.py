"""A motion-corrected movie on scratch disk: raw pixels in one file, written front to back, read by ranges."""

import errno
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError, PlatformError

Frames = NDArray[Any]


@dataclass(frozen=True)
class CorrectedMovie:
    """Frames (n, y, x) without motion, little-endian and without a header, at `path`; implements `Movie`."""

    path: Path
    frames: int
    height: int
    width: int
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 as a new array (stop - start, y, x) of the movie's type.

        Raises:
            InputError: the range lies outside the movie, or the file is shorter than the movie.
        """
        if not 0 <= start <= stop <= self.frames:
            raise InputError(
                f"no frames {start} to {stop} in a movie of {self.frames}", where=self.path, advice="Ask for frames that exist."
            )
        pixels = self.height * self.width
        try:
            block = np.fromfile(self.path, self.dtype, (stop - start) * pixels, offset=start * pixels * self.dtype.itemsize)
        except OSError as error:
            raise InputError(
                f"the corrected movie cannot be read ({error})", where=self.path, advice="Correct the motion again."
            ) from error
        if block.size != (stop - start) * pixels:
            raise InputError("the corrected movie is shorter than it should be", where=self.path, advice="Correct the motion again.")
        return block.reshape(stop - start, self.height, self.width)


class CorrectedMovieWriter:
    """Writes a corrected movie beside its final place and puts it there when all frames have come; otherwise nothing is left.

    Writing happens on a thread of its own, while the caller fills the other one of two buffers.

    Args:
        path: where the movie will be.
        frames, height, width: its shape.
        dtype: type of its pixels.
    """

    def __init__(self, path: Path, frames: int, height: int, width: int, dtype: np.dtype[Any]) -> None:
        self.movie = CorrectedMovie(path, frames, height, width, dtype)
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._file: IO[bytes] | None = None
        self._written = 0
        self._buffers = [np.empty((0, height, width), dtype)] * 2
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        try:
            self.movie.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb", buffering=0)
        except OSError as error:
            raise self._error(error) from error
        return self

    def buffer(self, frames: int) -> Frames:
        """An array (frames, y, x) to fill and hand to `write`; its content is free to change again after the next `write`."""
        spare = self._buffers.pop(0)
        if len(spare) < frames:
            spare = np.empty((frames, *spare.shape[1:]), spare.dtype)
        self._buffers.append(spare)
        return spare[:frames]

    def write(self, frames: Frames) -> None:
        """Append the frames in a `buffer`; returns when the frames before them are written.

        Raises:
            PlatformError: the disk is full or the file cannot be written.
        """
        self._wait()
        self._pending = self._thread.submit(self._write, frames)
        self._written += len(frames)

    def _write(self, frames: Frames) -> None:
        rest = memoryview(frames.data).cast("B")
        while rest and self._file is not None:
            rest = rest[self._file.write(rest) :]

    def _wait(self) -> None:
        if self._pending is not None:
            try:
                self._pending.result()
            except OSError as error:
                raise self._error(error) from error
            finally:
                self._pending = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._thread.shutdown()
            if self._file is not None:
                self._file.close()
            if kind is None and self._written == self.movie.frames:
                self._partial.replace(self.movie.path)
            self._partial.unlink(missing_ok=True)

    def _error(self, error: OSError) -> PlatformError:
        needed = self.movie.frames * self.movie.height * self.movie.width * self.movie.dtype.itemsize / 1e9
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return PlatformError("the scratch disk is full", where=self.movie.path, advice=f"The corrected movie needs {needed:.2f} GB.")
        return PlatformError(f"the corrected movie cannot be written ({error})", where=self.movie.path, advice="Check the scratch folder.")
