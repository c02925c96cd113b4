"""Where the cells of a plane are: footprints from a motion-corrected movie binned in time.

The movie is binned to about a second, high-passed in time and space and divided by its noise. Where the smoothed movie often rises
far above its noise, a footprint and a trace are grown from the brightest place on, subtracted, and the next place is sought (sparse
detection, as in Pachitariu et al. 2017). All footprints of a block are then fitted together by alternating non-negative regression
(hierarchical alternating least squares, as in CNMF, Pnevmatikakis et al. 2016), so that overlapping cells share their pixels.

The binned movie lies on scratch disk and is worked on in overlapping blocks, so memory is bounded by the block.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from sensorium_pipeline.imaging.binned_movie import bin_movie, measure_neuropil
from sensorium_pipeline.imaging.block_memory import BlockMemory
from sensorium_pipeline.imaging.cell_block import BlockCell, find_cells
from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.cell_search import stacks_of
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

BLOCK = 170  # side of a block at most, pixels
BLOCK_BYTES = 48 * 2**20  # of the binned movie in a block at most, without its margins
MOST_BYTES = 512 * 2**20  # of all blocks at work, with their margins and at all scales of the search
SAME = 0.5  # intersection over union of two masks from which blocks found the same cell
CONFIDENT = 1.65  # standard errors by which a skewness must exceed its threshold: 95 %, one-sided
FRAGMENT_GAP = 5.0  # px between the masks of a cell and what is left of it


@dataclass(frozen=True)
class Cells:
    """Footprints, the cell with the largest energy first.

    Attributes:
        neuron, pixel, weight: (entries,) sparse triples: index of the cell, flat pixel index, weight > 0 of Euclidean norm 1 a cell.
        centroids: (cells, 2) float32, y, x in pixels.
        detection_snr: (cells,) float32, square root of the energy of the cell's binned trace over the noise.
        kept: (cells,) bool.
        reason: why a cell is not kept, empty where it is.
    """

    neuron: NDArray[np.int32]
    pixel: NDArray[np.int32]
    weight: NDArray[np.float32]
    centroids: NDArray[np.float32]
    detection_snr: NDArray[np.float32]
    kept: NDArray[np.bool_]
    reason: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kept)


def segment(
    movie: Movie,
    *,
    frame_rate: float,
    flagged: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    parameters: CellParameters,
    scratch: Path,
    pixel_size: float | None = None,
    progress: ProgressCallback = silent,
    threads: int = 1,
) -> Cells:
    """Find the cells of a motion-corrected movie.

    Args:
        movie: corrected frames.
        frame_rate: Hz.
        flagged: (frames,) frames to leave out.
        inside: (y, x) pixels that lay in the field in nearly every frame; no footprint reaches beyond them.
        parameters: see there.
        scratch: folder for the binned movie, which is removed at the end.
        pixel_size: um; None where it is not known, and sizes count in pixels.
        progress: told after every chunk and block.
        threads: blocks worked on at a time, fewer where memory would not do; the result does not depend on it.
    """
    path = scratch / "binned.float32"
    try:
        binned = bin_movie(
            movie,
            frame_rate=frame_rate,
            flagged=flagged,
            bin_duration=parameters.bin_duration,
            high_pass=parameters.high_pass,
            path=path,
            threads=threads,
            progress=progress,
        )
        if binned is None:
            return _collect([], (movie.height, movie.width), parameters, pixel_size)
        largest = parameters.diameters(pixel_size)[1]
        blocks = _blocks(movie.height, movie.width, binned.coarse.shape[2], largest)
        at_once = _at_once(blocks, binned.coarse.shape[2], largest, threads)
        # The window of the neuropil is far larger than any cell, so that no cell is taken for its own surround.
        neuropil = measure_neuropil(binned, max(parameters.neuropil_scale, largest / 2))
        length = max(round(parameters.high_pass * binned.rate), 1)
        memories: SimpleQueue[BlockMemory] = SimpleQueue()
        for _ in range(at_once):
            memories.put(BlockMemory())

        def work(block: _Block) -> list[BlockCell]:
            memory = memories.get()
            try:
                memory.start()
                stack = binned.window(*block.outer, memory)
                noise = neuropil.remove(stack, block.outer, length, memory)
                found = find_cells(
                    stack,
                    noise,
                    inside[block.outer],
                    parameters,
                    pixel_size=pixel_size,
                    places=noise.size / inside.size,
                    origin=block.origin,
                    memory=memory,
                )
            finally:
                memories.put(memory)
            return [cell for cell in found if block.owns(cell.centroid)]

        found: list[BlockCell] = []
        with ThreadPoolExecutor(at_once) as pool:
            for done, cells in enumerate(pool.map(work, blocks)):
                found += cells
                progress(Progress("cells", done + 1, len(blocks), f"{len(found)} found"))
        return _collect(found, (movie.height, movie.width), parameters, pixel_size)
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Block:
    """A rectangle that a block answers for, and the larger one it looks at; rows then columns."""

    inner: tuple[slice, slice]
    outer: tuple[slice, slice]

    @property
    def origin(self) -> tuple[int, int]:
        return self.outer[0].start, self.outer[1].start

    def owns(self, point: tuple[float, float]) -> bool:
        return all(side.start - 0.5 <= value < side.stop - 0.5 for side, value in zip(self.inner, point, strict=True))


def _blocks(height: int, width: int, bins: int, largest: float) -> list[_Block]:
    """Blocks of about equal size that cover the field; smaller ones where there are many bins."""
    side = min(BLOCK, float(np.sqrt(BLOCK_BYTES / (4 * bins))))
    margin = int(np.clip(largest / 2 + 4, 12, 32))

    def sides(length: int) -> list[tuple[slice, slice]]:
        count = max(round(length / side), 1)
        edges = np.linspace(0, length, count + 1).astype(int).tolist()
        return [(slice(a, b), slice(max(a - margin, 0), min(b + margin, length))) for a, b in pairwise(edges)]

    return [_Block((rows[0], columns[0]), (rows[1], columns[1])) for rows in sides(height) for columns in sides(width)]


def _at_once(blocks: list[_Block], bins: int, largest: float, threads: int) -> int:
    """How many blocks can be worked on at a time."""
    pixels = max(math.prod(side.stop - side.start for side in block.outer) for block in blocks)
    return int(np.clip(MOST_BYTES / (4 * pixels * bins * stacks_of(largest)), 1, max(threads, 1)))


def _collect(found: list[BlockCell], shape: tuple[int, int], parameters: CellParameters, pixel_size: float | None) -> Cells:
    """Cells of all blocks in one order, those found twice at a border once, each judged."""
    found = sorted(found, key=lambda cell: (-cell.snr, cell.centroid))
    shared, areas = _overlaps(found, shape, parameters.mask)
    taken: list[int] = []
    gone = np.zeros(len(found), bool)
    for index in range(len(found)):
        others, pixels = _neighbours(shared, index)
        union = areas[others] + areas[index] - pixels
        gone[index] = bool(np.any((others < index) & ~gone[others] & (pixels > SAME * union)))
        if not gone[index]:
            taken.append(index)
    cells = [found[index] for index in taken]
    reasons = [_judge(cell, parameters, pixel_size) or _fragment(cell, cells[:index], parameters) for index, cell in enumerate(cells)]
    sizes = [len(cell.weights) for cell in cells]
    return Cells(
        neuron=np.repeat(np.arange(len(cells), dtype=np.int32), sizes),
        pixel=_joined([cell.rows * shape[1] + cell.columns for cell in cells]).astype(np.int32),
        weight=_joined([cell.weights / np.linalg.norm(cell.weights) for cell in cells]).astype(np.float32),
        centroids=np.array([cell.centroid for cell in cells], np.float32).reshape(-1, 2),
        detection_snr=np.array([cell.snr for cell in cells], np.float32),
        kept=np.array([not reason for reason in reasons], bool),
        reason=tuple(reasons),
    )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0)


def _overlaps(found: list[BlockCell], shape: tuple[int, int], part: float) -> tuple[scipy.sparse.csr_matrix, NDArray[np.int64]]:
    """Pixels that the masks of cells share (cells, cells), and their areas (cells,)."""
    masks = [cell.mask(part) for cell in found]
    areas = np.array([len(rows) for rows, _ in masks], np.int64)
    pixel = _joined([rows * shape[1] + columns for rows, columns in masks]).astype(np.int64)
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(pixel), np.int64), (np.repeat(np.arange(len(found)), areas), pixel)), shape=(len(found), shape[0] * shape[1])
    )
    return scipy.sparse.csr_matrix(matrix @ matrix.T), areas


def _neighbours(shared: scipy.sparse.csr_matrix, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    row = slice(shared.indptr[index], shared.indptr[index + 1])
    return shared.indices[row], shared.data[row]


def _judge(cell: BlockCell, parameters: CellParameters, pixel_size: float | None) -> str:
    """Why a footprint is no cell; empty if it is."""
    rows, columns = cell.mask(parameters.mask)
    smallest, largest = parameters.areas(pixel_size)
    if len(rows) < smallest:
        return f"mask of {len(rows)} px is below {smallest:.0f}"
    if len(rows) > largest:
        return f"mask of {len(rows)} px is above {largest:.0f}"
    # A disc of area A has the summed variance A / 2 pi.
    spread = np.var(rows) + np.var(columns) + 1 / 6
    compactness = len(rows) / (2 * np.pi * spread)
    if compactness < parameters.least_compactness:
        return f"compactness {compactness:.2f} is below {parameters.least_compactness}"
    if cell.snr < parameters.least_snr:
        return f"signal-to-noise {cell.snr:.1f} is below {parameters.least_snr}"
    if cell.surround > parameters.most_surround:
        return f"its surround shows {cell.surround:.2f} of its signal, more than {parameters.most_surround}, as of neuropil"
    if cell.skewness - CONFIDENT * cell.skewness_error < parameters.least_skewness:
        return f"skewness {cell.skewness:.2f} +- {cell.skewness_error:.2f} is not clearly above {parameters.least_skewness}, as of neuropil"
    return ""


def _fragment(cell: BlockCell, brighter: list[BlockCell], parameters: CellParameters) -> str:
    """Why a footprint is what a much brighter neighbour left over after imperfect motion correction; empty if it is not."""
    rows, columns = cell.mask(parameters.mask)
    for other in brighter:
        if cell.snr > parameters.fragment_snr * other.snr or len(other.trace) != len(cell.trace):
            continue
        (y, x), (other_y, other_x) = cell.centroid, other.centroid
        if abs(y - other_y) + abs(x - other_x) > 60:
            continue
        other_rows, other_columns = other.mask(parameters.mask)
        if ((rows[:, None] - other_rows) ** 2 + (columns[:, None] - other_columns) ** 2).min() > FRAGMENT_GAP**2:
            continue
        # Noise lowers the correlation of a faint trace, whatever its signal.
        alike = float(np.corrcoef(cell.trace, other.trace)[0, 1]) / max(cell.purity, 0.3)
        if alike > parameters.fragment_correlation:
            return f"fragment of a neighbour {other.snr / cell.snr:.1f} times as bright, correlation {alike:.2f}"
    return ""
