"""What each cell did over time: fluorescence demixed from its neighbours', neuropil, and dF/F, in one pass over the movie.

Fluorescence is the least-squares fit of all footprints and of each neuropil's brightness to every frame, so that what two cells share
is counted once. Neuropil is what shines around the cell where no cell is (Chen et al. 2013), followed to the cell's centre by a local
plane; the part of it that is subtracted is fitted to the frames in which the cell is at rest, and stays near the usual 0.7 where they
cannot tell.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from sensorium_pipeline.imaging.cells import Cells
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

Float32 = NDArray[np.float32]

CHUNK_BYTES = 16 * 2**20
FRAMES_SOLVED = 1024  # at a time
CELLS_A_BLOCK = 32  # whose dF/F is worked on at a time
SQUARE = 8  # px, side of the squares that neuropil is summed over
REACH = 2.5  # standard deviations at which the Gaussian of the neuropil ends
DAMPING = 0.02  # of the slopes of neuropil
USUAL_COEFFICIENT = 0.7
PRIOR = 0.15  # standard deviation of the coefficient over cells


class TraceParameters(BaseModel):
    """Parameters of the traces.

    Attributes:
        neuropil_gap: px between the footprints of kept cells and what counts as neuropil.
        neuropil_scale: px, standard deviation of the Gaussian that weighs the neuropil around a cell.
        neuropil_area: px that these weights are worth at least; where cells leave too few, the Gaussian widens.
        mask: part of its maximum from which a footprint's pixels are used.
        baseline_window: s over which the baseline's percentile is taken.
        baseline_percentile: per cent.
    """

    model_config = ConfigDict(frozen=True)

    neuropil_gap: int = 1
    neuropil_scale: float = 10.0
    neuropil_area: int = 200
    mask: float = 0.05
    baseline_window: float = 180.0
    baseline_percentile: float = 20.0


@dataclass(frozen=True)
class Traces:
    """Traces of all cells; NaN in flagged frames.

    Attributes:
        fluorescence: (cells, frames) float32, counts of a pixel of the footprint, others' share removed.
        neuropil: (cells, frames) float32, counts of a pixel around the cell where no cell is.
        neuropil_coefficient: (cells,) float32, part of the neuropil that is subtracted.
        dff: (cells, frames) float32, change of the corrected fluorescence over its baseline.
    """

    fluorescence: Float32
    neuropil: Float32
    neuropil_coefficient: Float32
    dff: Float32


def extract_traces(
    movie: Movie,
    cells: Cells,
    *,
    frame_rate: float,
    flagged: NDArray[np.bool_],
    parameters: TraceParameters,
    progress: ProgressCallback = silent,
    threads: int = 1,
) -> Traces:
    """Traces of `cells` (kept or not) from a motion-corrected movie, streamed in chunks of frames.

    Args:
        movie: corrected frames.
        cells: footprints; those that are not kept get traces, too, but are no neighbours whose share is removed.
        frame_rate: Hz.
        flagged: (frames,) frames in which nothing is known.
        parameters: see there.
        progress: told after every chunk.
        threads: at work at a time; the result does not depend on it.
    """
    count, shape = len(cells), (movie.height, movie.width)
    pixels = shape[0] * shape[1]
    footprints = _footprints(cells, pixels, parameters.mask)
    own = _own_means(footprints)
    # Footprints that are not kept are often neuropil themselves.
    free = _free(footprints[np.flatnonzero(cells.kept)], shape, parameters.neuropil_gap)
    around = _surrounds(cells.centroids, free, parameters)
    raw, neuropil = np.empty((2, count, movie.frames), np.float32)
    step = max(CHUNK_BYTES // (pixels * movie.dtype.itemsize), 1)
    outside = free.astype(np.float32)

    def work(start: int) -> int:
        frames = movie.read(start, min(start + step, movie.frames))
        span = slice(start, start + len(frames))
        squares = np.empty((around.shape[1], len(frames)), np.float32)
        _weigh(frames.reshape(-1, pixels), own.indptr, own.indices, own.data, raw[:, span])
        _sum_squares(frames, outside, SQUARE, squares)
        neuropil[:, span] = around @ squares
        return span.stop

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for done in pool.map(work, range(0, movie.frames, step)):
            progress(Progress("traces", done, movie.frames))
    fluorescence = _demix(raw, neuropil, footprints, own, cells.kept)
    return _to_dff(fluorescence, neuropil, flagged, frame_rate, parameters, threads)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _weigh(frames, starts, pixel, weights, result):  # type: ignore[no-untyped-def]
    """Weighted sums of the pixels of frames (n, pixels), one for each row of a compressed sparse matrix, into result (rows, n)."""
    for n in range(len(frames)):
        frame = frames[n]
        for row in range(len(starts) - 1):
            total = np.float32(0)
            for entry in range(starts[row], starts[row + 1]):
                total += weights[entry] * np.float32(frame[pixel[entry]])
            result[row, n] = total


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sum_squares(frames, weights, side, result):  # type: ignore[no-untyped-def]
    """Sums of the pixels of frames (n, y, x), times `weights` (y, x), over squares of `side` px into result (squares, n), row by row."""
    height, width = weights.shape
    columns = -(-width // side)
    sums = np.empty(width, np.float32)
    for n in range(len(frames)):
        for row in range(-(-height // side)):
            sums[:] = 0
            for y in range(row * side, min((row + 1) * side, height)):
                line, weight = frames[n, y], weights[y]
                for x in range(width):
                    sums[x] += weight[x] * np.float32(line[x])
            for column in range(columns):
                total = np.float32(0)
                for x in range(column * side, min((column + 1) * side, width)):
                    total += sums[x]
                result[row * columns + column, n] = total


def _footprints(cells: Cells, pixels: int, part: float) -> scipy.sparse.csr_matrix:
    """(cells, pixels), the maximum of each is 1, without the faint ends."""
    peak = np.zeros(len(cells), np.float32)
    np.maximum.at(peak, cells.neuron, cells.weight)
    weight = cells.weight / peak[cells.neuron]
    inside = weight > part
    return scipy.sparse.csr_matrix(
        (weight[inside], (cells.neuron[inside], cells.pixel[inside])), shape=(len(cells), pixels), dtype=np.float32
    )


def _own_means(footprints: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Rows that turn a frame into each cell's mean brightness, weighted by its footprint."""
    totals = np.asarray(footprints.sum(axis=1)).ravel()
    return scipy.sparse.csr_matrix(scipy.sparse.diags(1 / np.maximum(totals, 1e-12)) @ footprints, dtype=np.float32)


