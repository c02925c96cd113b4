"""The cells of one block of a binned movie: greedy search, then all footprints fitted together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from sensorium_pipeline.imaging.cell_kernels import event_energy, footprint_of, remove_neuropil, smooth, step_noise, subtract, trace_of

Float32 = NDArray[np.float32]

EVENT = 2.0  # what rises so many standard deviations above the noise counts as an event
# Mean and variance of z^2 where a standard normal variable z is above EVENT, and 0 elsewhere.
EVENT_MEAN, EVENT_VARIANCE = 0.1307, 0.807
# Squares have a longer tail than their standard deviation tells: so much energy (in variances of the noise) a few bins gather by chance.
LUCK = 40.0
GROWTHS = 4  # times that a footprint and its trace are taken from each other
ROUNDS = 5  # of alternating regression
MOST_CELLS = 1000  # in a block
REACH = 16  # px from the seed that a footprint can extend to
UNION = 0.75  # part of a mask that others cover, from which it is their union
CERTAIN = 7.0  # footprints that stand out less, over the error of a pixel, are smoothed by a px or nearly
FLOOR = 0.1  # part of its maximum below which a footprint ends


class CellParameters(BaseModel):
    """Parameters of the segmentation.

    Attributes:
        bin_duration: s of the recording in one frame of the binned movie.
        high_pass: s, slower changes are no sign of a cell.
        scales: px, standard deviations of the Gaussians that look for cells.
        neuropil_scale: px, standard deviation of the Gaussian that tells what is neuropil.
        threshold: from which a cell is sought: energy of the events at a place, in standard deviations above what noise alone gives.
        mask: part of its maximum from which a footprint's pixels count as its mask.
        smallest_area: px of the mask.
        largest_area: px of the mask.
        least_compactness: area of the mask over that of the disc with the same spread; 1 for a disc.
        least_snr: of a footprint's trace in the binned movie, the square root of its energy beyond that of the noise, over the noise.
        least_skewness: of the signal: cells fire in bouts, neuropil rises and falls alike.
        roundness: compactness from which a cell is believed whatever its skewness.
        same_overlap: share of the smaller mask that two footprints of one cell have in common.
        same_correlation: of their traces.
        fragment_snr: part of a neighbour's signal-to-noise below which a footprint may be what that neighbour left over.
        fragment_correlation: of their traces, from which it is.
    """

    model_config = ConfigDict(frozen=True)

    bin_duration: float = 0.8
    high_pass: float = 60.0
    scales: tuple[float, ...] = (1.0, 1.7, 3.0)
    neuropil_scale: float = 14.0
    threshold: float = 5.0
    mask: float = 0.2
    smallest_area: int = 10
    largest_area: int = 700
    least_compactness: float = 0.48
    least_snr: float = 10.0
    least_skewness: float = 0.5
    roundness: float = 0.88
    same_overlap: float = 0.5
    same_correlation: float = 0.8
    fragment_snr: float = 0.35
    fragment_correlation: float = 0.45


@dataclass(frozen=True)
class BlockCell:
    """A footprint: pixels in the coordinates of the plane, in reading order, weights > 0, its signal-to-noise, and its binned trace."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: Float32
    snr: float
    trace: Float32

    @property
    def centroid(self) -> tuple[float, float]:
        """Centre of weight, y and x in pixels."""
        total = float(self.weights.sum())
        return float(self.rows @ self.weights) / total, float(self.columns @ self.weights) / total

    @property
    def skewness(self) -> float:
        """Third standardised moment of the signal; noise, which has none, is left out of the variance."""
        centred = self.trace.astype(np.float64) - float(self.trace.mean(dtype=np.float64))
        variance = float(np.mean(centred**2))
        signal = variance * self.snr**2 / (self.snr**2 + len(centred))
        return float(np.mean(centred**3)) / max(signal, 1e-12) ** 1.5

    def mask(self, part: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the pixels above a part of the maximum."""
        inside = self.weights > part * self.weights.max()
        return self.rows[inside], self.columns[inside]


class _Cell:
    """A footprint in a window of the block and its trace; the movie's share of the cell is their product."""

    def __init__(self, window: tuple[slice, slice], footprint: Float32, trace: Float32) -> None:
        self.window, self.footprint, self.trace = window, footprint, trace

    @property
    def energy(self) -> float:
        return float(np.sum(self.footprint**2) * np.sum(self.trace**2))


def find_cells(
    stack: Float32, rate: float, inside: NDArray[np.bool_], parameters: CellParameters, origin: tuple[int, int]
) -> list[BlockCell]:
    """Cells of a block.

    Args:
        stack: (y, x, bins), changed in place.
        rate: bins a second.
        inside: (y, x) pixels that footprints may cover.
        parameters: see there.
        origin: y, x of the block's first pixel in the plane.
    """
    noise = prepare(stack, rate, parameters)
    remove_neuropil(stack, smooth(stack, parameters.neuropil_scale))
    stack[~inside] = 0
    cells = _search(stack, parameters)
    cells = _merge(cells, parameters)
    _refine(stack, cells, rounds=2)
    rest = _without_unions(stack, cells, parameters)
    _refine(stack, rest, rounds=ROUNDS)
    result = []
    for cell in rest:
        footprint = _connected(_quiet(cell), FLOOR)
        rows, columns = np.nonzero(footprint)
        if len(rows) == 0:
            continue
        snr = float(np.sqrt(max(cell.energy - len(cell.trace), 0.0)))
        rows, columns = rows + cell.window[0].start, columns + cell.window[1].start
        # Back from units of the noise to those of the movie.
        weights = footprint[footprint > 0] * noise[rows, columns]
        result.append(BlockCell(rows + origin[0], columns + origin[1], weights, snr, cell.trace))
    return result


def prepare(stack: Float32, rate: float, parameters: CellParameters) -> Float32:
    """High-pass a stack (y, x, bins) in time and divide it by its noise, in place; returns the noise (y, x)."""
    bins = stack.shape[2]
    stack -= stack.mean(2, keepdims=True)
    length = round(parameters.high_pass * rate)
    if length < bins:
        stack -= ndimage.uniform_filter1d(stack, length, axis=2, mode="nearest")
    noise = step_noise(stack)
    usual = float(np.median(noise[noise > 0])) if (noise > 0).any() else 1.0
    # A pixel that hardly varies (beyond the edge of the field) must not become loud.
    noise = np.maximum(noise, 0.3 * usual)
    stack /= noise[:, :, None]
    return noise


def _events(stack: Float32, gain: Float32) -> Float32:
    """Energy of events at every pixel of a smoothed stack whose noise is `gain` (y, x): standard deviations above noise alone."""
    energy = event_energy(stack, EVENT * gain) / gain**2
    bins = stack.shape[2]
    return ((energy - bins * EVENT_MEAN - LUCK) / np.sqrt(bins * EVENT_VARIANCE)).astype(np.float32)


def _gain(smoothed: Float32) -> Float32:
    """Standard deviation of the noise of a smoothed stack (y, x): medians along lines, since most of a line shows no cell."""
    noise = step_noise(smoothed)
    # Larger towards the edges of the field, where a filter sees fewer pixels and motion correction repeats some.
    return np.maximum(np.maximum(np.median(noise, axis=1)[:, None], np.median(noise, axis=0)[None]), 1e-6).astype(np.float32)


def _search(stack: Float32, parameters: CellParameters) -> list[_Cell]:
    """Footprints and traces found one after another, the strongest first; `stack` becomes what they leave."""
    height, width, _ = stack.shape
    gains, maps = [], []
    for scale in parameters.scales:
        smoothed = smooth(stack, scale)
        gains.append(_gain(smoothed))
        maps.append(_events(smoothed, gains[-1]))
    score = np.stack(maps)
    cells: list[_Cell] = []
    while len(cells) < MOST_CELLS:
        index, y, x = (int(place) for place in np.unravel_index(int(np.argmax(score)), score.shape))
        if score[index, y, x] < parameters.threshold:
            break
        window = (slice(max(y - REACH, 0), min(y + REACH + 1, height)), slice(max(x - REACH, 0), min(x + REACH + 1, width)))
        local = stack[window]
        seed = (y - window[0].start, x - window[1].start)
        cell = _grow(local, seed, parameters.scales[index], window, parameters.mask)
        if cell is None:
            score[:, y, x] = 0
            continue
        cells.append(cell)
        box = _box(cell.footprint)
        subtract(stack[window], cell.footprint, cell.trace)
        _update(score, stack, window, box, gains, parameters.scales)
        # Whatever the subtraction left there, the same place is not asked twice.
        score[:, y, x] = 0
    return cells


def _update(
    score: Float32, stack: Float32, window: tuple[slice, slice], box: tuple[slice, slice], gains: list[Float32], scales: tuple[float, ...]
) -> None:
    """Recompute the scores that a change within `box` of `window` can have moved."""
    height, width, _ = stack.shape
    for index, scale in enumerate(scales):
        reach = int(3 * scale + 0.5)
        inner, outer = [], []
        for side, part, length in zip(window, box, (height, width), strict=True):
            first, last = max(side.start + part.start - reach, 0), min(side.start + part.stop + reach, length)
            start = max(first - reach, 0)
            outer.append(slice(start, min(last + reach, length)))
            inner.append(slice(first - start, last - start))
        place = tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))
        fresh = _events(smooth(stack[outer[0], outer[1]], scale)[inner[0], inner[1]], gains[index][place])
        # Places that were given up stay given up.
        score[index, place[0], place[1]] = np.where(score[index, place[0], place[1]] > 0, fresh, 0)


