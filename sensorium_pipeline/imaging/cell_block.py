"""The cells of one block of a binned movie: greedy search, then all footprints fitted together."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.special
from numpy.typing import NDArray
from scipy import ndimage

from sensorium_pipeline.imaging.block_memory import BlockMemory
from sensorium_pipeline.imaging.cell_kernels import (
    add_turned,
    event_energy,
    fit_footprint,
    footprint_of,
    piece_of,
    smooth,
    step_noise,
    subtract,
    take_from_smoothed,
    trace_of,
)
from sensorium_pipeline.imaging.cell_parameters import CellParameters

Float32 = NDArray[np.float32]
Window = tuple[slice, slice]

EVENT = 2.0  # what rises so many standard deviations above the noise counts as an event
OVERSAMPLED = 4.0  # places tried for each that is independent of the others
DRAWS = 128  # sums of unrelated pixels that tell what noise alone gives
GROWTHS = 4  # times that a footprint and its trace are taken from each other
ROUNDS = 5  # of alternating regression
MOST_CELLS = 1000  # in a block
UNION = 0.75  # part of a mask that others cover, from which it is their union
CERTAIN = 7.0  # footprints that stand out less, over the error of a pixel, are smoothed by a px or nearly
SHARPEST = 2.0  # power that a smoothed footprint is raised to at most
RING = (2, 5)  # px from a mask where only what is no cell shows its trace, too
FLOOR = 0.1  # part of its maximum below which a footprint ends


@dataclass(frozen=True)
class BlockCell:
    """A footprint and what it does.

    Attributes:
        rows, columns: (pixels,) in the coordinates of the plane, in reading order.
        weights: (pixels,) > 0.
        snr: square root of the energy of the trace beyond that of the noise, over the noise.
        surround: how strongly the trace shows just outside the footprint, over inside, less the error of that.
        trace: (bins,).
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: Float32
    snr: float
    surround: float
    trace: Float32

    @cached_property
    def centroid(self) -> tuple[float, float]:
        """Centre of weight, y and x in pixels."""
        total = float(self.weights.sum())
        return float(self.rows @ self.weights) / total, float(self.columns @ self.weights) / total

    @property
    def purity(self) -> float:
        """Correlation of the trace with what it would be without noise."""
        return self.snr / float(np.sqrt(self.snr**2 + len(self.trace)))

    @property
    def skewness(self) -> float:
        """Third standardised moment of the signal; noise, which has none, is left out of the variance."""
        centred = self.trace.astype(np.float64) - float(self.trace.mean(dtype=np.float64))
        variance = float(np.mean(centred**2))
        signal = variance * self.purity**2
        return float(np.mean(centred**3)) / max(signal, 1e-12) ** 1.5

    @property
    def skewness_error(self) -> float:
        """Standard error of the skewness for a trace whose bins say nothing about each other."""
        return float(np.sqrt(6 / len(self.trace))) / max(self.purity, 1e-3) ** 3

    def mask(self, part: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the pixels above a part of the maximum."""
        inside = self.weights > part * self.weights.max()
        return self.rows[inside], self.columns[inside]


class _Cell:
    """A footprint in a window of the block and its trace; the movie's share of the cell is their product."""

    def __init__(self, window: Window, footprint: Float32, trace: Float32) -> None:
        self.window, self.footprint, self.trace = window, footprint, trace

    @property
    def corner(self) -> tuple[int, int]:
        return self.window[0].start, self.window[1].start

    @property
    def energy(self) -> float:
        return float(np.sum(self.footprint**2) * np.sum(self.trace**2))

    @property
    def snr(self) -> float:
        return float(np.sqrt(max(self.energy - len(self.trace), 0.0)))

    @property
    def purity(self) -> float:
        """Correlation of the trace with what it would be without noise."""
        return self.snr / float(np.sqrt(self.snr**2 + len(self.trace)))


def scales_of(largest: float) -> tuple[float, ...]:
    """Standard deviations of the Gaussians that look for cells up to a diameter, px: each 1.7 times the one before."""
    scales = [1.0]
    while scales[-1] * 1.7 <= largest / 4.5:
        scales.append(scales[-1] * 1.7)
    return tuple(scales)


def find_cells(
    stack: Float32,
    noise: Float32,
    inside: NDArray[np.bool_],
    parameters: CellParameters,
    *,
    pixel_size: float | None,
    places: float,
    origin: tuple[int, int],
    memory: BlockMemory,
) -> list[BlockCell]:
    """Cells of a block.

    Args:
        stack: (y, x, bins) without slow changes and neuropil, counts, changed in place.
        noise: (y, x) standard deviation of a pixel's noise in a bin.
        inside: (y, x) pixels that footprints may cover.
        parameters: see there.
        pixel_size: um, where known.
        places: part of the plane that the block is responsible for, of which it may use up as much of `false_seeds`.
        origin: y, x of the block's first pixel in the plane.
        memory: room for more stacks.
    """
    usual = float(np.median(noise[noise > 0])) if (noise > 0).any() else 1.0
    # A pixel that hardly varies (beyond the edge of the field) must not become loud.
    noise = np.maximum(noise, 0.3 * usual)
    stack *= np.where(inside, 1 / noise, 0)[:, :, None].astype(np.float32)
    if not stack.any():
        return []
    search = _Search(stack, inside, parameters, pixel_size, places, origin, memory)
    cells = _merge(search.run(), parameters)
    _refine(stack, cells, rounds=2)
    rest = _without_unions(stack, cells, parameters)
    _refine(stack, rest, rounds=ROUNDS)
    result = []
    for cell in rest:
        footprint = _connected(_quiet(stack, cell, parameters.mask), FLOOR)
        rows, columns = np.nonzero(footprint)
        if len(rows) == 0:
            continue
        rows, columns = rows + cell.window[0].start, columns + cell.window[1].start
        # Back from units of the noise to those of the movie.
        weights = footprint[footprint > 0] * noise[rows, columns]
        result.append(
            BlockCell(rows + origin[0], columns + origin[1], weights, cell.snr, _surround(stack, cell, parameters.mask), cell.trace)
        )
    return result


class _Search:
    """Footprints and traces found one after another, the strongest first; the stack becomes what they leave.

    The stack is kept smoothed at every scale too, and what a cell takes from it is taken from those, too.
    """

    def __init__(
        self,
        stack: Float32,
        inside: NDArray[np.bool_],
        parameters: CellParameters,
        pixel_size: float | None,
        places: float,
        origin: tuple[int, int],
        memory: BlockMemory,
    ) -> None:
        self.stack, self.part = stack, parameters.mask
        largest = parameters.diameters(pixel_size)[1]
        self.scales = scales_of(largest)
        self.reach = int(np.clip(0.7 * largest, 8, 24))  # px from the seed that a footprint can extend to
        self.kernels = [_gaussian(scale) for scale in self.scales]
        self.strides = [max(int(scale / 1.4), 1) for scale in self.scales]
        self.smoothed = [_smoothed(stack, kernel, stride, memory) for kernel, stride in zip(self.kernels, self.strides, strict=True)]
        self.noise = [_typical_noise(smoothed) for smoothed in self.smoothed]
        self.energy = [event_energy(smoothed, noise, EVENT) for smoothed, noise in zip(self.smoothed, self.noise, strict=True)]
        generator = np.random.default_rng(origin)
        quiet = self._quiet_pixels(inside)
        self.thresholds = [
            _chance(stack, quiet, kernel, parameters.false_seeds * places / len(self.scales), scale, generator)
            for kernel, scale in zip(self.kernels, self.scales, strict=True)
        ]
        self.open = [np.ones(energy.shape, bool) for energy in self.energy]

    def run(self) -> list[_Cell]:
        cells: list[_Cell] = []
        score = [self._score(index) for index in range(len(self.scales))]
        while len(cells) < MOST_CELLS:
            peaks = [int(np.argmax(values)) for values in score]
            index = int(np.argmax([values.flat[peak] for values, peak in zip(score, peaks, strict=True)]))
            if score[index].flat[peaks[index]] <= 0:
                break
            y, x = (int(place) for place in np.unravel_index(peaks[index], score[index].shape))
            # Whatever a subtraction leaves there, the same place is not asked twice.
            self.open[index][y, x] = False
            score[index][y, x] = 0
            seed = (y * self.strides[index], x * self.strides[index])
            cell = _grow(self.stack, seed, self.scales[index], self.reach, self.part)
            if cell is None:
                continue
            cells.append(cell)
            subtract(self.stack, cell.footprint, cell.trace, *cell.corner)
            for k in range(len(self.scales)):
                place = self._take(k, cell)
                score[k][place] = self._score(k, place)
        return cells

    def _quiet_pixels(self, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The half of the pixels around which least happens, judged at a scale at which no pixel by itself counts for much."""
        index = len(self.scales) // 2
        energy = np.kron(self.energy[index], np.ones((self.strides[index],) * 2, np.float32))[: inside.shape[0], : inside.shape[1]]
        return inside & (energy <= np.median(energy[inside]))

    def _score(self, index: int, place: Window | tuple[()] = ()) -> Float32:
        """Energy of events beyond the threshold; 0 where a place was asked before."""
        return np.where(self.open[index][place], self.energy[index][place] - self.thresholds[index], 0).astype(np.float32)

    def _take(self, index: int, cell: _Cell) -> Window:
        """Take a cell from the smoothed stack of one scale; returns where that changed."""
        kernel, stride = self.kernels[index], self.strides[index]
        reach, box = len(kernel) // 2, _box(cell.footprint)
        first = [w.start + b.start - reach for w, b in zip(cell.window, box, strict=True)]
        blurred = np.pad(cell.footprint[box], reach)
        for axis in range(2):
            blurred = ndimage.convolve1d(blurred, kernel, axis=axis, mode="constant")
        start = [-(-max(f, 0) // stride) for f in first]
        skip = [s * stride - f for s, f in zip(start, first, strict=True)]
        shape = self.energy[index].shape
        blurred = blurred[skip[0] :: stride, skip[1] :: stride][: shape[0] - start[0], : shape[1] - start[1]]
        take_from_smoothed(
            self.smoothed[index],
            np.ascontiguousarray(blurred),
            cell.trace,
            start[0],
            start[1],
            self.noise[index],
            EVENT,
            self.energy[index],
        )
        return slice(start[0], start[0] + blurred.shape[0]), slice(start[1], start[1] + blurred.shape[1])


def _smoothed(stack: Float32, kernel: Float32, stride: int, memory: BlockMemory) -> Float32:
    result = memory.array(-(-stack.shape[0] // stride), -(-stack.shape[1] // stride), stack.shape[2])
    smooth(stack, kernel, stride, result)
    return result


def _gaussian(scale: float) -> Float32:
    reach = int(2.5 * scale + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / scale) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def _typical_noise(smoothed: Float32) -> Float32:
    """Standard deviation of the noise of a smoothed stack (y, x): medians along lines, since most of a line shows no cell.

    It is smaller towards the edges, beyond which there is nothing.
    """
    noise = step_noise(smoothed)
    rows, columns, usual = np.median(noise, axis=1), np.median(noise, axis=0), float(np.median(noise))
    if usual <= 0:
        usual = float(noise.max(initial=0.0)) or 1.0
    return np.maximum(np.multiply.outer(rows, columns) / usual, 0.3 * usual).astype(np.float32)


def _chance(
    stack: Float32, inside: NDArray[np.bool_], kernel: Float32, seeds: float, scale: float, generator: np.random.Generator
) -> float:
    """Energy of events that noise alone exceeds at so many places (`seeds`) of a block.

    The noise is that of the data, whatever its distribution: pixels from all over the block, each turned by a lag of its own, are added
    with the weights of the kernel, so nothing is left that pixels have in common. A gamma distribution with the mean and variance of
    the energies of many such sums (Chi-squared sums are of that kind) tells the rest.
    """
    rows, columns = np.nonzero(inside)
    weights = np.multiply.outer(kernel, kernel).ravel()
    weights = weights[weights > 0.02 * weights.max()]
    bins = stack.shape[2]
    sums = np.zeros((DRAWS, 1, bins), np.float32)
    chosen = generator.integers(0, len(rows), (DRAWS, len(weights)))
    lags = generator.integers(0, bins, (DRAWS, len(weights)))
    add_turned(stack, rows[chosen], columns[chosen], lags, weights, sums[:, 0])
    noise = np.full((DRAWS, 1), np.sqrt(np.mean(step_noise(sums) ** 2)), np.float32)
    energy = event_energy(sums, noise, EVENT).astype(np.float64)
    mean, variance = float(energy.mean()), float(energy.var())
    independent = inside.size / (4 * np.pi * scale**2) * OVERSAMPLED
    part = float(np.clip(seeds / independent, 1e-12, 0.1))
    return float(scipy.special.gammainccinv(mean**2 / variance, part) * variance / mean)


def _grow(stack: Float32, seed: tuple[int, int], scale: float, reach: int, part: float) -> _Cell | None:
    """A footprint and its trace from a seed on, within a window of the stack; None where they fade away."""
    window = tuple(slice(max(at - reach, 0), min(at + reach + 1, length)) for at, length in zip(seed, stack.shape, strict=False))
    (top, left), (height, width) = (side.start for side in window), (side.stop - side.start for side in window)
    seed = (seed[0] - top, seed[1] - left)
    rows, columns = np.ogrid[:height, :width]
    footprint = np.exp(-((rows - seed[0]) ** 2 + (columns - seed[1]) ** 2) / (2 * scale**2)).astype(np.float32)
    footprint[footprint < 0.01] = 0
    for _ in range(GROWTHS):
        trace = trace_of(stack, footprint, top, left)
        gain = 1 / np.sqrt(np.sum(footprint**2))
        events = np.where(trace > EVENT * gain, trace, 0).astype(np.float32)
        energy = float(events @ events)
        if energy <= 0:
            return None
        fitted = footprint_of(stack, events, top, left, height, width)
        # Pixels must stand out of the noise of the regression.
        fitted[fitted < 3 / np.sqrt(energy)] = 0
        footprint = _connected(fitted, part, seed)
        if not footprint.any():
            return None
    return _Cell((window[0], window[1]), footprint, trace_of(stack, footprint, top, left))


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
    return np.asarray(piece_of(footprint, np.float32(part * footprint[peak]), *peak), np.float32)


def _quiet(stack: Float32, cell: _Cell, part: float) -> Float32:
    """The footprint, smoothed where its pixels are uncertain: each was regressed with an error of 1 over the norm of the trace.

    What is smoothed is the regression before what is negative was left out, or noise around the cell would add up. Smoothing by s widens
    a Gaussian of variance v; the power (v + s^2) / v takes that back.
    """
    footprint = cell.footprint
    certainty = float(footprint.max(initial=0.0) * np.linalg.norm(cell.trace))
    scale = float(np.clip(CERTAIN / max(certainty, 1e-6), 0.0, 1.0))
    if scale < 0.3:
        return _connected(footprint, FLOOR)
    fitted = footprint + footprint_of(stack, cell.trace, *cell.corner, *footprint.shape)
    support = ndimage.binary_dilation(footprint > 0)
    smoothed = _connected(ndimage.gaussian_filter(fitted * support, scale, mode="constant") * support, FLOOR)
    peak = float(smoothed.max(initial=0.0))
    if peak <= 0:
        return smoothed
    # The variance of a Gaussian that reaches down to the given part of its maximum within the area.
    variance = np.count_nonzero(smoothed > part * peak) / (2 * np.pi * np.log(1 / part))
    power = min(variance / max(variance - scale**2, 1e-6), SHARPEST)
    return np.asarray(peak * (smoothed / peak) ** power, np.float32)


def _box(footprint: NDArray[Any]) -> Window:
    """The smallest rectangle around a footprint."""
    rows, columns = np.flatnonzero(footprint.any(1)), np.flatnonzero(footprint.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _place(cell: _Cell, window: Window) -> Float32:
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
            if np.corrcoef(cell.trace, other.trace)[0, 1] > parameters.same_correlation * cell.purity * other.purity:
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
            subtract(stack, -cell.footprint, cell.trace, *cell.corner)
    return rest


def _meet(first: Window, second: Window) -> bool:
    """Whether two windows overlap."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def _refine(stack: Float32, cells: list[_Cell], rounds: int) -> None:
    """Alternate between footprints and traces of all cells of a block; `stack` holds what they leave unexplained."""
    supports = []
    for cell in cells:
        support = ndimage.binary_dilation(cell.footprint > 0, iterations=2)
        box = _box(support)
        cell.window = (_within(cell.window[0], box[0]), _within(cell.window[1], box[1]))
        cell.footprint = np.ascontiguousarray(cell.footprint[box])
        supports.append(np.ascontiguousarray(support[box]))
    for _ in range(rounds):
        for cell, support in zip(cells, supports, strict=True):
            if cell.trace.any() and cell.footprint.any():
                fit_footprint(stack, cell.footprint, support, cell.trace, *cell.corner)


def _surround(stack: Float32, cell: _Cell, part: float) -> float:
    """How strongly a cell's trace shows in what all cells leave unexplained around it, over its own footprint, less the error of that.

    A soma ends where its footprint ends; neuropil that was not taken away goes on.
    """
    height, width = stack.shape[:2]
    top, left = (max(side.start - RING[1], 0) for side in cell.window)
    bottom, right = (min(side.stop + RING[1], length) for side, length in zip(cell.window, (height, width), strict=True))
    whole = (slice(top, bottom), slice(left, right))
    footprint = _place(cell, whole)
    mask = footprint > part * footprint.max(initial=0.0)
    distance = ndimage.distance_transform_edt(~mask)
    ring = (distance > RING[0]) & (distance <= RING[1]) & (footprint == 0)
    strength, count = float(np.mean(footprint[mask])) if mask.any() else 0.0, int(np.count_nonzero(ring))
    if strength <= 0 or count == 0:
        return 0.0
    shown = float(footprint_of(stack, cell.trace, top, left, bottom - top, right - left)[ring].mean())
    return (shown - 1 / float(np.sqrt(count) * np.linalg.norm(cell.trace))) / strength


def _within(side: slice, part: slice) -> slice:
    return slice(side.start + part.start, side.start + part.stop)
