"""How fast calcium rises and decays, estimated from one trace.

Two estimates err in opposite directions. The autocovariance (Pnevmatikakis et al., Neuron 2016) takes bursts of spikes for slow calcium,
so its decay is too long. The kernel that explains the trace down to its noise by the fewest events takes the slow tail after a burst for
activity, so its decay is too short where an indicator has such a tail, as GCaMP6 has. Their geometric mean is used, of the rise too.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.oasis import explain

LAGS = 5  # lags of the autocovariance beyond the order that the time constants are fitted to
EXCERPT = 2500  # frames that kernels are compared on: those with the largest variance
DECAY_STEP = 1.5  # between kernels that are compared
QUICK_RISE = 0.03  # s: kernels are compared with no slower rise, which would hide how well their decay fits
SLOWEST_RISE = 0.9  # of the decay

Limits = tuple[float, float]


def estimate_kinetics(
    trace: NDArray[np.float32], order: int, noise: float, frame_rate: float, decays: Limits, rises: Limits
) -> tuple[float, float]:
    """Decay and rise in s of one trace.

    Args:
        trace: (frames,) less its slow baseline; NaN where a frame is missing.
        order: of the calcium's autoregression; for 1 the rise is zero.
        noise: standard deviation within a frame, above zero.
        frame_rate: Hz.
        decays, rises: limits in s; equal limits fix a constant.
    """
    factors = _autocovariance_factors(trace, order, noise * noise)
    decay, rise = (_clip(-1 / (np.log(factor) * frame_rate), limits) for factor, limits in zip(factors, (decays, rises), strict=True))
    rise = min(rise, SLOWEST_RISE * decay) if order == 2 else 0.0
    if decays[0] == decays[1] and (order == 1 or rises[0] == rises[1]):
        return decay, rise
    sparsest, sparsest_rise = _sparsest(_liveliest(trace), decay, rise, noise, frame_rate, decays, rises)
    decay = float(np.sqrt(decay * sparsest))
    return decay, min(float(np.sqrt(rise * sparsest_rise)), SLOWEST_RISE * decay)


def _clip(value: float, limits: Limits) -> float:
    return float(min(max(value, limits[0]), limits[1]))


def _sparsest(
    part: NDArray[np.float32], decay: float, rise: float, noise: float, frame_rate: float, decays: Limits, rises: Limits
) -> tuple[float, float]:
    """Decay and rise in s of the kernel with the least Bayesian information criterion, searched downhill from the ones given."""
    guess = 0.0
    quick = min(rise, max(QUICK_RISE, rises[0]))

    def cost(decay: float, rise: float) -> float:
        nonlocal guess
        found = explain(part, decay * frame_rate, min(rise, SLOWEST_RISE * decay) * frame_rate, noise, guess)
        guess = found.subtracted
        return found.events * np.log(len(part)) + len(part) * max(found.unexplained / noise**2 - 1, 0.0)

    least = cost(decay, quick)
    for factor in (1 / DECAY_STEP, DECAY_STEP):
        while (trial := _clip(decay * factor, decays)) != decay and (now := cost(trial, quick)) < least:
            least, decay = now, trial
    if rise > quick and cost(decay, rise) < least:
        return decay, rise
    if rise > rises[0] and cost(decay, rises[0]) < least:
        return decay, rises[0]
    return decay, quick


def _liveliest(trace: NDArray[np.float32]) -> NDArray[np.float32]:
    """The excerpt with the largest variance; where none is known in large part, the whole trace."""
    step = EXCERPT // 4
    if len(trace) <= EXCERPT:
        return trace
    pieces = trace[: len(trace) // step * step].reshape(-1, step).astype(np.float64)
    known = ~np.isnan(pieces)
    sums = np.stack([known.sum(1), np.sum(pieces, 1, where=known), np.sum(pieces**2, 1, where=known)])
    count, total, squares = np.lib.stride_tricks.sliding_window_view(sums, 4, axis=1).sum(2)
    variance = np.where(count > step, squares / np.maximum(count, 1) - (total / np.maximum(count, 1)) ** 2, -1.0)
    begin = int(np.argmax(variance)) * step
    return trace[begin : begin + EXCERPT] if variance.max() >= 0 else trace


@numba.njit(nogil=True, cache=True)
def _autocovariance_factors(trace, order, noise_variance):  # type: ignore[no-untyped-def]
    """Decay and rise as factors a frame from the autocovariance of a trace, over the pairs of frames that are both known."""
    frames, known, total = len(trace), 0, 0.0
    for value in trace:
        if value == value:
            known += 1
            total += value
    mean = total / max(known, 1)
    covariance = np.zeros(LAGS + order + 1)
    for lag in range(min(len(covariance), frames)):
        pairs, products = 0, 0.0
        for frame in range(frames - lag):
            product = (np.float64(trace[frame]) - mean) * (np.float64(trace[frame + lag]) - mean)
            if product == product:
                pairs += 1
                products += product
        covariance[lag] = products / max(pairs, 1)
    covariance[0] -= noise_variance
    # Least squares over the lags for covariance[k] = g1 covariance[k - 1] (+ g2 covariance[k - 2]).
    a, b, c, p, q = 0.0, 0.0, 0.0, 0.0, 0.0
    for lag in range(1, len(covariance)):
        one, two = covariance[lag - 1], (covariance[abs(lag - 2)] if order == 2 else 0.0)
        a += one * one
        b += one * two
        c += two * two
        p += one * covariance[lag]
        q += two * covariance[lag]
    slow, fast = p / a if a > 0 else 0.0, 0.0
    if order == 2 and a * c > b * b:
        g1, g2 = (c * p - b * q) / (a * c - b * b), (a * q - b * p) / (a * c - b * b)
        root = np.sqrt(max(g1 * g1 / 4 + g2, 0.0))
        slow, fast = g1 / 2 + root, g1 / 2 - root
    return min(max(slow, 1e-9), 1 - 1e-9), min(max(fast, 1e-9), 1 - 1e-9)
