"""From dF/F to activity: OASIS with autoregressive calcium of first or second order, every constant taken from the trace itself.

A trace is a slow baseline, calcium and white noise. The baseline is a running low percentile (and a constant, fitted together with the
calcium); the noise comes from the spectrum (`trace_noise`) less what calcium adds to it there, with the time constants
(`calcium_kinetics`), and the activity is the sparsest that leaves the noise's variance (`oasis`). A spike falls anywhere in its frame and
the frame integrates, so that activity comes late by a known part of a frame, by which it is moved back (`Kinetics.late`). It stays
proportional to the calcium: that indicators answer a burst more than proportionally (Chen et al., Nature 2013) is not undone.

What is fixed here was chosen on simulated traces with DS09, DS14, DS16 and half of the other data sets of the Cascade collection in view:
none of these is an untouched test of the method.

A trace that was resampled to a higher rate is brought back: in what was put between its frames there is neither evidence nor time.

Frames that are NaN (flagged for motion) carry no evidence: calcium decays through them, what rises meanwhile is theirs, and they stay
NaN in the results.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.calcium_kinetics import Kinetics, estimate_kinetics
from sensorium_pipeline.imaging.oasis import explain, kernel_height, leave_out_unseen
from sensorium_pipeline.imaging.slow_baseline import slow_baseline
from sensorium_pipeline.imaging.trace_noise import noise_level

BLOCK = 16  # traces a thread solves at a time
MOST_NOISE = 0.9  # of a trace's variance: so little is left to explain in a trace that looks like noise alone
LEAST_NOISE = 1e-6  # likewise: a trace that was made without noise is explained as well
FLAT = 1e-12  # of the squared mean: no more variance than rounding leaves
KINETICS_RATE, KINETICS_FRAMES = 25.0, 256  # Hz, frames: no fewer tell the time constants
SLOWEST, FASTEST = 1e-4, 1e6  # Hz: beyond lies no frame rate but a mistaken unit


class DeconvolutionParameters(BaseModel):
    """Parameters of the deconvolution.

    Attributes:
        order: order of the calcium's autoregression: 1 is an exponential decay, 2 adds a finite rise.
        decay: limits of the decay time constant, s: what calcium indicators show. Equal limits fix it.
        rise: limits of the rise time constant, s. Equal limits fix it.
    """

    model_config = ConfigDict(frozen=True)

    order: Literal[1, 2] = 2
    decay: tuple[float, float] = (0.1, 2.5)
    rise: tuple[float, float] = (0.005, 0.2)


@dataclass(frozen=True)
class Deconvolution:
    """Activity inferred from traces.

    Attributes:
        activity: (neurons, frames) float32, >= 0: the height of the transient that a frame's activity makes, in the trace's units; NaN
            where the trace is. Zero in the first frame, whose calcium may be older, and in the last, which show too little of a transient.
        denoised: (neurons, frames) float32, the calcium without noise and baseline; NaN where the trace is.
        baseline: (neurons, frames) float32, what was subtracted from the trace.
        noise: (neurons,) float32, standard deviation of the noise within a frame, of a resampled trace within a former one.
        time_constants: (neurons, order) float32, s: the decay, and for order 2 the rise.
        penalty: (neurons,) float32, what the sparseness of the activity takes from the trace besides its baseline.
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
        dff: (neurons, frames) dF/F or any other trace in which activity adds, in any unit; NaN where a frame is missing.
        frame_rate: Hz.
        parameters: what is known of the indicator.

    Returns:
        the activity and what it was inferred with. A trace that is constant or all NaN gives zero activity (NaN where it is NaN).

    Raises:
        InputError: the traces are not a table of numbers, hold infinity or numbers whose squares are, or the frame rate is none.
    """
    dff = np.asarray(dff)
    _check(dff, frame_rate)
    neurons, frames = dff.shape
    result = Deconvolution(
        activity=np.zeros((neurons, frames), np.float32),
        denoised=np.zeros((neurons, frames), np.float32),
        baseline=np.zeros((neurons, frames), np.float32),
        noise=np.zeros(neurons, np.float32),
        time_constants=np.zeros((neurons, parameters.order), np.float32),
        penalty=np.zeros(neurons, np.float32),
    )

    def infer(start: int) -> None:
        block = slice(start, start + BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is told from the trace's moments
            traces, offset = _less_offset(dff[block], start)
            slow = slow_baseline(traces, frame_rate)
            flat = traces - slow
            noises, resampled = noise_level(flat, frame_rate)
        for neuron, trace, noise, factor in zip(range(start, neurons), flat, noises, resampled, strict=False):
            _infer(trace, noise, int(factor), frame_rate, parameters, result, neuron)
        result.baseline[block] += slow + offset[:, None]

    # Threads of our own rather than numba's, whose pool must not be entered twice at a time nor survive a fork.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(infer, range(0, neurons, BLOCK)))
    return result


def _check(dff: NDArray[np.float32], frame_rate: float) -> None:
    if not SLOWEST <= frame_rate <= FASTEST:
        advice = f"Give frames per second, a number from {SLOWEST:g} to {FASTEST:g}."
        raise InputError(f"the frame rate is {frame_rate}", where="frame_rate", advice=advice)
    if dff.ndim != 2 or dff.dtype.kind not in "fiu":
        raise InputError(
            f"traces must be numbers of shape (neurons, frames), not {dff.dtype} of shape {dff.shape}",
            where="traces",
            advice="Give a two-dimensional array with one row a neuron.",
        )


def _less_offset(dff: NDArray[np.float32], first: int) -> tuple[NDArray[np.float32], NDArray[np.floating]]:
    """Traces less their means, as C-contiguous float32, and the means: a large one would take their precision. `first` is their number."""
    means = dff.mean(1, dtype=np.float64) if dff.shape[1] > 0 else np.zeros(len(dff))
    if not np.isfinite(means).all():
        known = ~np.isnan(dff)
        means = np.sum(dff, axis=1, where=known, dtype=np.float64) / np.maximum(known.sum(1), 1)
        if not np.isfinite(means).all():
            neuron = first + int(np.flatnonzero(~np.isfinite(means))[0])
            raise InputError("a trace holds infinity", where=f"traces[{neuron}]", advice="Write NaN where a frame is missing.")
    if dff.dtype == np.float32:
        means = means.astype(np.float32)  # no temporary of twice the size; means are returned as they were taken off
        return np.ascontiguousarray(dff - means[:, None]), means
    return np.subtract(dff, means[:, None], dtype=np.float64).astype(np.float32, order="C"), means


def _infer(
    trace: NDArray[np.float32],
    noise: float,
    resampled: int,
    frame_rate: float,
    parameters: DeconvolutionParameters,
    result: Deconvolution,
    neuron: int,
) -> None:
    """Fill the row `neuron` of the result from one trace (frames,) less its slow baseline, each `resampled` frames of which were one."""
    known, mean, variance = _moments(trace)
    if not np.isfinite(noise + variance):
        raise InputError("values are too large", where=f"traces[{neuron}]", advice="Give the traces in another unit, below 1e15.")
    result.noise[neuron] = noise
    result.baseline[neuron] = mean
    if variance > FLAT * mean**2:
        joined, rate = trace, frame_rate / resampled
        if resampled > 1:
            # The noise of frames that were one is the same.
            joined = _join(trace, resampled)
            noise = float(noise_level(joined[None], rate)[0][0]) or noise
        noise = float(np.clip(noise, np.sqrt(LEAST_NOISE * variance), np.sqrt(MOST_NOISE * variance)))
        kinetics = _kinetics(joined, noise, rate, parameters)
        found = explain(joined, kinetics.decay * rate, kinetics.rise * rate, kinetics.noise)
        height = kernel_height(kinetics.decay * rate, kinetics.rise * rate)
        leave_out_unseen(found.activity, joined, kinetics.decay * rate, kinetics.rise * rate)
        if resampled > 1:
            frames, activity = np.arange(len(trace)), np.zeros(len(joined), np.float32)
            _move_back(found.activity, height, kinetics.late(rate), activity)
            result.activity[neuron] = activity[frames // resampled] / resampled
            result.denoised[neuron] = np.interp((frames + 0.5) / resampled - 0.5, np.arange(len(joined)), found.calcium)
        else:
            _move_back(found.activity, height, kinetics.late(rate), result.activity[neuron])
            result.denoised[neuron] = found.calcium
        result.noise[neuron] = kinetics.noise
        result.baseline[neuron] = found.baseline
        result.time_constants[neuron] = (kinetics.decay, kinetics.rise)[: parameters.order]
        result.penalty[neuron] = max(found.subtracted - found.baseline, 0.0)
    if known < len(trace):
        missing = np.isnan(trace)
        result.activity[neuron, missing] = np.nan
        result.denoised[neuron, missing] = np.nan


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _moments(trace):  # type: ignore[no-untyped-def]
    """Number of the known frames, their mean and variance."""
    total, squares = 0.0, 0.0
    for frame in range(len(trace)):
        total += np.float64(trace[frame])
    if total == total:
        mean = total / max(len(trace), 1)
        for frame in range(len(trace)):
            deviation = np.float64(trace[frame]) - mean
            squares += deviation * deviation
        return len(trace), mean, squares / max(len(trace), 1)
    known, total = 0, 0.0
    for value in trace:
        if value == value:
            known += 1
            total += value
    mean = total / max(known, 1)
    for value in trace:
        if value == value:
            squares += (value - mean) ** 2
    return known, mean, squares / max(known, 1)


def _kinetics(trace: NDArray[np.float32], noise: float, frame_rate: float, parameters: DeconvolutionParameters) -> Kinetics:
    """Neighbours of a fast or resampled trace are joined first: their noise may not be independent."""
    size = int(frame_rate / KINETICS_RATE)
    if size < 2 or len(trace) < size * KINETICS_FRAMES:
        return estimate_kinetics(trace, parameters.order, noise, frame_rate, parameters.decay, parameters.rise)
    joined = _join(trace, size)
    level = float(noise_level(joined[None], frame_rate / size)[0][0]) or noise
    found = estimate_kinetics(joined, parameters.order, level, frame_rate / size, parameters.decay, parameters.rise)
    return replace(found, noise=min(found.noise * np.sqrt(size), noise))


def _join(trace: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Means over `size` neighbours, of those that are known; the last may be of fewer."""
    missing = -len(trace) % size
    rows = np.pad(trace, (0, missing), constant_values=np.nan).reshape(-1, size)
    joined: NDArray[np.float32] = rows.mean(1)
    if np.isnan(joined).any():
        known = ~np.isnan(rows)
        counts = known.sum(1)
        joined = np.where(counts > 0, rows.sum(1, where=known) / np.maximum(counts, 1), np.nan).astype(np.float32)
    return joined


@numba.njit(nogil=True, cache=True)
def _move_back(jumps, height, late, activity):  # type: ignore[no-untyped-def]
    """Write `jumps` times `height` less what they come late, in frames, to `activity`, all (frames,)."""
    frames = len(jumps)
    whole = min(int(late), frames)
    later = np.float32(late - int(late)) * height
    now = height - later
    for frame in range(frames - whole - 1):
        activity[frame] = now * jumps[frame + whole] + later * jumps[frame + whole + 1]
    for frame in range(max(frames - whole - 1, 0), frames):
        activity[frame] = now * jumps[frame + whole] if frame + whole < frames else np.float32(0)
