"""From activity over time to one response a trial, on the clock of every neuron.

A neuron is not scanned at the time stamp of its volume but a plane delay and a line delay later. Its sample i, taken at time t[i], carries
the calcium added since sample i - 1, so it stands for the interval (t[i-1], t[i]]. The response to a trial is the sum of activity over
the response window, in which the samples at both ends count with the share of their interval that lies inside. It is not multiplied
by the frame time: a response is an amount of activity. The window of 50 to 550 ms after the onset is that of SENSORIUM 2022.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError

RESPONSE_WINDOW = (0.05, 0.55)  # s after the onset
LOST_FRAME = 1.5  # an interval longer than this many median intervals holds a lost frame
LEAST_SAMPLES = 0.5  # share of a window's pupil or treadmill samples that must be there

Times = NDArray[np.float64]


def sample_delays(mean_lines: NDArray[np.floating[Any]], plane_delay: float, line_period: float) -> Times:
    """Seconds from a volume's time stamp to each neuron's sample (neurons,); `mean_lines` is the mean line (y) of every footprint."""
    return plane_delay + line_period * np.asarray(mean_lines, np.float64)


def sample_edges(frame_times: Times) -> Times:
    """Borders of the intervals that samples stand for (frames + 1,), s; the first interval is as long as the second.

    Raises:
        InputError: with fewer than two frames, or times that do not ascend.
    """
    frame_times = np.asarray(frame_times, np.float64)
    if len(frame_times) < 2:
        raise InputError(f"holds {len(frame_times)} frame(s)", where="frame times", advice="At least two frames are needed.")
    if not (np.diff(frame_times) > 0).all():
        raise InputError("the times do not ascend", where="frame times", advice="Check the scan headers of the recording.")
    return np.concatenate([[2 * frame_times[0] - frame_times[1]], frame_times])


def responses(
    activity: NDArray[np.float32],
    frame_times: Times,
    delays: Times,
    onsets: Times,
    window: tuple[float, float] = RESPONSE_WINDOW,
) -> NDArray[np.float32]:
    """Response of every neuron to every trial.

    Args:
        activity: (neurons, frames), deconvolved activity of a frame, NaN where a frame is flagged.
        frame_times: (frames,) s, time stamps of the volumes.
        delays: (neurons,) s, from the time stamp to the neuron's own sample.
        onsets: (trials,) s.
        window: start and stop of the response window, s after the onset.

    Returns:
        (trials, neurons) float32, in units of activity; NaN where a window touches a NaN sample or leaves the recording.

    Raises:
        InputError: when shapes disagree, times do not ascend, or the window is empty.
    """
    edges = sample_edges(frame_times)
    if window[1] <= window[0]:
        raise InputError(f"the window {window} is empty", where="response window", advice="Its stop must lie after its start.")
    if activity.shape != (len(delays), len(frame_times)):
        expected = (len(delays), len(frame_times))
        raise InputError(f"has shape {activity.shape}, expected (neurons, frames) = {expected}", where="activity")
    result = np.empty((len(onsets), len(delays)), np.float32)
    onsets = np.asarray(onsets, np.float64)
    for neuron, delay in enumerate(np.asarray(delays, np.float64)):  # a neuron at a time: activity may lie on disk
        trace = np.asarray(activity[neuron], np.float32)
        _sum_over_windows(trace, edges, onsets + (window[0] - delay), onsets + (window[1] - delay), result[:, neuron])
    return result


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _sum_over_windows(
    trace: NDArray[np.float32], edges: Times, starts: Times, stops: Times, result: NDArray[np.float32]
) -> None:  # pragma: no cover - compiled
    sample, last = 0, len(trace) - 1
    for trial in range(len(starts)):
        start, stop = starts[trial], stops[trial]
        if not (start >= edges[0] and stop <= edges[last + 1]):
            result[trial] = np.nan
            continue
        while sample > 0 and edges[sample] > start:
            sample -= 1
        while sample < last and edges[sample + 1] <= start:
            sample += 1
        total, index = 0.0, sample
        while index <= last and edges[index] < stop:
            left, right = max(start, edges[index]), min(stop, edges[index + 1])
            total += trace[index] * ((right - left) / (edges[index + 1] - edges[index]))
            index += 1
        result[trial] = total


def lost_frames(frame_times: Times) -> NDArray[np.bool_]:
    """Whether frames are missing between a frame and the one before it (frames,)."""
    intervals = np.diff(np.asarray(frame_times, np.float64))
    if not len(intervals):
        return np.zeros(len(frame_times), np.bool_)
    return np.concatenate([[False], intervals > LOST_FRAME * np.median(intervals)])


def spoiled_samples(flagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Flagged samples and the one after each run of them, which carries the activity of the whole run (frames,)."""
    return flagged | np.concatenate([[False], flagged[:-1]])


