"""What a movie is: frames of one plane over time, read a few at a time.

A movie holds no open file, so it can be pickled to a worker, and each `read` touches only the frames that it returns.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError

Frames = NDArray[Any]

COPY_AGAIN = "The file is damaged or was cut off while it was copied: copy it again."

LARGEST_SIDE = 1 << 16  # pixels
LARGEST_FRAME = 1 << 28  # bytes; a damaged size must not ask for all memory


@runtime_checkable
class Movie(Protocol):
    """Frames of one plane over time, on disk."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def height(self) -> int:
        """Lines of a frame (y)."""
        ...

    @property
    def width(self) -> int:
        """Pixels of a line (x)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel as `read` returns it: any integer or floating-point type, in native byte order."""
        ...

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 as a new array (stop - start, y, x).

        Raises:
            InputError: when the movie has no such frames, or the file does not hold them any more.
        """
        ...


def check_range(movie: Movie, start: int, stop: int, where: object) -> None:
    """Raise `InputError` unless frames start..stop-1 exist."""
    if not 0 <= start <= stop <= movie.frames:
        raise InputError(f"frames {start} to {stop} were asked for, and there are {movie.frames}", where=where)


def checked_shape(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path, name: str) -> tuple[int, int, int]:
    """The shape (frames, y, x) of a movie; `InputError` where it is not one."""
    if len(shape) != 3:
        raise InputError(f"{name} has {len(shape)} dimensions", where=path, advice="A movie has three: frames, y, x.")
    if dtype.kind not in "iuf":
        raise InputError(f"{name} has pixels of type {dtype}", where=path, advice="Give integers or floating-point numbers.")
    if shape[0] == 0:
        raise InputError(f"{name} holds no frames", where=path, advice=COPY_AGAIN)
    if shape[1] == 0 or shape[2] == 0:
        raise InputError(f"{name} has frames of {shape[1]} x {shape[2]} pixels", where=path, advice=COPY_AGAIN)
    if max(shape[1:]) > LARGEST_SIDE or shape[1] * shape[2] * dtype.itemsize > LARGEST_FRAME:
        raise InputError(f"{name} has frames of {shape[1]} x {shape[2]} pixels, which no microscope scans", where=path, advice=COPY_AGAIN)
    return (int(shape[0]), int(shape[1]), int(shape[2]))


def brief(error: Exception) -> str:
    """A library's error in one line."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:160]