def _free(footprints: scipy.sparse.csr_matrix, shape: tuple[int, int], gap: int) -> NDArray[np.bool_]:
    """(y, x) pixels farther than `gap` px from all footprints; all of them where none is left."""
    occupied = np.zeros(shape, bool)
    occupied.ravel()[footprints.indices] = True
    free = ndimage.distance_transform_edt(~occupied) > gap if occupied.any() else ~occupied
    return free if free.any() else np.ones(shape, bool)


def _surrounds(centroids: Float32, free: NDArray[np.bool_], parameters: TraceParameters) -> scipy.sparse.csr_matrix:
    """Rows that turn sums over the free pixels of squares (squares,) into the brightness around each cell.

    A plane is fitted to the squares around, weighted by a Gaussian (local linear regression, Fan and Gijbels 1996), so that neuropil that
    is brighter on one side of the cell is not over- or underestimated. The Gaussian widens until it holds enough pixels.
    """
    rows, columns = (np.arange(0, side, SQUARE) for side in free.shape)
    count, y, x = (
        np.add.reduceat(np.add.reduceat(values, rows, 0), columns, 1).ravel()
        for values in (free.astype(float), *(free * axis for axis in np.ogrid[: free.shape[0], : free.shape[1]]))
    )
    used = np.flatnonzero(count)
    count, y, x = count[used], y[used] / count[used], x[used] / count[used]
    squares: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    for centre in centroids:
        scale = parameters.neuropil_scale
        while True:
            offset = np.stack([(y - centre[0]) / scale, (x - centre[1]) / scale])
            distance = np.sum(offset**2, axis=0)
            near = np.flatnonzero(distance < REACH**2)
            weight = count[near] * np.exp(-0.5 * distance[near])
            total = weight.sum()
            # Pixels that the weights are worth.
            if len(near) == len(used) or total**2 > parameters.neuropil_area * np.sum(weight**2 / count[near]):
                break
            scale *= 1.3
        powers = np.concatenate([np.ones((1, len(near))), offset[:, near]])
        moments = (powers * weight) @ powers.T + DAMPING * total * np.diag([0.0, 1.0, 1.0])
        squares.append(used[near])
        weights.append(np.linalg.solve(moments, [1.0, 0.0, 0.0]) @ powers * weight / count[near])
    cell = np.repeat(np.arange(len(centroids)), [len(near) for near in squares])
    entries = (np.concatenate([np.empty(0), *weights]), (cell, np.concatenate([np.empty(0, np.int64), *squares])))
    return scipy.sparse.csr_matrix(entries, (len(centroids), len(rows) * len(columns)), dtype=np.float32)


