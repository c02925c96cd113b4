"""What each cell did over time: fluorescence demixed from its neighbours', neuropil, and dF/F, in one pass over the movie.

Fluorescence is the least-squares fit of all footprints and of each neuropil's brightness to every frame, so that what two cells share
is counted once. Neuropil is the mean of a ring around the cell without the pixels of any cell (Chen et al. 2013); the part of it that
is subtracted is fitted to the frames in which the cell is at rest, and stays near the usual 0.7 where they cannot tell.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from sensorium_pipeline.imaging.cells import Cells
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

Float32 = NDArray[np.float32]

CHUNK_BYTES = 32 * 2**20
USUAL_COEFFICIENT = 0.7


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
    neuropil_area: int = 250
    mask: float = 0.2
    baseline_window: float = 60.0
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
) -> Traces:
    """Traces of `cells` (kept or not) from a motion-corrected movie, streamed in chunks of frames."""
    count, pixels = len(cells), movie.height * movie.width
    raw, rings = np.empty((count, movie.frames), np.float32), np.empty((count, movie.frames), np.float32)
    footprints = _footprints(cells, pixels, parameters.mask)
    surround = _rings(footprints, cells.kept, movie.height, movie.width, parameters)
    own = _own_means(footprints)
    step = max(CHUNK_BYTES // (pixels * 4), 1)
    for start in range(0, movie.frames, step):
        stop = min(start + step, movie.frames)
        frames = np.ascontiguousarray(movie.read(start, stop).reshape(stop - start, pixels).T, np.float32)
        raw[:, start:stop] = own @ frames
        rings[:, start:stop] = surround @ frames
        progress(Progress("traces", stop, movie.frames))
    fluorescence = _demix(raw, rings, footprints, own, cells.kept)
    fluorescence[:, flagged], rings[:, flagged] = np.nan, np.nan
    return _to_dff(fluorescence, rings, frame_rate, parameters)


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
    added = np.linalg.solve(mixing + 0.02 * alone, (raw[real] - rings[real]).astype(np.float64))
    result = raw.copy()
    result[real] -= ((mixing - alone) @ added).astype(np.float32)
    return result


def _to_dff(fluorescence: Float32, neuropil: Float32, frame_rate: float, parameters: TraceParameters) -> Traces:
    """dF/F of fluorescence less neuropil over a running percentile.

    Only what neuropil changes is subtracted, not its median level, so that the baseline of a dim cell does not come near zero and its
    dF/F says nothing; should counts be near zero all the same, the denominator is held above a tenth of the median fluorescence.
    """
    coefficient = np.array([_coefficient(f, n) for f, n in zip(fluorescence, neuropil, strict=True)], np.float32)
    dff = np.empty_like(fluorescence)
    for cell in range(len(fluorescence)):
        if np.isnan(fluorescence[cell]).all():
            dff[cell] = np.nan
            continue
        corrected = fluorescence[cell] - coefficient[cell] * (neuropil[cell] - np.nanmedian(neuropil[cell]))
        baseline = running_percentile(corrected, parameters.baseline_window * frame_rate, parameters.baseline_percentile)
        usual = abs(float(np.nanmedian(fluorescence[cell])))
        scale = np.maximum(baseline, max(0.1 * usual, 1e-6))
        dff[cell] = (corrected - baseline) / scale
    return Traces(fluorescence, neuropil, coefficient, dff)


def _coefficient(fluorescence: Float32, neuropil: Float32) -> float:
    """Slope of the cell's brightness against its ring's over frames in which the cell is at rest, drawn towards the usual 0.7.

    Slow drifts are left out by taking differences from a running mean; frames above the median of what remains are activity and are
    dropped, three times over.
    """
    known = ~(np.isnan(fluorescence) | np.isnan(neuropil))
    if np.count_nonzero(known) < 50:
        return USUAL_COEFFICIENT
    cell, ring = fluorescence[known].astype(np.float64), neuropil[known].astype(np.float64)
    length = max(len(cell) // 50, 25)
    cell, ring = cell - ndimage.uniform_filter1d(cell, length), ring - ndimage.uniform_filter1d(ring, length)
    slope, error = USUAL_COEFFICIENT, np.inf
    for _ in range(4):
        rest = cell - slope * ring
        quiet = rest <= np.median(rest) + 1.5 * 1.4826 * np.median(np.abs(rest - np.median(rest)))
        power = float(np.var(ring[quiet])) * np.count_nonzero(quiet)
        if power <= 0:
            return USUAL_COEFFICIENT
        slope = float(np.mean((ring[quiet] - ring[quiet].mean()) * cell[quiet]) * np.count_nonzero(quiet) / power)
        error = float(np.sqrt(np.var(cell[quiet] - slope * ring[quiet]) / power))
    prior = 0.15
    slope = (slope / error**2 + USUAL_COEFFICIENT / prior**2) / (1 / error**2 + 1 / prior**2) if error > 0 else slope
    return float(np.clip(slope, 0.0, 1.0))


def running_percentile(trace: Float32, window: float, percentile: float) -> Float32:
    """Percentile of a trace within a window of so many frames around every frame, smooth, NaN left out; NaN only where all is NaN.

    It is taken at a tenth of the window apart and interpolated between, which is as smooth as the percentile itself.
    """
    frames = len(trace)
    half = max(window / 2, 1.0)
    count = max(int(np.ceil(frames / max(half / 5, 1.0))), 1)
    centres = np.linspace(0, frames - 1, count + 1) if frames > 1 else np.zeros(1)
    values = np.full(len(centres), np.nan)
    for index, centre in enumerate(centres):
        part = trace[max(int(centre - half), 0) : int(centre + half) + 1]
        part = part[~np.isnan(part)]
        if len(part):
            values[index] = np.percentile(part, percentile)
    known = ~np.isnan(values)
    if not known.any():
        return np.full(frames, np.nan, np.float32)
    return np.interp(np.arange(frames), centres[known], values[known]).astype(np.float32)
