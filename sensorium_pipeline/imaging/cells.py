"""Where the cells of a plane are: footprints from a motion-corrected movie binned in time.

The movie is binned to about a second, high-passed in time and space and divided by its noise. Where the smoothed movie often rises
far above its noise, a footprint and a trace are grown from the brightest place on, subtracted, and the next place is sought (sparse
detection, as in Pachitariu et al. 2017). All footprints of a block are then fitted together by alternating non-negative regression
(hierarchical alternating least squares, as in CNMF, Pnevmatikakis et al. 2016), so that overlapping cells share their pixels.

The binned movie lies on scratch disk and is worked on in overlapping blocks, so memory is bounded by the block.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.cell_block import BlockCell, CellParameters, find_cells
from sensorium_pipeline.imaging.scratch import scratch_array
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

BLOCK = 96  # side of a block, pixels
CHUNK_BYTES = 64 * 2**20
FRAGMENT_GAP = 4.0  # px between the masks of a cell and what is left of it
MOST_BINS = 1000  # more add little to the footprints and much to the work


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
        progress: told after every chunk and block.
        threads: blocks worked on at a time; the result does not depend on it.
    """
    path = scratch / "binned.float32"
    try:
        binned, bin_rate = _bin(movie, frame_rate, flagged, parameters, path, progress)
        if binned is None:
            return _collect([], movie.width, parameters)
        blocks = list(_blocks(movie.height, movie.width, int(2 * parameters.neuropil_scale)))

        def work(block: _Block) -> list[BlockCell]:
            stack = np.ascontiguousarray(np.moveaxis(binned[:, block.outer[0], block.outer[1]], 0, 2))
            return [
                cell for cell in find_cells(stack, bin_rate, inside[block.outer], parameters, block.origin) if block.owns(cell.centroid)
            ]

        found: list[BlockCell] = []
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            for done, cells in enumerate(pool.map(work, blocks)):
                found += cells
                progress(Progress("cells", done + 1, len(blocks), f"{len(found)} found"))
        return _collect(found, movie.width, parameters)
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


def _blocks(height: int, width: int, margin: int) -> Iterator[_Block]:
    """Blocks of about equal size that cover the field."""

    def sides(length: int) -> list[tuple[slice, slice]]:
        count = max(round(length / BLOCK), 1)
        edges = np.linspace(0, length, count + 1).astype(int).tolist()
        return [(slice(a, b), slice(max(a - margin, 0), min(b + margin, length))) for a, b in pairwise(edges)]

    for rows in sides(height):
        for columns in sides(width):
            yield _Block((rows[0], columns[0]), (rows[1], columns[1]))


