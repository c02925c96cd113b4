"""From dF/F to activity: OASIS with autoregressive calcium of first or second order.

Friedrich, Zhou and Paninski, Fast online deconvolution of calcium imaging data, PLoS Computational Biology 2017. Calcium follows
c[t] = g1 c[t-1] + g2 c[t-2] + s[t] with s >= 0, and the trace is y = baseline + c + noise. The sum of s is made as small as the noise
permits: the residual's variance equals the noise's. Everything an estimate needs comes from the trace itself: the noise from the flat
upper end of its spectrum, the time constants from its autocovariance, held within what indicators show.

Frames that are NaN (flagged for motion) carry no evidence: calcium decays through them, and what rose meanwhile appears as activity of
the first frame after them. They stay NaN in the results.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError

SEGMENT = 256  # frames of a segment of the power spectrum
SLOWEST_NOISE = 2.0  # Hz: no plateau of the spectrum below is called noise
LAGS = 5  # lags of the autocovariance beyond the order that the time constants are fitted to
BLOCK = 16  # traces a thread solves at a time
SHRINKS, SHRINK = 12, 0.85  # at most so often, by how much, time constants are shortened
PASSES = 12  # at most so many solutions while the penalty is sought
MEDIAN_OF_POWER = float(np.log(2))  # the median of a chi-squared variable of two degrees, over its mean


class DeconvolutionParameters(BaseModel):
    """Parameters of the deconvolution.

    Attributes:
        order: order of the calcium's autoregression: 1 is an exponential decay, 2 adds a finite rise.
        decay: limits of the decay time constant, s: what calcium indicators show.
        rise: limits of the rise time constant, s.
    """

    model_config = ConfigDict(frozen=True)

    order: Literal[1, 2] = 2
    decay: tuple[float, float] = (0.2, 2.5)
    rise: tuple[float, float] = (0.01, 0.2)


@dataclass(frozen=True)
class Deconvolution:
    """Activity inferred from traces.

    Attributes:
        activity: (neurons, frames) float32, >= 0: the calcium a frame's activity adds, in the trace's units; NaN where the trace is.
        denoised: (neurons, frames) float32, the calcium without noise and baseline; NaN where the trace is.
        baseline: (neurons,) float32, what was subtracted from the trace.
        noise: (neurons,) float32, standard deviation of the noise within a frame.
        time_constants: (neurons, order) float32, s: the decay, and for order 2 the rise.
        penalty: (neurons,) float32, the L1 penalty with which the residual equals the noise.
    """

    activity: NDArray[np.float32]
    denoised: NDArray[np.float32]
    baseline: NDArray[np.float32]
    noise: NDArray[np.float32]
    time_constants: NDArray[np.float32]
    penalty: NDArray[np.float32]


def deconvolve(
    dff: NDArray[np.float32], frame_rate: float, parameters: DeconvolutionParameters = DeconvolutionParameters()
) -> Deconvolution:
    """Infer activity from traces.

    Args:
        dff: (neurons, frames) dF/F or any other trace in which activity adds; NaN where a frame is missing.
        frame_rate: Hz.
        parameters: what is known of the indicator.

    Returns:
        the activity and what it was inferred with. A trace that is constant or all NaN gives zero activity (NaN where it is NaN).

    Raises:
        InputError: the traces are not a table of numbers, hold infinity, or the frame rate is not a positive number.
    """
    traces = _checked(dff, frame_rate)
    neurons, frames = traces.shape
    noise = noise_level(traces, frame_rate)
    constants = _time_constants(traces, noise, frame_rate, parameters)
    # The decay and rise as factors a frame; for order 1 a rise of no frames at all.
    factors = np.zeros((neurons, 2))
    factors[:, : parameters.order] = np.exp(-1.0 / (constants * frame_rate))
    activity = np.empty((neurons, frames), np.float32)
    denoised = np.empty((neurons, frames), np.float32)
    fitted = np.zeros((neurons, 2), np.float32)
    # Threads of our own rather than numba's, whose pool must not be entered twice at a time nor survive a fork.
    blocks = [slice(start, start + BLOCK) for start in range(0, neurons, BLOCK)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda b: _solve_all(traces[b], factors[b], noise[b], activity[b], denoised[b], fitted[b]), blocks))
    return Deconvolution(
        activity=activity,
        denoised=denoised,
        baseline=fitted[:, 0],
        noise=noise.astype(np.float32),
        time_constants=(-1.0 / (np.log(factors[:, : parameters.order]) * frame_rate)).astype(np.float32),
        penalty=fitted[:, 1],
    )


def noise_level(traces: NDArray[np.float32], frame_rate: float) -> NDArray[np.float64]:
    """Standard deviation of the noise within a frame of traces (neurons, frames), from the spectrum above a quarter of the rate.

    The median over segments leaves bouts of activity out. Where a trace was resampled from a lower rate, the upper end of its spectrum
    is empty; then the noise is read from the highest plateau below.
    """
    neurons, frames = traces.shape
    length = min(SEGMENT, frames)
    if length < 8:
        return (
            np.nan_to_num(np.nanstd(np.diff(traces.astype(np.float64), axis=1), axis=1) / np.sqrt(2)) if frames > 2 else np.zeros(neurons)
        )
    window = np.hanning(length + 2)[1:-1]
    window /= np.sqrt(np.mean(window**2))
    level = np.zeros(neurons)
    for neuron in range(neurons):
        segments = _segments(traces[neuron], length)
        if len(segments) == 0:
            continue
        segments = (segments - segments.mean(1, keepdims=True)) * window.astype(np.float32)
        power = np.abs(scipy.fft.rfft(segments, axis=1)) ** 2 / length
        spectrum = np.median(power, axis=0) / MEDIAN_OF_POWER if len(segments) > 2 else power.mean(0)
        level[neuron] = _white_level(spectrum, int(SLOWEST_NOISE / frame_rate * length))
    return np.sqrt(level)


def _segments(trace: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Half-overlapping segments (segments, length) of one trace, gaps filled linearly, mostly missing segments left out."""
    missing = np.isnan(trace)
    if missing.all():
        return np.empty((0, length), np.float32)
    if missing.any():
        known = np.flatnonzero(~missing)
        trace = np.interp(np.arange(len(trace)), known, trace[known]).astype(np.float32)
    step = max(length // 2, 1)
    segments = np.lib.stride_tricks.sliding_window_view(trace, length)[::step]
    good = np.lib.stride_tricks.sliding_window_view(missing, length)[::step].mean(1) < 0.1
    return segments[good] if good.any() else segments


def _white_level(spectrum: NDArray[np.float64], slowest: int) -> float:
    """Variance of white noise within a frame from a one-sided power spectrum, of a plateau not below the index `slowest`."""
    half = len(spectrum) - 1
    top, level, variance = half, 0.0, 0.0
    # Calcium falls by four or more an octave where it still falls; noise is flat. The empty end of an interpolated trace may be flat
    # too, but then lies far below the plateau of the noise.
    while top // 2 >= max(slowest, 4):
        middle = round(top / np.sqrt(2))
        plateau = spectrum[top // 2 : top].mean()
        if spectrum[middle:top].mean() > 0.6 * spectrum[top // 2 : middle].mean() and plateau > 5 * level:
            # Noise of a resampled trace fills only the lower `top` of `half` frequencies.
            level, variance = plateau, float(plateau * top / half)
        top = int(0.9 * top)
    return variance if level > 0 else float(spectrum[half // 2 : half].mean())


def _time_constants(
    traces: NDArray[np.float32], noise: NDArray[np.float64], frame_rate: float, parameters: DeconvolutionParameters
) -> NDArray[np.float64]:
    """Decay (and rise) of each trace in s, from its autocovariance (Pnevmatikakis et al. 2016), within the indicator's limits."""
    order = parameters.order
    limits = np.array([parameters.decay, parameters.rise][:order])
    lags = LAGS + order
    constants = np.empty((len(traces), order))
    for neuron, trace in enumerate(traces):
        covariance = _autocovariance(trace, lags)
        roots = _roots(covariance, float(noise[neuron]) ** 2, order)
        times = np.array([-1.0 / (np.log(root) * frame_rate) for root in roots])
        constants[neuron] = np.clip(times, limits[:, 0], limits[:, 1])
    return constants


def _autocovariance(trace: NDArray[np.float32], lags: int) -> NDArray[np.float64]:
    """Autocovariance at lags 0 to `lags` over the pairs of frames that are both known."""
    known = ~np.isnan(trace)
    if not known.any():
        return np.zeros(lags + 1)
    centred = np.where(known, trace - np.mean(trace[known], dtype=np.float64), 0.0)
    result = np.zeros(lags + 1)
    for lag in range(min(lags, len(trace) - 1) + 1):
        stop = len(trace) - lag
        pairs = np.count_nonzero(known[:stop] & known[lag:])
        result[lag] = centred[:stop] @ centred[lag:] / max(pairs, 1)
    return result


def _roots(covariance: NDArray[np.float64], noise_variance: float, order: int) -> NDArray[np.float64]:
    """Roots of the autoregression in (0, 1), largest first."""
    tiny = 1e-9
    lags = len(covariance) - 1
    index = np.abs(np.arange(1, lags + 1)[:, None] - np.arange(1, order + 1)[None])
    design = covariance[index] - noise_variance * (index == 0)
    coefficients = np.linalg.lstsq(design, covariance[1:], rcond=None)[0]
    roots = np.roots(np.concatenate([[1.0], -coefficients]))
    real = np.sort(np.clip(np.real(np.concatenate([roots, np.full(order - len(roots), tiny)])), tiny, 1 - tiny))
    return real[::-1]


def _checked(dff: NDArray[np.float32], frame_rate: float) -> NDArray[np.float32]:
    """The traces as C-contiguous float32."""
    if not np.isfinite(frame_rate) or frame_rate <= 0:
        raise InputError(f"the frame rate is {frame_rate}", where="frame_rate", advice="Give frames per second, a positive number.")
    traces = np.asarray(dff)
    if traces.ndim != 2 or traces.dtype.kind not in "fiu":
        raise InputError(
            f"traces must be numbers of shape (neurons, frames), not {traces.dtype} of shape {traces.shape}",
            where="traces",
            advice="Give a two-dimensional array with one row a neuron.",
        )
    traces = np.ascontiguousarray(traces, np.float32)
    if np.isinf(traces).any():
        neuron = int(np.flatnonzero(np.isinf(traces).any(1))[0])
        raise InputError("a trace holds infinity", where=f"traces[{neuron}]", advice="Write NaN where a frame is missing.")
    return traces


@numba.njit(nogil=True, cache=True)
def _solve(trace, decay, rise, drop, calcium, jumps, start, sums):  # type: ignore[no-untyped-def]
    """Calcium and jumps of one trace once `drop` (baseline and penalty) is subtracted; missing frames carry no evidence.

    Pools of frames without activity inside, as in OASIS. Calcium k frames into a pool that starts with v after u is
    v (decay^(k+1) - rise^(k+1)) - u decay rise (decay^k - rise^k), over (decay - rise). Five sums over a pool are therefore
    enough for its best v, and those of two neighbours combine in constant time.
    `start`: (frames + 1,) int64 and `sums`: (frames, 9) are room to work in.
    """
    frames = len(trace)
    span = decay - rise
    pools = 0
    for frame in range(frames):
        # sums: 0 decay^k y, 1 rise^k y, 2 decay^2k, 3 (decay rise)^k, 4 rise^2k, 5 decay^length, 6 rise^length, 7 last, 8 last but one
        known = not np.isnan(trace[frame])
        start[pools] = frame
        weight = 1.0 if known else 0.0
        value = trace[frame] - drop if known else 0.0
        sums[pools, 0] = value
        sums[pools, 1] = value
        sums[pools, 2] = weight
        sums[pools, 3] = weight
        sums[pools, 4] = weight
        sums[pools, 5] = decay
        sums[pools, 6] = rise
        while True:
            before = sums[pools - 1, 7] if pools > 0 else 0.0
            before_that = sums[pools - 1, 8] if pools > 0 else 0.0
            energy = (decay * decay * sums[pools, 2] - 2 * decay * rise * sums[pools, 3] + rise * rise * sums[pools, 4]) / (span * span)
            projected = (decay * sums[pools, 0] - rise * sums[pools, 1]) / span
            cross = (decay * sums[pools, 2] - (decay + rise) * sums[pools, 3] + rise * sums[pools, 4]) / (span * span)
            silent = (decay + rise) * before - decay * rise * before_that
            first = (projected + before * decay * rise * cross) / energy if energy > 1e-12 else 0.0
            if pools > 0 and (first <= silent or energy <= 1e-12):
                # No activity in the pool's first frame: it belongs to the pool before.
                pools -= 1
                for k in range(2):
                    sums[pools, k] += sums[pools, 5 + k] * sums[pools + 1, k]
                sums[pools, 2] += sums[pools, 5] ** 2 * sums[pools + 1, 2]
                sums[pools, 3] += sums[pools, 5] * sums[pools, 6] * sums[pools + 1, 3]
                sums[pools, 4] += sums[pools, 6] ** 2 * sums[pools + 1, 4]
                sums[pools, 5] *= sums[pools + 1, 5]
                sums[pools, 6] *= sums[pools + 1, 6]
                continue
            first = max(first, 0.0)
            # Calcium in the last and the last but one frame of the pool.
            d, r = sums[pools, 5], sums[pools, 6]
            length = frame - start[pools] + 1
            if length == 1:
                sums[pools, 7] = first
                sums[pools, 8] = before
            else:
                d1, r1 = d / decay, (r / rise if rise > 0 else 0.0)
                last = (first * (d - r) - before * decay * rise * (d1 - r1)) / span
                if length == 2:
                    but_one = first
                else:
                    d2, r2 = d1 / decay, (r1 / rise if rise > 0 else 0.0)
                    but_one = (first * (d1 - r1) - before * decay * rise * (d2 - r2)) / span
                sums[pools, 7] = max(last, 0.0)
                sums[pools, 8] = max(but_one, 0.0)
            jumps[start[pools]] = first - silent
            break
        pools += 1
    start[pools] = frames
    pool = 0
    before, before_that = 0.0, 0.0
    for frame in range(frames):
        silent = (decay + rise) * before - decay * rise * before_that
        if frame == start[pool]:
            pool += 1
            jumps[frame] = max(jumps[frame], 0.0)
        else:
            jumps[frame] = 0.0
        calcium[frame] = max(silent + jumps[frame], 0.0)
        before_that = before
        before = calcium[frame]


@numba.njit(nogil=True, cache=True)
def _residual(trace, calcium):  # type: ignore[no-untyped-def]
    """Mean and variance of what the calcium leaves of the trace, over the known frames."""
    count, total, squares = 0, 0.0, 0.0
    for frame in range(len(trace)):
        if not np.isnan(trace[frame]):
            rest = trace[frame] - calcium[frame]
            count += 1
            total += rest
            squares += rest * rest
    mean = total / max(count, 1)
    return mean, squares / max(count, 1) - mean * mean


@numba.njit(nogil=True, cache=True)
def _solve_all(traces, factors, noise, activity, denoised, fitted):  # type: ignore[no-untyped-def]
    """Solve every trace, with the penalty sought by bisection over what is subtracted (baseline and penalty are one number)."""
    neurons, frames = traces.shape
    for neuron in range(neurons):
        trace = traces[neuron]
        decay, rise = factors[neuron, 0], min(factors[neuron, 1], 0.999 * factors[neuron, 0])
        calcium = np.zeros(frames)
        jumps = np.zeros(frames)
        start = np.empty(frames + 1, np.int64)
        sums = np.empty((frames, 9))
        mean, variance = _residual(trace, calcium)
        target = noise[neuron] ** 2
        flat = not (variance > 1e-12 * (mean * mean + 1e-30))
        low = np.inf
        for frame in range(frames):
            if trace[frame] < low:
                low = trace[frame]
        if not flat and target < variance:
            # A kernel too slow for the trace leaves more than the noise even without a penalty: bursts lengthen the autocovariance.
            for _ in range(SHRINKS):
                _solve(trace, decay, rise, low, calcium, jumps, start, sums)
                if _residual(trace, calcium)[1] <= 4 * target:
                    break
                decay, rise = decay ** (1 / SHRINK), rise ** (1 / SHRINK)
            factors[neuron, 0], factors[neuron, 1] = decay, rise
            high = mean + 3 * np.sqrt(variance)
            # The residual's variance grows with what is subtracted.
            base = mean
            drop = mean
            for _ in range(PASSES):
                _solve(trace, decay, rise, drop, calcium, jumps, start, sums)
                base, rest = _residual(trace, calcium)
                if abs(rest - target) < 0.005 * target:
                    break
                if rest > target:
                    high = drop
                else:
                    low = drop
                drop = 0.5 * (low + high)
            mean = base
            fitted[neuron, 1] = max(drop - base, 0.0) / ((1 - decay) * (1 - rise))
        fitted[neuron, 0] = mean
        for frame in range(frames):
            gone = np.isnan(trace[frame])
            activity[neuron, frame] = np.nan if gone else jumps[frame]
            denoised[neuron, frame] = np.nan if gone else calcium[frame]
