"""A footprint that grows in a window of a block, with its trace."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.cell_kernels import piece_of

Float32 = NDArray[np.float32]
Window = tuple[slice, slice]


class GrownCell:
    """A footprint in a window of the block and its trace; the movie's share of the cell is their product."""

    def __init__(self, window: Window, footprint: Float32, trace: Float32) -> None:
        self.window, self.footprint, self.trace = window, footprint, trace

    @property
    def corner(self) -> tuple[int, int]:
        """First row and column of the window."""
        return self.window[0].start, self.window[1].start

    def mask(self, part: float) -> NDArray[np.bool_]:
        """Where in its window the footprint is above a part of its maximum."""
        return self.footprint > part * self.footprint.max(initial=0.0)

    def centre(self, mask: NDArray[np.bool_]) -> tuple[float, float]:
        """Centre of weight of a part of the footprint, y and x in the block."""
        rows, columns = np.nonzero(mask)
        weights = self.footprint[mask]
        return self.corner[0] + float(np.average(rows, weights=weights)), self.corner[1] + float(np.average(columns, weights=weights))

    @property
    def energy(self) -> float:
        """Sum of the squares of the movie's share of the cell, in units of the noise."""
        return float(np.sum(self.footprint**2) * np.sum(self.trace**2))

    @property
    def snr(self) -> float:
        """Square root of the energy beyond that of the noise, over the noise."""
        return float(np.sqrt(max(self.energy - len(self.trace), 0.0)))

    @property
    def purity(self) -> float:
        """Correlation of the trace with what it would be without noise."""
        return self.snr / float(np.sqrt(self.snr**2 + len(self.trace)))


def connected_piece(footprint: Float32, part: float, seed: tuple[int, int] | None = None) -> Float32:
    """The piece of a footprint above a part of its maximum that holds its maximum (the one near the seed, where there is a seed)."""
    if not (footprint > 0).any():
        return np.zeros_like(footprint)
    peak = np.unravel_index(int(np.argmax(footprint)), footprint.shape)
    if seed is not None:
        near = (slice(max(seed[0] - 3, 0), seed[0] + 4), slice(max(seed[1] - 3, 0), seed[1] + 4))
        best = np.unravel_index(int(np.argmax(footprint[near])), footprint[near].shape)
        peak = (best[0] + near[0].start, best[1] + near[1].start)
    if footprint[peak] <= 0:
        return np.zeros_like(footprint)
    return np.asarray(piece_of(footprint, np.float32(part * footprint[peak]), *peak), np.float32)


def smallest_box(footprint: NDArray[Any]) -> Window:
    """The smallest rectangle around a footprint."""
    rows, columns = np.flatnonzero(footprint.any(1)), np.flatnonzero(footprint.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def footprint_in(cell: GrownCell, window: Window) -> Float32:
    """The footprint of a cell as seen in another window."""
    result = np.zeros([side.stop - side.start for side in window], np.float32)
    shared = [slice(max(a.start, b.start), max(min(a.stop, b.stop), a.start, b.start)) for a, b in zip(window, cell.window, strict=True)]
    there, here = (
        tuple(slice(part.start - side.start, part.stop - side.start) for part, side in zip(shared, sides, strict=True))
        for sides in (window, cell.window)
    )
    result[there] = cell.footprint[here]
    return result


def smallest_window(first: Window, second: Window) -> Window:
    """The smallest window around two."""
    rows, columns = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
    return rows, columns


def windows_meet(first: Window, second: Window) -> bool:
    """Whether two windows overlap."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))
