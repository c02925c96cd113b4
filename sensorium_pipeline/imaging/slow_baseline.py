"""The slow baseline of a trace: a low percentile over a running window, as brain and laser drift within minutes."""

import numba
import numpy as np
from numpy.typing import NDArray

WINDOW, STEP, BIN = 60.0, 15.0, 0.2  # s; the percentile is taken of means over bins, which photon noise hardly moves
PERCENTILE = 10.0
FEWEST_BINS = 4  # of a window
MARGIN = 0.3  # of the way from a window's least to its percentile


def slow_baseline(traces: NDArray[np.float32], frame_rate: float) -> NDArray[np.float32]:
    """(neurons, frames) float32 baseline of traces (neurons, frames), NaN where a frame is missing.

    It is constant in traces shorter than two windows, where activity and drift cannot be told apart.
    """
    neurons, frames = traces.shape
    baseline = np.zeros((neurons, frames), np.float32)
    size = max(round(BIN * frame_rate), 1)
    window, step = int(WINDOW * frame_rate) // size, max(int(STEP * frame_rate) // size, 1)
    if window < FEWEST_BINS or frames // size < 2 * window:
        window = frames // size
    for trace, slow in zip(traces, baseline, strict=True):
        _follow(trace, size, window, step, slow)
    return baseline


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _follow(trace, size, window, step, slow):  # type: ignore[no-untyped-def]
    """Write the baseline of one trace to `slow`: linear between the centres of windows that are known well enough, constant outside."""
    bins = len(trace) // size
    means, part = np.empty(bins), np.empty(window + 1)
    for index in range(bins):
        total, known = 0.0, 0
        for frame in range(index * size, (index + 1) * size):
            value = np.float64(trace[frame])
            if value == value:
                total += value
                known += 1
        means[index] = total / known if known > 0 else np.nan
    before, value_before = -1.0, 0.0  # centre and value of the last window; none yet
    frame, bound = 0, np.inf
    for begin in range(0, bins - window + 1, step):
        known, count = _below(means[begin : begin + window], bound, part)
        if known < window / 4 or known == 0:
            continue
        rank = int(PERCENTILE / 100 * known)
        if count <= rank:
            _, count = _below(means[begin : begin + window], np.inf, part)
        centre, value = (begin + window / 2) * size - 0.5, _smallest(part[:count], rank)
        # The next window is not much different: what lies far above need not be looked at.
        bound = value + MARGIN * (value - part[: rank + 1].min())
        stop = min(int(centre) + 1, len(slow))
        if before < 0:
            slow[frame:stop] = value
        else:
            slope = (value - value_before) / (centre - before)
            for each in range(frame, stop):
                slow[each] = value_before + slope * (each - before)
        frame, before, value_before = stop, centre, value
    slow[frame:] = value_before


@numba.njit(nogil=True, cache=True)
def _below(means, bound, part):  # type: ignore[no-untyped-def]
    """How many of the means are known and how many of them lie below a bound, which are written to `part`, in their order."""
    known, count = 0, 0
    for value in means:
        known += value == value
        part[count] = value
        count += value < bound
    return known, count


@numba.njit(nogil=True, cache=True)
def _smallest(values, rank):  # type: ignore[no-untyped-def]
    """The value of a rank, from nought, of values without NaN, which it reorders (Hoare's selection)."""
    low, high = 0, len(values) - 1
    while low < high:
        pivot, left, right = values[(low + high) // 2], low, high
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if rank <= right:
            high = right
        elif rank >= left:
            low = left
        else:
            break
    return values[rank]