def _grow(local: Float32, seed: tuple[int, int], scale: float, window: tuple[slice, slice], part: float) -> _Cell | None:
    """A footprint and its trace from a seed on, within a window (y, x, bins); None where they fade away."""
    rows, columns = np.mgrid[: local.shape[0], : local.shape[1]]
    footprint = np.exp(-((rows - seed[0]) ** 2 + (columns - seed[1]) ** 2) / (2 * scale**2)).astype(np.float32)
    for _ in range(GROWTHS):
        trace = trace_of(local, footprint)
        gain = 1 / np.sqrt(np.sum(footprint**2))
        events = np.where(trace > EVENT * gain, trace, 0).astype(np.float32)
        energy = float(events @ events)
        if energy <= 0:
            return None
        fitted = footprint_of(local, events)
        # Pixels must stand out of the noise of the regression.
        fitted[fitted < 3 / np.sqrt(energy)] = 0
        footprint = _connected(fitted, part, seed)
        if not footprint.any():
            return None
    return _Cell(window, footprint, trace_of(local, footprint))


def _connected(footprint: Float32, part: float, seed: tuple[int, int] | None = None) -> Float32:
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
    pieces, _ = ndimage.label(footprint > part * footprint[peak])
    return np.where(pieces == pieces[peak], footprint, 0).astype(np.float32)