def touches(
    samples: NDArray[np.bool_],
    frame_times: Times,
    delays: Times,
    onsets: Times,
    window: tuple[float, float] = RESPONSE_WINDOW,
) -> NDArray[np.bool_]:
    """Whether the window of a trial touches one of the marked samples, for any of the neurons (trials,)."""
    if not len(delays):
        return np.zeros(len(onsets), np.bool_)
    edges = sample_edges(frame_times)
    starts, stops = onsets + window[0] - np.max(delays), onsets + window[1] - np.min(delays)
    first = np.clip(np.searchsorted(edges, starts, side="right") - 1, 0, len(samples))
    beyond = np.clip(np.searchsorted(edges, stops, side="left"), 0, len(samples))
    counts = np.concatenate([[0], np.cumsum(samples)])
    return counts[np.maximum(beyond, first)] > counts[first]


def outside(frame_times: Times, delays: Times, onsets: Times, window: tuple[float, float] = RESPONSE_WINDOW) -> NDArray[np.bool_]:
    """Whether the window of a trial leaves what was recorded of any of the neurons (trials,); an onset that is NaN is outside."""
    edges = sample_edges(frame_times)
    late, early = (float(np.max(delays)), float(np.min(delays))) if len(delays) else (0.0, 0.0)
    return ~((onsets + window[0] - late >= edges[0]) & (onsets + window[1] - early <= edges[-1]))


def window_means(
    time: Times, values: Times, onsets: Times, window: tuple[float, float] = RESPONSE_WINDOW
) -> tuple[Times, NDArray[np.float64]]:
    """Mean of a table's values over the window of every trial.

    Args:
        time: (samples,) s, ascending.
        values: (samples, columns); NaN where a value is missing.
        onsets: (trials,) s.
        window: start and stop, s after the onset; samples at start <= time < stop count.

    Returns:
        means: (trials, columns), NaN where a window holds no value.
        present: (trials, columns), values there over values expected of the table's median interval.

    Raises:
        InputError: with fewer than two samples, or times that do not ascend.
    """
    if len(time) < 2 or not (np.diff(time) > 0).all():
        raise InputError(
            "needs at least two samples at ascending times", where="a table of behaviour", advice="Check the file's time column."
        )
    there = np.isfinite(values)
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(np.where(there, values, 0.0), axis=0)])
    counts = np.concatenate([np.zeros((1, values.shape[1]), np.int64), np.cumsum(there, axis=0)])
    first, beyond = (np.searchsorted(time, onsets + edge, side="left") for edge in window)
    count = counts[beyond] - counts[first]
    means = np.full(count.shape, np.nan)
    np.divide(sums[beyond] - sums[first], count, out=means, where=count > 0)
    expected = (window[1] - window[0]) / float(np.median(np.diff(time)))
    return means, count / expected


def rate_of_change(time: Times, values: Times) -> Times:
    """Derivative (samples,) of values by time, second-order differences; NaN beside a missing value."""
    if len(time) < 2:
        return np.full(len(time), np.nan)
    return np.asarray(np.gradient(values, time), np.float64)
