"""Images that sum a movie up: mean, maximum, how sharp the mean is, and how often each pixel was seen."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.alignment import share
from sensorium_pipeline.imaging.frame_sums import accumulate

Float32 = NDArray[np.float32]
Frames = NDArray[Any]


class SummaryImages:
    """Mean and maximum of frames that come chunk by chunk; `total` (y, x) and `count` are those so far."""

    def __init__(self, shape: tuple[int, int], pool: ThreadPoolExecutor, threads: int) -> None:
        self.total, self.count = np.zeros(shape), 0
        self._largest = np.full(shape, -np.inf, np.float32)
        self._pool, self._threads = pool, threads

    def add(self, frames: Frames, use: NDArray[np.bool_]) -> None:
        """Take in those of the frames (n, y, x) that have `use`."""
        share(
            lambda span: accumulate(frames, use, span.start, span.stop, self.total, self._largest),
            self.total.shape[0],
            self._pool,
            self._threads,
        )
        self.count += int(use.sum())

    def images(self) -> tuple[Float32, Float32]:
        """Mean and maximum (y, x); NaN when there was no frame."""
        if self.count == 0:
            nothing = np.full(self.total.shape, np.nan, np.float32)
            return nothing, nothing.copy()
        return (self.total / self.count).astype(np.float32), self._largest


def crispness(image: NDArray[np.floating]) -> float:
    """Frobenius norm of the gradient of an image (y, x): larger where the mean of a movie is sharper."""
    slope_y, slope_x = np.gradient(image.astype(np.float64))
    return float(np.sqrt((slope_y**2 + slope_x**2).sum()))


def coverage(shifts: Float32, height: int, width: int, raster_phase: float) -> Float32:
    """Fraction of frames, moved by `shifts` (n, 2), that cover each pixel (y, x), were its line moved by `raster_phase` pixels or not."""
    covered = np.zeros((height, width), np.float32)
    left, right = min(raster_phase, 0.0), max(raster_phase, 0.0)
    for start in range(0, len(shifts), 4096):
        part = shifts[start : start + 4096]
        y, x = np.arange(height) + part[:, :1], np.arange(width) + part[:, 1:]
        rows, columns = (y >= -0.5) & (y <= height - 0.5), (x + left >= -0.5) & (x + right <= width - 0.5)
        covered += rows.astype(np.float32).T @ columns.astype(np.float32)
    return covered / np.float32(max(len(shifts), 1))
