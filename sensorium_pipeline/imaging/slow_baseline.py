"""The slow baseline of a trace: a low percentile over a running window, as brain and laser drift within minutes."""

import numpy as np
from numpy.typing import NDArray

WINDOW, STEP, BIN = 60.0, 15.0, 0.2  # s; the percentile is taken of means over bins, which photon noise hardly moves
PERCENTILE = 10.0
FEWEST_BINS = 4  # of a window


def slow_baseline(traces: NDArray[np.float32], frame_rate: float) -> NDArray[np.float32]:
    """(neurons, frames) float32 baseline of traces (neurons, frames), NaN where a frame is missing.

    It is zero for traces shorter than two windows, where activity and drift cannot be told apart.
    """
    neurons, frames = traces.shape
    baseline = np.zeros((neurons, frames), np.float32)
    size = max(round(BIN * frame_rate), 1)
    window, step = int(WINDOW * frame_rate) // size, max(int(STEP * frame_rate) // size, 1)
    bins = frames // size
    if window < FEWEST_BINS or bins < 2 * window:
        return baseline
    binned = traces[:, : bins * size].reshape(neurons, bins, size)
    known = ~np.isnan(binned)
    count = known.sum(2)
    means = np.where(count > 0, np.sum(binned, axis=2, where=known) / np.maximum(count, 1), np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(means, window, axis=1)[:, ::step]
    centres = (np.arange(windows.shape[1]) * step + window / 2) * size - 0.5
    enough = np.isfinite(windows).sum(2) >= window / 4
    # Unknown bins sort to the end.
    ranks = (PERCENTILE / 100 * np.isfinite(windows).sum(2)).astype(int)
    values = np.take_along_axis(np.sort(windows, axis=2), ranks[:, :, None], axis=2)[:, :, 0]
    time = np.arange(frames)
    for neuron in np.flatnonzero(enough.any(1)):
        baseline[neuron] = np.interp(time, centres[enough[neuron]], values[neuron, enough[neuron]])
    return baseline