def _demix(
    raw: Float32, neuropil: Float32, footprints: scipy.sparse.csr_matrix, own: scipy.sparse.csr_matrix, kept: NDArray[np.bool_]
) -> Float32:
    """Fluorescence of each cell once what its overlapping kept neighbours add is taken away.

    A pixel shows the background and, in proportion to their footprints, what each cell adds to it. `raw` is then a small linear
    system in what the cells add, solved by least squares over the footprints for all frames at once.
    """
    real = np.flatnonzero(kept)
    mixing = (own[real] @ footprints[real].T).toarray().astype(np.float64)
    alone = np.diag(np.diag(mixing))
    if not np.any(mixing - alone):
        return raw.copy()
    # Slightly damped, so that two footprints that are nearly the same share what they show instead of cancelling.
    others = (mixing - alone) @ np.linalg.inv(mixing + 0.02 * alone)
    result = raw.copy()
    for start in range(0, raw.shape[1], FRAMES_SOLVED):
        span = slice(start, start + FRAMES_SOLVED)
        result[real, span] -= (others @ (raw[real, span] - neuropil[real, span]).astype(np.float64)).astype(np.float32)
    return result


def _to_dff(
    fluorescence: Float32, neuropil: Float32, flagged: NDArray[np.bool_], frame_rate: float, parameters: TraceParameters, threads: int
) -> Traces:
    """dF/F of fluorescence less neuropil over a running percentile, in frames that are not flagged.

    Only what neuropil changes is subtracted, not its median level, so that the baseline of a dim cell does not come near zero and its
    dF/F says nothing; should counts be near zero all the same, the denominator is held above a tenth of the median fluorescence.
    """
    fluorescence[:, flagged], neuropil[:, flagged] = np.nan, np.nan
    dff = np.full_like(fluorescence, np.nan)
    coefficient = np.full(len(fluorescence), USUAL_COEFFICIENT, np.float32)

    def work(start: int) -> None:
        block = slice(start, start + CELLS_A_BLOCK)
        own, around = fluorescence[block], neuropil[block]
        cell, outside = own[:, ~flagged], around[:, ~flagged]
        coefficient[block] = _coefficients(cell, outside)
        corrected = own - coefficient[block, None] * (around - np.median(outside, axis=1, keepdims=True))
        baseline = running_percentile(corrected, parameters.baseline_window * frame_rate, parameters.baseline_percentile)
        usual = np.abs(np.median(cell, axis=1, keepdims=True))
        scale = np.maximum(baseline, np.maximum(0.1 * usual, 1e-6))
        dff[block] = (corrected - baseline) / scale

    if not flagged.all():
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            list(pool.map(work, range(0, len(fluorescence), CELLS_A_BLOCK)))
    return Traces(fluorescence, neuropil, coefficient, dff)


