"""Undoing the sinusoidal sweep of a resonant mirror.

A resonant mirror swings as a sine: pixels cut at equal times are narrow in the tissue at the ends of the line and wide in its middle.
With the part f of the half period that the line covers (ScanImage's `fillFractionTemporal`), a pixel edge at u in [-1, 1] of the line's
time lies at sin(pi/2 f u) in the tissue. Here lines are cut anew at equal distances, as wide as the pixel in the middle of the line, so
that no detail is lost there: a line of W pixels becomes one of W sin(a) / a pixels, a = pi/2 f. Each new pixel is the mean of what was
measured between its edges, parts of old pixels counted by their share, so it stays a count of the same unit.

ScanImage does this itself while it scans, unless `SI.hScan2D.uniformSampling` is on. Derived from the motion of the mirror; compared
with a pair of frames before and after the Allen Institute's dewarping (AllenInstitute/ophys_etl_pipelines), which bends the outer parts
of the line by fitted curves.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.recordings.frames import Frames, Movie

_LINES = 1 << 16  # dewarped at once


def dewarped_width(width: int, fill_fraction: float) -> int:
    """Pixels of a dewarped line of `width` pixels."""
    angle = math.pi / 2 * fill_fraction
    return max(1, round(width * math.sin(angle) / angle))


def dewarping_matrix(width: int, fill_fraction: float) -> NDArray[np.float32]:
    """Weights (new pixels, width) that take a line to a dewarped one; every row sums to one.

    Args:
        width: pixels of the line as scanned.
        fill_fraction: part of the mirror's half period that the line covers, above 0 and below 1.

    Raises:
        ValueError: for another fill fraction.
    """
    if not 0 < fill_fraction < 1:
        raise ValueError(f"a line covers a part of the half period, not {fill_fraction}")
    angle = math.pi / 2 * fill_fraction
    place = np.linspace(-math.sin(angle), math.sin(angle), dewarped_width(width, fill_fraction) + 1)
    edges = (np.arcsin(place) / angle + 1) * width / 2
    edges[0], edges[-1] = 0, width
    # How much of each old pixel lies before each edge; the difference of two edges lies between them.
    before = np.clip(edges[:, None] - np.arange(width)[None, :], 0, 1)
    between = np.diff(before, axis=0)
    return (between / between.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class DewarpedMovie:
    """A movie whose lines are dewarped as they are read; integers are rounded to the nearest.

    Attributes:
        movie: as scanned.
        fill_fraction: see `dewarping_matrix`.
    """

    movie: Movie
    fill_fraction: float

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.movie.frames

    @property
    def height(self) -> int:
        """Lines of a frame."""
        return self.movie.height

    @property
    def width(self) -> int:
        """Pixels of a dewarped line."""
        return dewarped_width(self.movie.width, self.fill_fraction)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel, that of the movie."""
        return self.movie.dtype

    @cached_property
    def _weights(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(dewarping_matrix(self.movie.width, self.fill_fraction).T)

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        frames = self.movie.read(start, stop)
        out = np.empty((*frames.shape[:2], self.width), self.dtype)
        lines, dewarped = frames.reshape(-1, frames.shape[2]), out.reshape(-1, out.shape[2])
        for first in range(0, len(lines), _LINES):
            values = lines[first : first + _LINES].astype(np.float32) @ self._weights
            dewarped[first : first + _LINES] = np.rint(values) if self.dtype.kind in "iu" else values
        return out
