"""The cells of one block of a binned movie: greedy search, then all footprints fitted together."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sensorium_pipeline.imaging.block_memory import BlockMemory
from sensorium_pipeline.imaging.cell_kernels import fit_footprint, footprint_of, subtract
from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.cell_search import CellSearch
from sensorium_pipeline.imaging.grown_cell import GrownCell, connected_piece, footprint_in, smallest_box, smallest_window, windows_meet

Float32 = NDArray[np.float32]

ROUNDS = 5  # of alternating regression
UNION = 0.75  # part of a mask that others cover, from which it is their union
LARGER = 1.4  # times as large as one of two neighbours is what may be both
CERTAIN = 7.0  # footprints that stand out less, over the error of a pixel, are smoothed by a px or nearly
SHARPEST = 2.0  # power that a smoothed footprint is raised to at most
RING = (2, 5)  # px from a mask where only what is no cell shows its trace, too
ASTRAY = 3.0  # px that motion correction may leave a cell from its place
HALO = 3.0  # times as large as a cell is what may be the light around it
BRIGHT = 100.0  # signal-to-noise of a cell from which enough of it goes astray to look like a second one
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
    search = CellSearch(stack, inside, parameters, pixel_size, places, origin, memory)
    cells = search.run()
    _refine(stack, cells, rounds=2)
    cells = _without_unions(stack, cells, parameters)
    _cut_out(stack, cells, parameters)
    _refine(stack, cells, rounds=ROUNDS)
    cells, joined = _joined(stack, cells, parameters)
    _refine(stack, joined, rounds=ROUNDS)
    result = []
    for cell in cells:
        footprint = connected_piece(_quiet(stack, cell, parameters.mask), FLOOR)
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


def _quiet(stack: Float32, cell: GrownCell, part: float) -> Float32:
    """The footprint, smoothed where its pixels are uncertain: each was regressed with an error of 1 over the norm of the trace.

    What is smoothed is the regression before what is negative was left out, or noise around the cell would add up. Smoothing by s widens
    a Gaussian of variance v; the power (v + s^2) / v takes that back.
    """
    footprint = cell.footprint
    certainty = float(footprint.max(initial=0.0) * np.linalg.norm(cell.trace))
    scale = float(np.clip(CERTAIN / max(certainty, 1e-6), 0.0, 1.0))
    if scale < 0.3:
        return connected_piece(footprint, FLOOR)
    fitted = footprint + footprint_of(stack, cell.trace, *cell.corner, *footprint.shape)
    support = ndimage.binary_dilation(footprint > 0)
    smoothed = connected_piece(ndimage.gaussian_filter(fitted * support, scale, mode="constant") * support, FLOOR)
    peak = float(smoothed.max(initial=0.0))
    if peak <= 0:
        return smoothed
    # The variance of a Gaussian that reaches down to the given part of its maximum within the area.
    variance = np.count_nonzero(smoothed > part * peak) / (2 * np.pi * np.log(1 / part))
    power = min(variance / max(variance - scale**2, 1e-6), SHARPEST)
    return np.asarray(peak * (smoothed / peak) ** power, np.float32)


def _joined(stack: Float32, cells: list[GrownCell], parameters: CellParameters) -> tuple[list[GrownCell], list[GrownCell]]:
    """Cells that were found at several places made one each; returns all of them, and those that were joined of several.

    What motion correction leaves now here and now there looks like two cells that overlap and take turns. Two somata in one section
    cannot be so near each other.
    """
    kept: list[GrownCell] = []
    joined: list[GrownCell] = []
    for cell in sorted((cell for cell in cells if cell.energy > 0), key=lambda cell: -cell.energy):
        other = next((other for other in kept if _same_cell(cell, other, parameters)), None)
        if other is None:
            kept.append(cell)
            continue
        window = smallest_window(cell.window, other.window)
        weight = np.float32(np.linalg.norm(cell.trace) / np.linalg.norm(other.trace))
        footprint = weight * footprint_in(cell, window)
        # The stack stays what cells leave unexplained.
        subtract(stack, -cell.footprint, cell.trace, *cell.corner)
        subtract(stack, footprint, other.trace, window[0].start, window[1].start)
        other.footprint, other.window = footprint + footprint_in(other, window), window
        if other not in joined:
            joined.append(other)
    return kept, joined


def _same_cell(cell: GrownCell, other: GrownCell, parameters: CellParameters) -> bool:
    """Whether two footprints, the second one of more energy, are of one cell that was here and there, or in both places in every bin."""
    if not windows_meet(cell.window, other.window):
        return False
    mask, its = cell.mask(parameters.mask), other.mask(parameters.mask)
    area, larger = sorted((np.count_nonzero(mask), np.count_nonzero(its)))
    apart = float(np.hypot(*np.subtract(cell.centre(mask), other.centre(its))))
    # What is many times as large shines around the cell.
    if other.snr > BRIGHT and larger < HALO * area and apart < min(ASTRAY, float(np.sqrt(area / np.pi))):
        return True
    shared = np.count_nonzero(mask & (footprint_in(other, cell.window) > parameters.mask * other.footprint.max()))
    if shared <= parameters.same_overlap * area:
        return False
    # Noise lowers the correlation of a faint trace, whatever its signal.
    alike = float(np.corrcoef(cell.trace, other.trace)[0, 1]) / (max(cell.purity, 0.3) * max(other.purity, 0.3))
    return alike > parameters.same_correlation


def _without_unions(stack: Float32, cells: list[GrownCell], parameters: CellParameters) -> list[GrownCell]:
    """Cells less those whose mask two or more others cover between them: neighbours that were first taken for one cell."""
    masks = [cell.mask(parameters.mask) for cell in cells]
    rest = list(cells)
    for cell, mask in zip(cells, masks, strict=True):
        covered, parts = np.zeros_like(mask), 0
        for other, its in zip(cells, masks, strict=True):
            if other is cell or other not in rest or not windows_meet(cell.window, other.window) or its.sum() > mask.sum():
                continue
            shared = mask & (footprint_in(other, cell.window) > parameters.mask * other.footprint.max())
            if shared.sum() > 0.5 * its.sum():
                covered |= shared
                parts += 1
        if parts >= 2 and covered.sum() > UNION * mask.sum():
            rest.remove(cell)
            subtract(stack, -cell.footprint, cell.trace, *cell.corner)
    return rest


def _cut_out(stack: Float32, cells: list[GrownCell], parameters: CellParameters) -> None:
    """Take from every cell the place of a smaller neighbour most of which it covers: the two were first taken for one.

    The fit gives it back what of that place is its own; from a footprint that holds both it would find no way out.
    """
    masks = [cell.mask(parameters.mask) for cell in cells]
    for cell, mask in zip(cells, masks, strict=True):
        for other, its in zip(cells, masks, strict=True):
            if other is cell or not windows_meet(cell.window, other.window) or LARGER * its.sum() > mask.sum():
                continue
            shared = mask & (footprint_in(other, cell.window) > parameters.mask * other.footprint.max())
            if shared.sum() > 0.5 * its.sum() and np.hypot(*np.subtract(cell.centre(mask), other.centre(its))) > ASTRAY:
                subtract(stack, -np.where(shared, cell.footprint, np.float32(0)), cell.trace, *cell.corner)
                cell.footprint[shared] = 0


def _refine(stack: Float32, cells: list[GrownCell], rounds: int) -> None:
    """Alternate between footprints and traces of all cells of a block; `stack` holds what they leave unexplained."""
    supports = []
    for cell in cells:
        support = ndimage.binary_dilation(cell.footprint > 0, iterations=2)
        box = smallest_box(support)
        cell.window = (_within(cell.window[0], box[0]), _within(cell.window[1], box[1]))
        cell.footprint = np.ascontiguousarray(cell.footprint[box])
        supports.append(np.ascontiguousarray(support[box]))
    for _ in range(rounds):
        for cell, support in zip(cells, supports, strict=True):
            if cell.trace.any() and cell.footprint.any():
                fit_footprint(stack, cell.footprint, support, cell.trace, *cell.corner)


def _surround(stack: Float32, cell: GrownCell, part: float) -> float:
    """How strongly a cell's trace shows in what all cells leave unexplained around it, over its own footprint, less the error of that.

    A soma ends where its footprint ends; neuropil that was not taken away goes on.
    """
    height, width = stack.shape[:2]
    top, left = (max(side.start - RING[1], 0) for side in cell.window)
    bottom, right = (min(side.stop + RING[1], length) for side, length in zip(cell.window, (height, width), strict=True))
    whole = (slice(top, bottom), slice(left, right))
    footprint = footprint_in(cell, whole)
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