def _coefficients(fluorescence: Float32, neuropil: Float32) -> Float32:
    """Slope of each cell's brightness against its neuropil's over frames in which the cell is at rest, drawn towards the usual 0.7.

    Slow drifts are left out by taking differences from a running mean; frames far above the median of what remains are activity and are
    dropped, three times over. Where what surrounds a cell shows more noise than neuropil, less of it is subtracted: the usual 0.7 is
    that of its signal.
    """
    frames = fluorescence.shape[1]
    if frames < 50:
        return np.full(len(fluorescence), USUAL_COEFFICIENT, np.float32)
    length = max(frames // 50, 25)
    cell = fluorescence - ndimage.uniform_filter1d(fluorescence, length, axis=1)
    around = neuropil - ndimage.uniform_filter1d(neuropil, length, axis=1)
    noise = np.mean(np.diff(around, axis=1) ** 2, axis=1, keepdims=True) / 2
    usual = USUAL_COEFFICIENT * np.clip(1 - noise / np.maximum(np.var(around, axis=1, keepdims=True), 1e-12), 0, 1)
    slope: NDArray[np.floating] = usual
    for _ in range(4):
        rest = cell - slope * around
        middle = np.median(rest, axis=1, keepdims=True)
        quiet = rest <= middle + 1.5 * 1.4826 * np.median(np.abs(rest - middle), axis=1, keepdims=True)
        count = np.maximum(np.count_nonzero(quiet, axis=1)[:, None], 1)
        centred = np.where(quiet, around - np.sum(around, axis=1, where=quiet, keepdims=True) / count, 0)
        power = np.sum(centred**2, axis=1, keepdims=True)
        slope = np.sum(centred * cell, axis=1, keepdims=True) / np.maximum(power, 1e-12)
        left = np.where(quiet, cell - slope * around, 0)
        spread = np.sum(left**2, axis=1, keepdims=True) / count - (np.sum(left, axis=1, keepdims=True) / count) ** 2
        # Weighed with the usual one by their errors.
        certainty = power / np.maximum(spread, 1e-12)
        slope = (slope * certainty + usual / PRIOR**2) / (certainty + 1 / PRIOR**2)
    return np.clip(slope[:, 0], 0.0, 1.0).astype(np.float32)


def running_percentile(traces: Float32, window: float, percentile: float) -> Float32:
    """Percentile of traces (..., frames) in a window of so many frames around every frame, NaN left out; NaN only where all is NaN.

    It is taken at a tenth of the window apart and interpolated between, which is as smooth as the percentile itself.
    """
    frames = traces.shape[-1]
    half = max(window / 2, 1.0)
    count = max(int(np.ceil(frames / max(half / 5, 1.0))), 1)
    centres = np.linspace(0, frames - 1, count + 1) if frames > 1 else np.zeros(1)
    flat = traces.reshape(-1, frames)
    missing = np.isnan(flat)
    values = np.full((len(flat), len(centres)), np.nan)
    for index, centre in enumerate(centres):
        window_ = slice(max(int(centre - half), 0), int(centre + half) + 1)
        part = flat[:, window_]
        # Frames are missing in all traces or in none: whole frames are flagged.
        known = ~missing[:, window_].all(0)
        if known.any():
            values[:, index] = np.percentile(part[:, known], percentile, axis=1)
    result = np.full(flat.shape, np.nan, np.float32)
    for row, found in enumerate(values):
        known = ~np.isnan(found)
        if known.any():
            result[row] = np.interp(np.arange(frames), centres[known], found[known])
    return result.reshape(traces.shape)