def _quiet(cell: _Cell) -> Float32:
    """The footprint, smoothed where its pixels are uncertain: each was regressed with an error of 1 over the norm of the trace."""
    footprint = cell.footprint
    certainty = float(footprint.max(initial=0.0) * np.linalg.norm(cell.trace))
    scale = float(np.clip(CERTAIN / max(certainty, 1e-6), 0.0, 1.0))
    if scale < 0.3:
        return footprint
    return np.asarray(ndimage.gaussian_filter(np.pad(footprint, 2), scale)[2:-2, 2:-2] * (footprint > 0), np.float32)


def _box(footprint: Float32) -> tuple[slice, slice]:
    """The smallest rectangle around a footprint."""
    rows, columns = np.flatnonzero(footprint.any(1)), np.flatnonzero(footprint.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _place(cell: _Cell, window: tuple[slice, slice]) -> Float32:
    """The footprint of a cell as seen in another window."""
    height, width = (int(max(a.stop, b.stop)) for a, b in zip(window, cell.window, strict=True))
    whole = np.zeros((height, width), np.float32)
    whole[cell.window] = cell.footprint
    return whole[window]


def _merge(cells: list[_Cell], parameters: CellParameters) -> list[_Cell]:
    """Pieces of one cell joined: footprints that overlap or touch, with traces alike."""
    merged: list[_Cell] = []
    for cell in cells:
        mask = ndimage.binary_dilation(cell.footprint > 0)
        for other in merged:
            if not _meet(cell.window, other.window):
                continue
            there = _place(other, cell.window)
            shared = np.count_nonzero(mask & (there > 0))
            smaller = min(np.count_nonzero(cell.footprint), np.count_nonzero(other.footprint))
            if shared <= parameters.same_overlap * smaller:
                continue
            if np.corrcoef(cell.trace, other.trace)[0, 1] > parameters.same_correlation:
                joined = _place(cell, other.window) * np.sqrt(np.sum(cell.trace**2) / np.sum(other.trace**2))
                other.footprint = (other.footprint + joined).astype(np.float32)
                break
        else:
            merged.append(cell)
    return merged


def _without_unions(stack: Float32, cells: list[_Cell], parameters: CellParameters) -> list[_Cell]:
    """Cells less those whose mask two or more others cover between them: neighbours that were first taken for one cell."""
    masks = [cell.footprint > parameters.mask * cell.footprint.max(initial=0.0) for cell in cells]
    rest = list(cells)
    for cell, mask in zip(cells, masks, strict=True):
        covered, parts = np.zeros_like(mask), 0
        for other, its in zip(cells, masks, strict=True):
            if other is cell or other not in rest or not _meet(cell.window, other.window) or its.sum() > mask.sum():
                continue
            shared = mask & (_place(other, cell.window) > parameters.mask * other.footprint.max())
            if shared.sum() > 0.5 * its.sum():
                covered |= shared
                parts += 1
        if parts >= 2 and covered.sum() > UNION * mask.sum():
            rest.remove(cell)
            subtract(stack[cell.window], -cell.footprint, cell.trace)
    return rest


def _meet(first: tuple[slice, slice], second: tuple[slice, slice]) -> bool:
    """Whether two windows overlap."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def _refine(stack: Float32, cells: list[_Cell], rounds: int) -> None:
    """Alternate between footprints and traces of all cells of a block; `stack` holds what they leave unexplained."""
    # Merged footprints were changed: what they explain is put back on the same footing first.
    supports = []
    for cell in cells:
        support = ndimage.binary_dilation(cell.footprint > 0, iterations=2)
        box = _box(support.astype(np.float32))
        cell.window = tuple(slice(w.start + b.start, w.start + b.stop) for w, b in zip(cell.window, box, strict=True))  # type: ignore[assignment]
        cell.footprint = np.ascontiguousarray(cell.footprint[box])
        supports.append(np.ascontiguousarray(support[box]))
    for _ in range(rounds):
        for cell, support in zip(cells, supports, strict=True):
            if not cell.trace.any() or not cell.footprint.any():
                continue
            local = stack[cell.window]
            fitted = np.maximum(footprint_of(local, cell.trace) + cell.footprint, 0) * support
            if not fitted.any():
                continue
            # The trace is fitted to what the new footprint leaves.
            subtract(local, fitted - cell.footprint, cell.trace)
            change = trace_of(local, fitted)
            subtract(local, fitted, change)
            cell.footprint, cell.trace = fitted.astype(np.float32), cell.trace + change
