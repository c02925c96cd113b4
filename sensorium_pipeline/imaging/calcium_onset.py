"""How fast calcium rises, from one trace, also where that takes less than a frame.

A frame integrates, and a spike falls anywhere in it. Once each frame's decay is taken out of the trace (w[t] = c[t] - d c[t-1]), a spike u
after its frame began leaves 1 - u in that frame and u in the next where calcium rises at once, and more in later frames where it does not.
How much of a spike comes late cannot be told from second moments: those of the white noise lie at the same lags. Its third moments are
zero (Giannakis and Mendel, IEEE Trans. Acoust. Speech Signal Process. 1989), those of spikes are not: E[w[t]^2 w[t+1]] against E[w[t]^3]
grows with the rise, and hardly depends on the decay. It is nought only where all spikes fall on the beginning of a frame and
calcium rises at once. Firing that is correlated over several frames adds the same to neighbouring lags, and is taken off by a far one.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

FAR = 4  # frames: the lag that tells the firing from the rise
TYPICAL_RISE, SPREAD = 0.05, 0.1  # s: what indicators show, which a trace of noise falls back on
SLOWEST_RATE = 4.0  # Hz: frames are joined down to it
SCATTER = 0.3  # of the ratio from one event to another, by where in its frame it falls: a few large events are no certainty
RESOLVED = 1.5  # frames: a rise that takes longer is told without a higher rate
MODEL_DECAY, MODEL_PHASES, MODEL_FRAMES = 20.0, 50, 150  # frames, phases of a spike in its frame, frames


@dataclass(frozen=True)
class Onset:
    """The onset of calcium.

    Attributes:
        rise: time constant in s; below zero where spikes show earlier than any rise allows that fall anywhere in a frame.
        noise: standard deviation of white noise within a frame; infinite where no neighbouring frames tell it.
    """

    rise: float
    noise: float


def _model() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rises in frames, and for each the ratios of third and of second moments at lag one to those at lag nought, less a far lag's."""
    rises = np.concatenate([np.arange(0, 1, 0.1), np.arange(1, 3.1, 0.25), [4, 5, 6, 8]])
    since = np.arange(MODEL_FRAMES + 1) - ((np.arange(MODEL_PHASES) + 0.5) / MODEL_PHASES)[:, None]
    since = np.maximum(since, 0)
    ratios = np.zeros((len(rises) + 1, 2))
    for index, rise in enumerate(rises):
        light = MODEL_DECAY * (1 - np.exp(-since / MODEL_DECAY))
        if rise > 0:
            light -= rise * (1 - np.exp(-since / rise))
        w = np.diff(light, axis=1)
        w[:, 1:] -= np.exp(-1 / MODEL_DECAY) * w[:, :-1]
        third, second = [np.mean(np.sum(w**3, 1))], [np.mean(np.sum(w**2, 1))]
        for lag in (1, FAR):
            now, later = w[:, :-lag], w[:, lag:]
            third.append(np.mean(np.sum(now * later * (now + later), 1)) / 2)
            second.append(np.mean(np.sum(now * later, 1)))
        ratios[index + 1] = [(each[1] - each[2]) / (each[0] - each[2]) for each in (third, second)]
    # All spikes at the beginning of a frame, and no rise: as if calcium rose half a frame before.
    return np.concatenate([[-0.5], rises]), ratios[:, 0].copy(), ratios[:, 1].copy()


RISES, THIRDS, SECONDS = _model()


def estimate_onset(trace: NDArray[np.float32], decay: float, frame_rate: float, rises: tuple[float, float]) -> Onset:
    """The onset of the calcium in a trace.

    Args:
        trace: (frames,), NaN where a frame is missing.
        decay: time constant in s.
        frame_rate: Hz.
        rises: limits of the rise in s: equal limits fix it, otherwise only the upper one is kept.
    """
    known = rises[0] if rises[0] == rises[1] else np.nan
    rise, noise = _estimate(trace, decay, frame_rate, RISES, THIRDS, SECONDS, known)
    return Onset(min(rise, rises[1]), noise)


@numba.njit(nogil=True, cache=True)
def _estimate(trace, decay, frame_rate, rises, thirds, seconds, known):  # type: ignore[no-untyped-def]
    """Rise and noise. Rises at doubling rates, joined frames first, are weighted by their precision, unless one is `known`."""
    factor = 1
    while frame_rate / (2 * factor) >= SLOWEST_RATE and len(trace) // (2 * factor) > 20 * FAR:
        factor *= 2
    weight = 1 / SPREAD**2
    total = weight * TYPICAL_RISE
    first = True
    while factor >= 1 and known != known:
        if first or total / weight * frame_rate / factor < RESOLVED:
            first = False
            ratio, error, _, _ = _ratio(trace, factor, np.exp(-factor / (decay * frame_rate)))
            found = np.interp(ratio, thirds, rises)
            slope = (np.interp(ratio + 0.05, thirds, rises) - np.interp(ratio - 0.05, thirds, rises)) / 0.1
            deviation = max(max(slope, 2.9) * error * factor / frame_rate, 0.001)
            weight += 1 / deviation**2
            total += found * factor / frame_rate / deviation**2
        factor //= 2
    rise = total / weight if known != known else known
    d = np.exp(-1 / (decay * frame_rate))
    _, _, power, product = _ratio(trace, 1, d)
    if power == 0:
        return rise, np.inf
    expected = np.interp(rise * frame_rate, rises, seconds)
    return rise, np.sqrt(max(expected * power - product, 0.0) / (d + expected * (1 + d * d)))


@numba.njit(nogil=True, cache=True, forceinline=True, fastmath={"reassoc", "contract"})
def _ratio(trace, factor, d):  # type: ignore[no-untyped-def]
    """Ratio of third moments at lag one to lag nought and its standard error, and the second moments, less those of a far lag."""
    frames = len(trace) // factor
    w = np.empty(max(frames - 1, 0), np.float32)
    before, total, known = np.nan, 0.0, 0
    for frame in range(frames):
        now = 0.0
        for index in range(frame * factor, (frame + 1) * factor):
            now += trace[index]
        now /= factor
        if frame > 0:
            step = now - d * before
            w[frame - 1] = step
            if step == step:
                total += step
                known += 1
        before = now
    mean, tried, count = np.float32(total / max(known, 1)), max(len(w) - FAR, 0), 0
    # Nought where one of the three is unknown adds nothing.
    first = np.empty(tried, np.float32)
    for frame in range(tried):
        complete = w[frame] + w[frame + 1] + w[frame + FAR]
        first[frame] = w[frame] - mean if complete == complete else np.float32(0)
        count += complete == complete
    for frame in range(len(w)):
        w[frame] = w[frame] - mean if w[frame] == w[frame] else np.float32(0)
    zero, one, zeros, ones, both, power, product = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for frame in range(tried):
        now, after, far = np.float64(first[frame]), np.float64(w[frame + 1]), np.float64(w[frame + FAR])
        off = now * far * (now + far) / 2
        a = now * now * now - off
        b = now * after * (now + after) / 2 - off
        zero += a
        one += b
        zeros += a * a
        ones += b * b
        both += a * b
        power += now * (now - far)
        product += now * (after - far)
    if count == 0 or zero <= 0:
        return 0.0, np.inf, power / max(count, 1), product / max(count, 1)
    ratio = one / zero
    error = np.sqrt(max(ones - 2 * ratio * both + ratio * ratio * zeros, 0.0) + SCATTER**2 * zeros) / zero
    return ratio, error, power / count, product / count
