"""What each cell did over time: fluorescence demixed from its neighbours', neuropil, and dF/F, in one pass over the movie.

Fluorescence is the least-squares fit of all footprints and of each neuropil's brightness to every frame, so that what two cells share
is counted once. Neuropil is the mean of a ring around the cell without the pixels of any cell (Chen et al. 2013); the part of it that
is subtracted is fitted to the frames in which the cell is at rest, and stays near the usual 0.7 where they cannot tell.
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
TOGETHER = 16  # frames whose values of a pixel lie side by side while they are weighed
USUAL_COEFFICIENT = 0.7
PRIOR = 0.15  # standard deviation of the coefficient over cells


class TraceParameters(BaseModel):
    """Parameters of the traces.

    Attributes:
        neuropil_gap: px between a cell's footprint and its ring.
        neuropil_area: px that a ring has at least, where the field allows.
        mask: part of its maximum from which a footprint's pixels are used.
        baseline_window: s over which the baseline's percentile is taken.
        baseline_percentile: per cent.
    """

    model_config = ConfigDict(frozen=True)

    neuropil_gap: int = 2
    neuropil_area: int = 500
    mask: float = 0.05
    baseline_window: float = 180.0
    baseline_percentile: float = 20.0


@dataclass(frozen=True)
class Traces:
    """Traces of all cells; NaN in flagged frames.

    Attributes:
        fluorescence: (cells, frames) float32, counts of a pixel of the footprint, others' share removed.
        neuropil: (cells, frames) float32, counts of a pixel of the ring.
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
    count, pixels = len(cells), movie.height * movie.width
    footprints = _footprints(cells, pixels, parameters.mask)
    own = _own_means(footprints)
    both = scipy.sparse.csr_matrix(
        scipy.sparse.vstack([own, _rings(footprints, cells.kept, movie.height, movie.width, parameters)]), dtype=np.float32
    )
    means = np.empty((2 * count, movie.frames), np.float32)
    step = max(CHUNK_BYTES // (pixels * movie.dtype.itemsize) // TOGETHER, 1) * TOGETHER
    # Pixels that no cell and no ring needs are not looked at.
    used, place = np.unique(both.indices, return_inverse=True)
    place = place.astype(np.int32)

    def work(start: int) -> int:
        frames = movie.read(start, min(start + step, movie.frames)).reshape(-1, pixels)
        _weigh(frames, used, both.indptr, place, both.data, means[:, start : start + len(frames)])
        return start + len(frames)

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for done in pool.map(work, range(0, movie.frames, step)):
            progress(Progress("traces", done, movie.frames))
    raw, rings = means[:count], means[count:]
    fluorescence = _demix(raw, rings, footprints, own, cells.kept)
    return _to_dff(fluorescence, rings, flagged, frame_rate, parameters, threads)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _weigh(frames, used, starts, place, weights, result):  # type: ignore[no-untyped-def]
    """Weighted sums of the pixels of frames (n, pixels), one for each row of a compressed sparse matrix, into result (rows, n).

    `place` says which of the pixels `used` an entry of the matrix belongs to. A few frames at a time are turned so that the values of a
    pixel lie side by side, and each weight multiplies them at once.
    """
    turned = np.zeros((len(used), TOGETHER), np.float32)
    totals = np.zeros(TOGETHER, np.float32)
    for first in range(0, len(frames), TOGETHER):
        many = min(TOGETHER, len(frames) - first)
        for entry in range(len(used)):
            pixel = used[entry]
            for n in range(many):
                turned[entry, n] = frames[first + n, pixel]
        for row in range(len(starts) - 1):
            totals[:] = 0
            for entry in range(starts[row], starts[row + 1]):
                weight, values = weights[entry], turned[place[entry]]
                for n in range(TOGETHER):
                    totals[n] += weight * values[n]
            for n in range(many):
                result[row, first + n] = totals[n]


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


def _rings(
    footprints: scipy.sparse.csr_matrix, kept: NDArray[np.bool_], height: int, width: int, parameters: TraceParameters
) -> scipy.sparse.csr_matrix:
    """Rows that turn a frame into the mean of each cell's ring; a ring grows until it is large enough, whatever shape the field leaves."""
    occupied = np.zeros(height * width, bool)
    occupied[footprints[np.flatnonzero(kept)].indices] = True
    free = ~ndimage.binary_dilation(occupied.reshape(height, width))
    rows, columns = [], []
    for cell in range(footprints.shape[0]):
        pixel = footprints.indices[footprints.indptr[cell] : footprints.indptr[cell + 1]]
        y, x = np.divmod(pixel, width)
        reach = 4
        while True:
            window = (slice(max(y.min() - reach, 0), y.max() + reach + 1), slice(max(x.min() - reach, 0), x.max() + reach + 1))
            mask = np.ones((min(window[0].stop, height) - window[0].start, min(window[1].stop, width) - window[1].start), bool)
            mask[y - window[0].start, x - window[1].start] = False
            distance = ndimage.distance_transform_edt(mask)
            ring = (distance > parameters.neuropil_gap) & (distance <= reach) & free[window]
            if np.count_nonzero(ring) >= parameters.neuropil_area or reach > max(height, width):
                break
            reach += 2
        if not ring.any():
            ring = mask  # a field full of cells: whatever is not the cell itself
        ring_rows, ring_columns = np.nonzero(ring)
        columns.append((ring_rows + window[0].start) * width + ring_columns + window[1].start)
        rows.append(np.full(len(ring_rows), cell))
    if not rows:
        return footprints
    row, column = np.concatenate(rows), np.concatenate(columns)
    weight = 1 / np.bincount(row, minlength=footprints.shape[0])[row]
    return scipy.sparse.csr_matrix((weight.astype(np.float32), (row, column)), shape=footprints.shape)


def _demix(
    raw: Float32, rings: Float32, footprints: scipy.sparse.csr_matrix, own: scipy.sparse.csr_matrix, kept: NDArray[np.bool_]
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
        result[real, span] -= (others @ (raw[real, span] - rings[real, span]).astype(np.float64)).astype(np.float32)
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
        cell, ring = own[:, ~flagged], around[:, ~flagged]
        coefficient[block] = _coefficients(cell, ring)
        corrected = own - coefficient[block, None] * (around - np.median(ring, axis=1, keepdims=True))
        baseline = running_percentile(corrected, parameters.baseline_window * frame_rate, parameters.baseline_percentile)
        usual = np.abs(np.median(cell, axis=1, keepdims=True))
        scale = np.maximum(baseline, np.maximum(0.1 * usual, 1e-6))
        dff[block] = (corrected - baseline) / scale

    if not flagged.all():
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            list(pool.map(work, range(0, len(fluorescence), CELLS_A_BLOCK)))
    return Traces(fluorescence, neuropil, coefficient, dff)


def _coefficients(fluorescence: Float32, neuropil: Float32) -> Float32:
    """Slope of each cell's brightness against its ring's over frames in which the cell is at rest, drawn towards the usual 0.7.

    Slow drifts are left out by taking differences from a running mean; frames far above the median of what remains are activity and are
    dropped, three times over. Where a ring shows more noise than neuropil, less of it is subtracted: the usual 0.7 is that of its signal.
    """
    frames = fluorescence.shape[1]
    if frames < 50:
        return np.full(len(fluorescence), USUAL_COEFFICIENT, np.float32)
    length = max(frames // 50, 25)
    cell = fluorescence - ndimage.uniform_filter1d(fluorescence, length, axis=1)
    ring = neuropil - ndimage.uniform_filter1d(neuropil, length, axis=1)
    noise = np.mean(np.diff(ring, axis=1) ** 2, axis=1, keepdims=True) / 2
    usual = USUAL_COEFFICIENT * np.clip(1 - noise / np.maximum(np.var(ring, axis=1, keepdims=True), 1e-12), 0, 1)
    slope: NDArray[np.floating] = usual
    for _ in range(4):
        rest = cell - slope * ring
        middle = np.median(rest, axis=1, keepdims=True)
        quiet = rest <= middle + 1.5 * 1.4826 * np.median(np.abs(rest - middle), axis=1, keepdims=True)
        count = np.maximum(np.count_nonzero(quiet, axis=1)[:, None], 1)
        centred = np.where(quiet, ring - np.sum(ring, axis=1, where=quiet, keepdims=True) / count, 0)
        power = np.sum(centred**2, axis=1, keepdims=True)
        slope = np.sum(centred * cell, axis=1, keepdims=True) / np.maximum(power, 1e-12)
        left = np.where(quiet, cell - slope * ring, 0)
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
