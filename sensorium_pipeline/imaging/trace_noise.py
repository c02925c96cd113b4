"""Noise of a trace within a frame, from its power spectrum.

Noise is flat, calcium falls: so the noise's level is read above a quarter of the frame rate, as the median over segments, which leaves
bouts of activity out. A trace that was resampled from a lower rate holds nothing in the upper part of its spectrum; the noise is then
read from the highest plateau below it.
"""

import functools

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

SEGMENT = 256  # frames of a segment
FEWEST_FRAMES = 8  # for a spectrum
SLOWEST_NOISE = 2.0  # Hz: no plateau of the spectrum below is called noise
MANY_SEGMENTS = 20  # so many need not overlap
MEDIAN_OF_POWER = float(np.log(2))  # the median of a chi-squared variable of two degrees, over its mean


def noise_level(traces: NDArray[np.float32], frame_rate: float) -> NDArray[np.float64]:
    """(neurons,) standard deviation of the noise within a frame of traces (neurons, frames), NaN where a frame is missing.

    Missing frames are left out: noise that is white remains so, and calcium that moved on meanwhile is a rare step.
    """
    level = np.zeros(len(traces))
    for neuron, trace in enumerate(traces):
        missing = np.isnan(trace)
        known = trace[~missing] if missing.any() else trace
        length = min(SEGMENT, len(known))
        if length >= FEWEST_FRAMES:
            segments = _segments(known, length)
            transform = scipy.fft.rfft((segments - segments.mean(1, keepdims=True)) * _window(length), axis=1)
            slowest = max(int(min(SLOWEST_NOISE / frame_rate, 1.0) * length), 4)
            level[neuron] = np.sqrt(_white_level(_typical(transform), slowest))
        elif length > 2:
            level[neuron] = np.sqrt(np.mean(np.diff(known.astype(np.float64)) ** 2) / 2)
    return level


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
    """Variance of white noise within a frame, from a one-sided power spectrum, of a plateau not below the index `slowest`."""
    half = len(spectrum) - 1
    top, level, variance = half, 0.0, 0.0
    # Calcium falls by four or more an octave where it still falls; noise is flat. The empty end of an interpolated trace may be flat
    # too, but then lies far below the plateau of the noise.
    while top // 2 >= slowest:
        middle = round(top / np.sqrt(2))
        plateau = spectrum[top // 2 : top].mean()
        if spectrum[middle:top].mean() > 0.6 * spectrum[top // 2 : middle].mean() and plateau > 5 * level:
            # Noise of a resampled trace fills only the lower `top` of `half` frequencies.
            level, variance = plateau, plateau * top / half
        top = int(0.9 * top)
    return variance if level > 0 else spectrum[half // 2 : half].mean()
