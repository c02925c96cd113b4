"""How fast calcium rises and decays, from one trace.

The decay is the one whose autocovariance is nearest to the trace's, over lags from one frame to two seconds: the noise is at lag nought
alone and does not matter, drift is met half-way. The rise and the noise come from `calcium_onset`, which needs the decay, as the decay
needs the rise: both are estimated in turn. Both are then drawn a little to what is typical: firing that is itself correlated in time looks
like slow calcium.
"""

from dataclasses import dataclass, replace

import numba
import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.calcium_onset import TYPICAL_RISE, estimate_onset

LONGEST_LAG = 2.0  # s
FEWEST_LAGS = 6
DENSITY = 4.0  # lags an octave: more say no more
TYPICAL_DECAY = 0.7  # s: where the search begins, and what a trace that says nothing gets
TOLD = 0.8  # of decay and rise by the trace, the rest by what is typical
DECAYS = 49  # that are compared, from one limit to the other
SLOWEST_RISE = 0.9  # of the decay
LEAST_WHITE = 0.2  # of the spectrum's upper part: so much of it is noise at least

Limits = tuple[float, float]


@dataclass(frozen=True)
class Kinetics:
    """Of the calcium in one trace.

    Attributes:
        decay: time constant in s.
        rise: time constant in s, within its limits; zero for calcium of first order.
        onset: rise in s, without its lower limit: see `calcium_onset`.
        noise: standard deviation within a frame.
    """

    decay: float
    rise: float
    onset: float
    noise: float

    def late(self, frame_rate: float) -> float:
        """Frames by which the jumps of calcium that is taken to rise within `rise` come later than their spikes.

        A frame integrates and a spike falls anywhere in it: over such spikes the frames' response has its centre the decay and the onset
        after the spike's frame, whatever their kernel, while the autoregression's has it d / (1 - d) + r / (1 - r) after, d / (1 - d) being
        the decay less half a frame.
        """
        r = np.exp(-1 / (self.rise * frame_rate)) if self.rise > 0 else 0.0
        return float(max(0.5 + self.onset * frame_rate - r / (1 - r), 0.0))


def estimate_kinetics(trace: NDArray[np.float32], order: int, noise: float, frame_rate: float, decays: Limits, rises: Limits) -> Kinetics:
    """Decay, rise and noise of one trace.

    Args:
        trace: (frames,) less its slow baseline; NaN where a frame is missing.
        order: of the calcium's autoregression; for 1 the rise is zero.
        noise: standard deviation within a frame, above zero; calcium at high frequencies may be in it.
        frame_rate: Hz.
        decays, rises: limits in s; equal limits fix a constant.
    """
    decay = min(max(TYPICAL_DECAY, decays[0]), decays[1])
    if decays[0] == decays[1]:
        onset = estimate_onset(trace, decay, frame_rate, rises)
    else:
        lags, compared = _lags(len(trace), frame_rate), np.geomspace(*decays, DECAYS)
        covariance, rise = _autocovariance(trace, lags), min(max(TYPICAL_RISE, rises[0]), rises[1])
        lags, covariance = lags[~np.isnan(covariance)], covariance[~np.isnan(covariance)]
        decay = _nearest_decay(covariance, lags / frame_rate, 1 / frame_rate, rise, compared, decay)
        rise = max(estimate_onset(trace, decay, frame_rate, rises).rise, 0.0)
        decay = _nearest_decay(covariance, lags / frame_rate, 1 / frame_rate, rise, compared, decay)
        decay = min(max(decay**TOLD * TYPICAL_DECAY ** (1 - TOLD), decays[0]), decays[1])
        onset = estimate_onset(trace, decay, frame_rate, rises)
    if rises[0] < rises[1]:
        onset = replace(onset, rise=TOLD * onset.rise + (1 - TOLD) * TYPICAL_RISE)
    rise = min(max(onset.rise, rises[0]), rises[1], SLOWEST_RISE * decay) if order == 2 else 0.0
    return Kinetics(decay, rise, onset.rise, min(max(onset.noise, LEAST_WHITE * noise), noise))


def _lags(frames: int, frame_rate: float) -> NDArray[np.int64]:
    """Lags in frames, evenly spaced while few, then evenly in their logarithm."""
    last = max(min(int(LONGEST_LAG * frame_rate), frames // 4), FEWEST_LAGS)
    spaced = 2 ** np.arange(0, np.log2(last) + 1e-9, 1 / DENSITY)
    return np.unique(np.round(np.append(spaced, last)).astype(np.int64))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _autocovariance(trace, lags):  # type: ignore[no-untyped-def]
    """(lags,) over the pairs of frames that are both known; NaN where there is none."""
    frames, known, total = len(trace), 0, 0.0
    for value in trace:
        if value == value:
            known += 1
            total += value
    mean = np.float32(total / max(known, 1))
    # Zeros in the gaps add nothing, so that the sums need no question.
    deviations, present = np.empty(frames, np.float32), np.ones(frames, np.float32)
    for frame in range(frames):
        value = trace[frame]
        deviations[frame] = value - mean if value == value else np.float32(0)
        present[frame] = value == value
    covariance = np.zeros(len(lags))
    for index in range(len(lags)):
        lag, pairs, products = lags[index], np.float32(0), np.float32(0)
        for frame in range(frames - lag):
            products += deviations[frame] * deviations[frame + lag]
        if known < frames:
            for frame in range(frames - lag):
                pairs += present[frame] * present[frame + lag]
        else:
            pairs = np.float32(max(frames - lag, 0))
        covariance[index] = products / pairs if pairs > 0 else np.nan
    return covariance


@numba.njit(nogil=True, cache=True)
def _nearest_decay(covariance, lags, frame, rise, decays, otherwise):  # type: ignore[no-untyped-def]
    """The decay in s that leaves least of a covariance (lags,), at lags in s; `otherwise` where none fits at all.

    Drift, and firing that comes and goes, add nearly the same to all lags, which cannot be told well from slow calcium: of the decays that
    fit best without and with a constant it is the geometric mean.
    """
    alone, most, beside, most_beside = otherwise, 0.0, otherwise, 0.0
    # A frame of the length `frame` multiplies each exponential's covariance.
    risen = rise**3 * (np.cosh(frame / rise) - 1) if rise > 0.02 * frame else 0.0
    for decay in decays:
        if rise >= 0.95 * decay:
            continue
        decayed = decay**3 * (np.cosh(frame / decay) - 1)
        both, own, total, given, counts = 0.0, 0.0, 0.0, 0.0, 0.0
        for index in range(len(lags)):
            model = decayed * np.exp(-lags[index] / decay)
            if risen > 0:
                model -= risen * np.exp(-lags[index] / rise)
            # Lags that stand for many count as many.
            count = lags[index]
            if index > 0:
                count -= lags[index - 1]
            both += count * model * covariance[index]
            own += count * model * model
            total += count * model
            given += count * covariance[index]
            counts += count
        explained = both * both / own if both > 0 else 0.0
        if explained > most:
            most, alone = explained, decay
        constant, calcium, determinant = own * given - total * both, counts * both - total * given, counts * own - total * total
        if min(constant, calcium, determinant) > 0:
            explained = (calcium * both + constant * given) / determinant
        if explained > most_beside:
            most_beside, beside = explained, decay
    return np.sqrt(alone * beside)
