"""Cells and traces against a truth that is known: the scores that the benchmarks share.

A cell is found where a mask agrees with its own by an intersection over union above one half, one to one. A trace is judged by its
correlation with what the cell truly added to the movie.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

MASK = 0.2  # part of a footprint's maximum above which a pixel belongs to the mask
SAME = 0.5  # intersection over union above which two masks are of one cell
VISIBLE = 8.0  # signal-to-noise from which a cell can be asked for


@dataclass(frozen=True)
class TrueCells:
    """What a movie is made of.

    Attributes:
        masks: (cells, pixels) sparse, 1 where the footprint exceeds a fifth of its maximum.
        traces: (cells, frames) counts that the cell adds.
        snr: (cells,) over the whole recording.
        shape: y, x of the field in pixels.
    """

    masks: scipy.sparse.csr_matrix
    traces: NDArray[np.float32]
    snr: NDArray[np.float32]
    shape: tuple[int, int]

    @property
    def visible(self) -> NDArray[np.bool_]:
        """(cells,) those whose signal is large enough to be asked for."""
        return self.snr >= VISIBLE


@dataclass(frozen=True)
class DetectionScore:
    """Cells found, missed and made up. `pairs` (matches, 2) are indices of true and found cells."""

    pairs: NDArray[np.int64]
    true: int
    found: int

    @property
    def matched(self) -> int:
        """Cells that were found."""
        return len(self.pairs)

    @property
    def precision(self) -> float:
        """Share of what was found that is a cell."""
        return self.matched / max(self.found, 1)

    @property
    def recall(self) -> float:
        """Share of the cells that were found."""
        return self.matched / max(self.true, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.matched / max(self.true + self.found, 1)


def read_truth(path: Path) -> TrueCells:
    """The cells in the `_truth.npz` beside a hybrid movie."""
    with np.load(path) as file:
        footprints, traces, snr = file["footprints"], file["traces"], file["snr"]
    flat = footprints.reshape(len(footprints), -1)
    return TrueCells(scipy.sparse.csr_matrix(flat > MASK * flat.max(1, keepdims=True)), traces, snr, footprints.shape[1:])


def masks_of(neuron: NDArray[np.integer], pixel: NDArray[np.integer], weight: NDArray[np.floating], pixels: int) -> scipy.sparse.csr_matrix:
    """Masks (cells, pixels) of footprints that come as sparse triples."""
    count = int(neuron.max(initial=-1)) + 1
    peak = np.zeros(count)
    np.maximum.at(peak, neuron, weight)
    inside = weight > MASK * peak[neuron]
    return scipy.sparse.csr_matrix((np.ones(inside.sum(), bool), (neuron[inside], pixel[inside])), shape=(count, pixels))


def score_detection(truth: TrueCells, found: scipy.sparse.csr_matrix, *, visible_only: bool = True) -> DetectionScore:
    """Match found masks (cells, pixels) to the true ones, so that the sum of the agreement is largest.

    With `visible_only`, cells too faint to be asked for are neither missed nor made up: a found mask that agrees with one of them is
    left out of the count.
    """
    true, other = truth.masks.astype(np.float64), found.astype(np.float64)
    shared = (true @ other.T).toarray()
    union = np.asarray(true.sum(1)) + np.asarray(other.sum(1)).T - shared
    agreement = np.where(shared > SAME * union, shared / np.maximum(union, 1), 0)
    rows, columns = linear_sum_assignment(agreement, maximize=True)
    matched = agreement[rows, columns] > 0
    pairs = np.stack([rows[matched], columns[matched]], axis=1)
    if not visible_only:
        return DetectionScore(pairs, len(truth.snr), other.shape[0])
    seen = truth.visible[pairs[:, 0]]
    return DetectionScore(pairs[seen], int(truth.visible.sum()), other.shape[0] - int((~seen).sum()))


def score_traces(truth: TrueCells, traces: NDArray[np.floating], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Correlation of the traces (cells, frames) of matched cells with the true ones, over the true cells that are ever active.

    Frames in which a trace is NaN are left out; a trace that says nothing counts as 0.
    """
    result = []
    for true, found in pairs:
        added, trace = truth.traces[true], traces[found]
        if np.ptp(added) <= 0:
            continue
        known = np.isfinite(trace)
        varies = known.sum() > 2 and np.ptp(trace[known]) > 0 and np.ptp(added[known]) > 0
        result.append(float(np.corrcoef(trace[known], added[known])[0, 1]) if varies else 0.0)
    return np.array(result)


def score_all_traces(truth: TrueCells, traces: NDArray[np.floating], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """As `score_traces`, with 0 for every active cell that was not found.

    Over what each program found, the one that finds only the strongest cells looks best; over all cells it does not.
    """
    found = score_traces(truth, traces, pairs)
    return np.concatenate([found, np.zeros(int(np.count_nonzero(np.ptp(truth.traces, axis=1) > 0)) - len(found))])