def _bin(
    movie: Movie, frame_rate: float, flagged: NDArray[np.bool_], parameters: CellParameters, path: Path, progress: ProgressCallback
) -> tuple[NDArray[np.float32] | None, float]:
    """The movie binned over frames that are not flagged, on disk (bins, y, x), and its rate in Hz; None where hardly anything is left."""
    size = max(round(parameters.bin_duration * frame_rate), int(np.ceil(movie.frames / MOST_BINS)), 1)
    # A short movie keeps enough bins to tell noise from cells.
    size = max(min(size, movie.frames // 100), 1)
    used = np.flatnonzero([(~flagged[start : start + size]).any() for start in range(0, movie.frames - size + 1, size)])
    if len(used) < 8:
        return None, 0.0
    binned = scratch_array(path, (len(used), movie.height, movie.width), np.float32)
    many = max(CHUNK_BYTES // (4 * size * movie.height * movie.width), 1)
    row = 0
    for first in range(0, movie.frames // size, many):
        last = min(first + many, movie.frames // size)
        frames = movie.read(first * size, last * size)
        for index in range(last - first):
            good = ~flagged[(first + index) * size : (first + index + 1) * size]
            if good.any():
                part = frames[index * size : (index + 1) * size]
                # Fewer frames in a bin mean more noise, which a few bins can bear.
                binned[row] = np.mean(part if good.all() else part[good], axis=0, dtype=np.float32)
                row += 1
        progress(Progress("binning", last * size, movie.frames))
    return binned, frame_rate / size


def _collect(found: list[BlockCell], width: int, parameters: CellParameters) -> Cells:
    """Cells of all blocks in one order, those found twice at a border once, each judged."""
    found = sorted(found, key=lambda cell: (-cell.snr, cell.centroid))
    taken: list[BlockCell] = []
    masks: list[frozenset[tuple[int, int]]] = []
    for cell in found:
        mask = frozenset(zip(*(axis.tolist() for axis in cell.mask(parameters.mask)), strict=True))
        near = [
            k for k, other in enumerate(taken) if abs(other.centroid[0] - cell.centroid[0]) + abs(other.centroid[1] - cell.centroid[1]) < 30
        ]
        if not any(len(mask & masks[k]) > parameters.same_overlap * len(mask | masks[k]) for k in near):
            taken.append(cell)
            masks.append(mask)
    reasons = [_judge(cell, parameters) or _fragment(cell, taken[:index], parameters) for index, cell in enumerate(taken)]
    entries = [(index, cell.rows * width + cell.columns, cell.weights) for index, cell in enumerate(taken)]
    return Cells(
        neuron=np.concatenate([np.full(len(pixels), index, np.int32) for index, pixels, _ in entries] or [np.empty(0, np.int32)]),
        pixel=np.concatenate([pixels.astype(np.int32) for _, pixels, _ in entries] or [np.empty(0, np.int32)]),
        weight=np.concatenate([weights / np.linalg.norm(weights) for *_, weights in entries] or [np.empty(0)]).astype(np.float32),
        centroids=np.array([cell.centroid for cell in taken], np.float32).reshape(-1, 2),
        detection_snr=np.array([cell.snr for cell in taken], np.float32),
        kept=np.array([not reason for reason in reasons], bool),
        reason=tuple(reasons),
    )


def _judge(cell: BlockCell, parameters: CellParameters) -> str:
    """Why a footprint is no cell; empty if it is."""
    rows, columns = cell.mask(parameters.mask)
    if len(rows) < parameters.smallest_area:
        return f"mask of {len(rows)} px is below {parameters.smallest_area}"
    if len(rows) > parameters.largest_area:
        return f"mask of {len(rows)} px is above {parameters.largest_area}"
    # A disc of area A has the summed variance A / 2 pi.
    spread = np.var(rows) + np.var(columns) + 1 / 6
    compactness = len(rows) / (2 * np.pi * spread)
    if compactness < parameters.least_compactness:
        return f"compactness {compactness:.2f} is below {parameters.least_compactness}"
    if cell.snr < parameters.least_snr:
        return f"signal-to-noise {cell.snr:.1f} is below {parameters.least_snr}"
    if cell.skewness < parameters.least_skewness and compactness < parameters.roundness:
        return f"skewness {cell.skewness:.2f} is below {parameters.least_skewness}, as of neuropil"
    return ""


def _fragment(cell: BlockCell, brighter: list[BlockCell], parameters: CellParameters) -> str:
    """Why a footprint is what a much brighter neighbour left over after imperfect motion correction; empty if it is not."""
    rows, columns = cell.mask(parameters.mask)
    for other in brighter:
        if cell.snr > parameters.fragment_snr * other.snr or len(other.trace) != len(cell.trace):
            continue
        distance = abs(other.centroid[0] - cell.centroid[0]) + abs(other.centroid[1] - cell.centroid[1])
        if distance > 60:
            continue
        other_rows, other_columns = other.mask(parameters.mask)
        gap = np.sqrt((rows[:, None] - other_rows) ** 2 + (columns[:, None] - other_columns) ** 2).min()
        alike = float(np.corrcoef(cell.trace, other.trace)[0, 1])
        if gap <= FRAGMENT_GAP and alike > parameters.fragment_correlation:
            return f"fragment of a neighbour {other.snr / cell.snr:.1f} times as bright, correlation {alike:.2f}"
    return ""
