"""Movies on disk, read a few frames at a time: TIFF, HDF5 and zarr behind one protocol.

A movie holds no open file, so it can be pickled to a worker, and each `read` touches only the frames that it returns.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[Any]


@runtime_checkable
class Movie(Protocol):
    """Frames of one plane over time, on disk.

    Attributes:
        frames: number of frames.
        height: lines of a frame (y).
        width: pixels of a line (x).
        dtype: of the frames as stored (any integer or float type).
    """

    @property
    def frames(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 as a new array (stop - start, y, x); `InputError` when the file does not hold them any more."""
        ...


def open_movie(path: Path, dataset: str | None = None) -> Movie:
    """Open a movie; see the module."""
    raise NotImplementedError
