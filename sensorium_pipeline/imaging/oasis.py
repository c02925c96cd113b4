"""Sparse non-negative deconvolution of one trace: compiled, one thread, float64 arithmetic on float32 traces.

Friedrich, Zhou and Paninski, Fast online deconvolution of calcium imaging data, PLoS Computational Biology 2017. Calcium follows
c[t] = (d + r) c[t-1] - d r c[t-2] + s[t] with s >= 0, where d and r are the decay and the rise a frame, so that one unit of activity
adds h[k] = (d^(k+1) - r^(k+1)) / (d - r) to the calcium k frames later. For a first order r is zero. Calcium without activity is a pool
of frames: k frames into a pool that starts with v after a pool that ended with u it is v h[k] - u d r h[k-1]. Sums over a pool are
therefore enough for its best v, and those of two neighbours combine in constant time.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

EXCERPT = 500  # frames at least in a quarter of a trace that tells where to begin
PASSES = 12  # at most so many solutions while the penalty is sought
TOLERANCE = 0.015  # of the noise: how near to it the residual must come
SMALLEST = 1e-6  # factor of decay a frame
NEGLIGIBLE = 1e-9  # of a decay: what is left is no longer counted
USUAL_SLOPE, LEAST_SLOPE = 0.1, 0.01  # by how much the residual's standard deviation grows with what is subtracted
SETTLED = 0.5  # of the noise of a transient: a baseline so near to the mean of what the calcium leaves is not lowered to fit more
OVERSTEP = 2.0  # of the way to that mean: see `_nearer`
LOWEST = -4.0  # of the noise: the baseline lies not further below zero


@dataclass(frozen=True)
class Explanation:
    """A trace explained by activity.

    Attributes:
        activity: (frames,) float32, >= 0: the calcium that a frame's activity adds.
        calcium: (frames,) float32.
        subtracted: baseline and penalty, which are one number.
        baseline: mean of what the calcium leaves of the trace.
        unexplained: variance of what it leaves.
    """

    activity: NDArray[np.float32]
    calcium: NDArray[np.float32]
    subtracted: float
    baseline: float
    unexplained: float


def explain(trace: NDArray[np.float32], decay: float, rise: float, noise: float) -> Explanation:
    """The sparsest activity that leaves of a trace no more than its noise, or where none does, as little as can be.

    Args:
        trace: (frames,) less its slow baseline; NaN where a frame is missing.
        decay: of the calcium, frames.
        rise: frames; zero for calcium of first order.
        noise: standard deviation within a frame, above zero.
    """
    d, r = _factors(decay, rise)
    calcium, activity = np.empty(len(trace), np.float32), np.empty(len(trace), np.float32)
    subtracted, baseline, unexplained = _constrain(trace, bool(np.isnan(trace).any()), d, r, noise, calcium, activity)
    return Explanation(activity, calcium, subtracted, baseline, unexplained)


def _factors(decay: float, rise: float) -> tuple[float, float]:
    """What of decay and rise is left after a frame; a decay much quicker than a frame leaves next to nothing."""
    d = max(float(np.exp(-1 / decay)), SMALLEST)
    return d, min(float(np.exp(-1 / rise)), d / 2 if d == SMALLEST else d) if rise > 0 else 0.0


def kernel_height(decay: float, rise: float) -> np.float32:
    """The largest calcium that one unit of activity makes, of time constants in frames."""
    if rise <= 0:
        return np.float32(1)
    d, r = _factors(decay, rise)
    # Where d^(k+1) - r^(k+1) is largest, and the frames on both sides.
    peak = np.log(decay / rise) / (1 / rise - 1 / decay)
    frames = np.maximum(np.array([np.floor(peak), np.ceil(peak)]), 1)
    return np.float32(((d**frames - r**frames) / (d - r)).max())


def leave_out_unseen(activity: NDArray[np.float32], trace: NDArray[np.float32], decay: float, rise: float) -> None:
    """Set activity (frames,) to zero where the trace (frames,) does not show it, for time constants in frames.

    Calcium at the beginning may be older. Before the end, and before long gaps, calcium that rises slowly has not risen: where what is seen
    of a transient is less than a single frame at its height, noise would be taken for large activity.
    """
    d, r = _factors(decay, rise)
    _leave_out(activity, trace, d, r, float(kernel_height(decay, rise)) ** 2)


@numba.njit(nogil=True, cache=True)
def _leave_out(activity, trace, decay, rise, enough):  # type: ignore[no-untyped-def]
    """See `leave_out_unseen`; a transient is seen where the sum of its squares over the known frames is `enough`."""
    frames, begun = len(trace), False
    for frame in range(frames):
        if activity[frame] > 0:
            seen, now, before, after = 0.0, 1.0, 0.0, frame
            while begun and seen < (1 - NEGLIGIBLE) * enough and after < frames and now > SMALLEST:
                if trace[after] == trace[after]:
                    seen += now * now
                now, before = (decay + rise) * now - decay * rise * before, now
                after += 1
            if seen < (1 - NEGLIGIBLE) * enough:
                activity[frame] = 0
        begun = begun or trace[frame] == trace[frame]


@numba.njit(nogil=True, cache=True)
def _kernel_tables(decay, rise, frames):  # type: ignore[no-untyped-def]
    """(length, 6) float64 over frames k: d^k, r^k, h[k]; sums of h^2 and of h[k] h[k-1] up to, but without, k; one over the former."""
    length = min(frames, int(np.log(NEGLIGIBLE) / np.log(decay)) + 1) + 1
    tables = np.empty((length, 6))
    d, r, energy, cross, before = 1.0, 1.0, 0.0, 0.0, 0.0
    for k in range(length):
        now = (decay * d - rise * r) / (decay - rise)
        tables[k, 0] = d
        tables[k, 1] = r
        tables[k, 2] = now
        tables[k, 3] = energy
        tables[k, 4] = cross
        tables[k, 5] = 1 / energy if energy > 0 else 0.0
        energy += now * now
        cross += now * before
        before = now
        d *= decay
        r *= rise
    tables[length - 1, 0] = tables[length - 1, 1] = 0.0
    return tables


@numba.njit(nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def _solve(trace, gaps, decay, rise, tables, drop, calcium, jumps, starts, pools):  # type: ignore[no-untyped-def]
    """Calcium and activity of one trace once `drop` (baseline and penalty) is subtracted.

    Missing frames are NaN and carry no evidence; `gaps` tells whether there are any. `calcium` and `jumps` (frames,) float32 receive the
    result; `starts` (frames + 1,) int64 and `pools` (frames + 1, 7) float64 are room to work in.

    Returns:
        mean and variance of what the calcium leaves of the trace over the known frames.
    """
    frames, end = len(trace), len(tables) - 1
    both, product, span = decay + rise, decay * rise, decay - rise
    from_decay, from_rise, per_square = decay / span, rise / span, 1 / (span * span)
    # Of a pool: first frame; sums of d^k y and of r^k y; last calcium and last but one; with gaps also sums of d^2k, (d r)^k and r^2k.
    # Those of the last pool are at hand, those before lie in `starts` and `pools`.
    begin, on_decay, on_rise, last, but_one, squares, mixed, rises = 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    before, before_that = 0.0, 0.0  # the last calcium and the last but one of the pool before
    count = 0  # pools before the last
    for frame in range(frames):
        value = np.float64(trace[frame]) - drop
        known = value == value
        if known and frame > 0 and value > both * last - product * but_one:
            # Activity: a pool of its own.
            starts[count] = begin
            pools[count, 0], pools[count, 1], pools[count, 2], pools[count, 3] = on_decay, on_rise, last, but_one
            if gaps:
                pools[count, 4], pools[count, 5], pools[count, 6] = squares, mixed, rises
                squares = mixed = rises = 1.0
            count += 1
            before, before_that = last, but_one
            begin, on_decay, on_rise, last, but_one = frame, value, value, max(value, 0.0), before
            continue
        if known:
            age = min(frame - begin, end)
            d, r = tables[age, 0], tables[age, 1]
            on_decay += d * value
            on_rise += r * value
            if gaps:
                squares += d * d
                mixed += d * r
                rises += r * r
        while True:
            age = min(frame + 1 - begin, end)
            if gaps:
                energy = (decay * decay * squares - 2 * product * mixed + rise * rise * rises) * per_square
                cross = (decay * squares - both * mixed + rise * rises) * per_square
                inverse = 1 / energy if energy > 1e-12 else 0.0
            else:
                energy, cross, inverse = tables[age, 3], tables[age, 4], tables[age, 5]
            evidence = from_decay * on_decay - from_rise * on_rise + before * product * cross
            if count > 0 and evidence <= energy * (both * before - product * before_that):
                # No activity in the pool's first frame: it belongs to the pool before.
                count -= 1
                age = min(begin - starts[count], end)
                d, r = tables[age, 0], tables[age, 1]
                on_decay = pools[count, 0] + d * on_decay
                on_rise = pools[count, 1] + r * on_rise
                if gaps:
                    squares = pools[count, 4] + d * d * squares
                    mixed = pools[count, 5] + d * r * mixed
                    rises = pools[count, 6] + r * r * rises
                begin = starts[count]
                before = pools[count - 1, 2] if count > 0 else 0.0
                before_that = pools[count - 1, 3] if count > 0 else 0.0
                continue
            first = max(evidence * inverse, 0.0)
            if age == 1:
                last, but_one = first, before
            else:
                but_one = first * tables[age - 2, 2] - (before * product * tables[age - 3, 2] if age > 2 else 0.0)
                last = max(first * tables[age - 1, 2] - before * product * tables[age - 2, 2], 0.0)
                but_one = max(but_one, 0.0)
            break
    starts[count] = begin
    pools[count, 0], pools[count, 1] = on_decay, on_rise
    if gaps:
        pools[count, 4], pools[count, 5], pools[count, 6] = squares, mixed, rises
    return _unfold(trace, gaps, decay, rise, tables, count, calcium, jumps, starts, pools)


@numba.njit(nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"contract"})
def _unfold(trace, gaps, decay, rise, tables, last_pool, calcium, jumps, starts, pools):  # type: ignore[no-untyped-def]
    """Calcium and activity of every frame, from the pools; returns the residual's mean and variance."""
    frames, end = len(trace), len(tables) - 1
    both, product, span = decay + rise, decay * rise, decay - rise
    per_square = 1 / (span * span)
    count, total, sum_of_squares = 0, 0.0, 0.0
    before, before_that = 0.0, 0.0
    for pool in range(last_pool + 1):
        begin = starts[pool]
        stop = starts[pool + 1] if pool < last_pool else frames
        if gaps:
            squares, mixed, rises = pools[pool, 4], pools[pool, 5], pools[pool, 6]
            energy = (decay * decay * squares - 2 * product * mixed + rise * rise * rises) * per_square
            cross = (decay * squares - both * mixed + rise * rises) * per_square
            inverse = 1 / energy if energy > 1e-12 else 0.0
        else:
            age = min(stop - begin, end)
            cross, inverse = tables[age, 4], tables[age, 5]
        evidence = (decay * pools[pool, 0] - rise * pools[pool, 1]) / span + before * product * cross
        jump = max(evidence * inverse, 0.0) - (both * before - product * before_that)
        for frame in range(begin, stop):
            jump = max(jump, 0.0) if frame == begin else 0.0
            now = max(both * before - product * before_that + jump, 0.0)
            jumps[frame] = jump
            calcium[frame] = now
            before_that = before
            before = now
            rest = np.float64(trace[frame]) - now
            if rest == rest:
                count += 1
                total += rest
                sum_of_squares += rest * rest
    mean = total / max(count, 1)
    return mean, sum_of_squares / max(count, 1) - mean * mean


