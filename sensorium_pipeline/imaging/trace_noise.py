"""Noise of a trace within a frame, from its power spectrum.

Noise is flat, calcium falls: so the noise's level is read above a quarter of the frame rate, as the median over segments, which leaves
bouts of activity out. A trace that was resampled from a lower rate holds nothing in the upper part of its spectrum; the noise is then
read from the highest plateau below it, whose end tells the former rate. Linear interpolation leaves some of it, but is known by its kinks.
"""

import functools

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

SEGMENT = 256  # frames of a segment
FEWEST_FRAMES = 8  # for a spectrum
SLOWEST_NOISE = 2.0  # Hz: no plateau of the spectrum below is called noise
EMPTY, ABOVE = 0.01, 1.3  # of the plateau: less is left of a resampled trace within an octave above its former rate, times this
MOST_FILLED, MARGIN = 0.67, 1.1  # of the spectrum that a resampled trace fills; by how much it seems to fill more
MANY_SEGMENTS = 20  # so many need not overlap
MEDIAN_OF_POWER = float(np.log(2))  # the median of a chi-squared variable of two degrees, over its mean
STRAIGHT = 0.04  # of the mean of the second differences: so small are those between the kinks
MOST_BENT, REGULAR, FEWEST_KINKS = 0.75, 0.8, 20  # of the frames at a kink; of the kinks that follow each other evenly; in a trace


def noise_level(traces: NDArray[np.float32], frame_rate: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Noise of traces (neurons, frames), NaN where a frame is missing, and whether they were resampled.

    Missing frames are left out: noise that is white remains so, and calcium that moved on meanwhile is a rare step.

    Returns:
        (neurons,) standard deviation of the noise within a frame, and (neurons,) into how many frames one was resampled at most, 1 if none.
    """
    level, resampled = np.zeros(len(traces)), np.ones(len(traces), np.int64)
    for neuron, trace in enumerate(traces):
        missing = np.isnan(trace)
        known = trace[~missing] if missing.any() else trace
        length = min(SEGMENT, len(known))
        if length >= FEWEST_FRAMES:
            segments = _segments(known, length)
            transform = scipy.fft.rfft((segments - segments.mean(1, keepdims=True)) * _window(length), axis=1)
            slowest = max(int(min(SLOWEST_NOISE / frame_rate, 1.0) * length), 4)
            variance, filled = _white_level(_typical(transform), slowest)
            level[neuron], resampled[neuron] = np.sqrt(variance), max(filled, _kinks(known))
        elif length > 2:
            level[neuron] = np.sqrt(np.mean(np.diff(known.astype(np.float64)) ** 2) / 2)
    return level, resampled


def _segments(known: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Segments (segments, length) of the known frames of one trace, half-overlapping unless many."""
    step = length if len(known) >= MANY_SEGMENTS * length else length // 2
    return np.lib.stride_tricks.sliding_window_view(known, length)[::step]


@functools.cache
def _window(length: int) -> NDArray[np.float32]:
    """Window (length,) that falls to zero at both ends, and with which power spectra are variances."""
    window = np.hanning(length + 2)[1:-1]
    return (window / np.sqrt(np.mean(window**2) * length)).astype(np.float32)


def _typical(transform: NDArray[np.complex64]) -> NDArray[np.float64]:
    """(frequencies,) power of Fourier transforms (segments, frequencies): the mean that a median stands for, the mean of one or two."""
    power = np.ascontiguousarray((transform.real**2 + transform.imag**2).T)
    if len(transform) < 3:
        return power.mean(1, dtype=np.float64)
    middle = len(transform) // 2
    return np.partition(power, middle, axis=1)[:, middle].astype(np.float64) / MEDIAN_OF_POWER


@numba.njit(nogil=True, cache=True)
def _white_level(spectrum, slowest):  # type: ignore[no-untyped-def]
    """Variance of white noise within a frame, and resampling, from a one-sided power spectrum with a plateau not below index `slowest`."""
    half = len(spectrum) - 1
    top, filled, level = half, half, 0.0
    # Calcium falls by four or more an octave where it still falls; noise is flat. The empty end of an interpolated trace may be flat
    # too, but then lies far below the plateau of the noise.
    while top // 2 >= slowest:
        middle = round(top / np.sqrt(2))
        plateau = spectrum[top // 2 : top].mean()
        if spectrum[middle:top].mean() > 0.6 * spectrum[top // 2 : middle].mean() and plateau > 5 * level:
            level, filled = plateau, top
        top = int(0.9 * top)
    if level == 0:
        return spectrum[half // 2 : half].mean(), 1
    # Noise of a resampled trace fills only the lower frequencies, and ends where calcium would fall by much less.
    resampled = filled < MOST_FILLED * half and np.median(spectrum[int(ABOVE * filled) : min(2 * filled, half)]) < EMPTY * level
    return level * filled / half, int(np.ceil(MARGIN * half / filled)) if resampled else 1


@numba.njit(nogil=True, cache=True)
def _kinks(trace):  # type: ignore[no-untyped-def]
    """Frames of a trace from one kink to the next, at most, where it is straight in between; 1 for other traces."""
    frames = len(trace) - 2
    bends = np.empty(max(frames, 0), np.float32)
    total, bent = 0.0, 0
    for frame in range(frames):
        bends[frame] = abs(trace[frame] - 2 * trace[frame + 1] + trace[frame + 2])
        total += bends[frame]
    bound = STRAIGHT * total / max(frames, 1)
    for frame in range(frames):
        bent += bends[frame] > bound
    if bent > MOST_BENT * frames:
        return 1
    # A kink bends up to two neighbouring differences.
    kinks = np.array([frame for frame in range(1, frames) if bends[frame] > bound and bends[frame - 1] <= bound])
    if len(kinks) < FEWEST_KINKS:
        return 1
    apart = (kinks[-1] - kinks[0]) / (len(kinks) - 1)
    even = np.sum(np.abs(kinks[1:] - kinks[:-1] - apart) <= 1)
    return int(np.ceil(apart - 0.1)) if even > REGULAR * (len(kinks) - 1) else 1
