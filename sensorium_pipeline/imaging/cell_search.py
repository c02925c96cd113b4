"""Greedy search for cells in a block of a binned movie: where the smoothed movie often rises far above its noise, a cell is grown."""

import numpy as np
import scipy.special
from numpy.typing import NDArray
from scipy import ndimage

from sensorium_pipeline.imaging.block_memory import BlockMemory
from sensorium_pipeline.imaging.cell_kernels import (
    add_turned,
    event_energy,
    footprint_of,
    smooth,
    step_noise,
    subtract,
    take_from_smoothed,
    trace_of,
)
from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.grown_cell import GrownCell, Window, connected_piece, smallest_box

Float32 = NDArray[np.float32]

EVENT = 2.0  # what rises so many standard deviations above the noise counts as an event
OVERSAMPLED = 4.0  # places tried for each that is independent of the others
DRAWS = 128  # sums of unrelated pixels that tell what noise alone gives
GROWTHS = 4  # times that a footprint and its trace are taken from each other
SMOOTHING = 0.35  # of a growing footprint, in its own standard deviations: widens it by 6 %, and faint pixels of large cells stand out
STANDING_OUT = 3.0  # standard errors that a pixel of a footprint exceeds
ENDS = 2  # px of faint ends that are subtracted with a footprint, or those of a bright cell would be found again
MOST_CELLS = 1000  # in a block


def scales_of(largest: float) -> tuple[float, ...]:
    """Standard deviations of the Gaussians that look for cells up to a diameter, px: each 1.7 times the one before."""
    scales = [1.0]
    while scales[-1] * 1.7 <= largest / 4.5:
        scales.append(scales[-1] * 1.7)
    return tuple(scales)


def stacks_of(largest: float) -> float:
    """What a search for cells up to a diameter keeps, in sizes of the stack that it searches, that stack included."""
    return 1 + sum(1 / _stride(scale) ** 2 for scale in scales_of(largest))


def _stride(scale: float) -> int:
    """Every how many rows and columns the stack is kept once it is smoothed."""
    return max(int(scale / 1.4), 1)


class CellSearch:
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
        self.strides = [_stride(scale) for scale in self.scales]
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

    def run(self) -> list[GrownCell]:
        """Cells in the order in which they were found."""
        cells: list[GrownCell] = []
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

    def _take(self, index: int, cell: GrownCell) -> Window:
        """Take a cell from the smoothed stack of one scale; returns where that changed."""
        kernel, stride = self.kernels[index], self.strides[index]
        reach, box = len(kernel) // 2, smallest_box(cell.footprint)
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


def _grow(stack: Float32, seed: tuple[int, int], scale: float, reach: int, part: float) -> GrownCell | None:
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
        kernel = _gaussian(SMOOTHING * scale)
        smoothed = fitted
        for axis in range(2):
            smoothed = ndimage.convolve1d(smoothed, kernel, axis=axis, mode="constant")
        # The error of a regressed pixel is 1 over the norm of the events, less once it is smoothed.
        smoothed[smoothed < STANDING_OUT * np.sum(kernel**2) / np.sqrt(energy)] = 0
        piece = connected_piece(smoothed, part, seed) > 0
        footprint = np.where(piece, np.maximum(fitted, 0), 0)
        if not footprint.any():
            return None
        # That of the Gaussian that reaches down to the given part of its maximum within the area.
        scale = float(np.sqrt(np.count_nonzero(piece) / (2 * np.pi * np.log(1 / part))))
    trace = trace_of(stack, footprint, top, left)
    wide = ndimage.binary_dilation(piece, iterations=ENDS) & (smoothed > 0)
    return GrownCell((window[0], window[1]), np.where(wide, np.maximum(fitted, 0), 0), trace)