@numba.njit(nogil=True, cache=True)
def _constrain(trace, gaps, decay, rise, noise, calcium, jumps):  # type: ignore[no-untyped-def]
    """See `explain`; returns what was subtracted, and the residual's mean and variance."""
    # The residual's standard deviation grows with what is subtracted, nearly linearly: the secant, bisecting where it leaves the bracket.
    # Where calcium of this kernel cannot leave as little as the noise, the search ends at the baseline that fits the calcium.
    frames = len(trace)
    starts, pools, tables = np.empty(frames + 1, np.int64), np.empty((frames + 1, 7)), _kernel_tables(decay, rise, frames)
    low, high, settled = LOWEST * noise, np.inf, SETTLED * noise * np.sqrt(1 - decay * decay)
    drop, mean, rest = 0.0, 0.0, 0.0
    slope, before, before_miss = USUAL_SLOPE, 0.0, np.nan
    if frames >= 4 * EXCERPT:
        # A part costs little and says where to begin.
        mean, rest = _solve(trace[: frames // 4], gaps, decay, rise, tables, drop, calcium, jumps, starts, pools)
        drop = min(max(_nearer(drop, mean, np.sqrt(max(rest, 0.0)) - noise, slope), low), noise)
    for attempt in range(PASSES):
        mean, rest = _solve(trace, gaps, decay, rise, tables, drop, calcium, jumps, starts, pools)
        miss = np.sqrt(max(rest, 0.0)) - noise
        if abs(miss) < TOLERANCE * noise or (miss > 0 and (drop <= low or drop - mean < settled)):
            break
        if miss > 0:
            high = drop
        else:
            low = drop
        if high - low < 0.001 * noise:
            break
        if drop != before and (miss - before_miss) / (drop - before) > LEAST_SLOPE:
            slope = (miss - before_miss) / (drop - before)
        before, before_miss = drop, miss
        drop = _nearer(drop, mean, miss, slope)
        if drop < low or drop > high:
            # Nothing lies below LOWEST: it is tried itself.
            drop = 0.5 * (low + high) if low > LOWEST * noise else max(drop, low)
        elif attempt > PASSES // 2 and low > LOWEST * noise and high < np.inf:
            drop = 0.5 * (low + high)
    return drop, mean, rest


@numba.njit(nogil=True, cache=True)
def _nearer(drop, mean, miss, slope):  # type: ignore[no-untyped-def]
    """What to subtract next, so that the residual's deviation from the noise, now `miss`, becomes nought.

    The mean of what the calcium leaves is the best baseline for that calcium. A step down goes little further: fitting the noise too would
    lower the residual without end.
    """
    step = miss / slope
    return drop - (min(step, OVERSTEP * max(drop - mean, 0.0)) if miss > 0 else step)
