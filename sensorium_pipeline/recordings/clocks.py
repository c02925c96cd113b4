"""Joining clocks: everything that was recorded beside the brain comes to the clock of the acquisition, then to the frames'.

The acquisition (sync) clock saw the frame clock, the photodiode, and pulses that it shares with the treadmill and the eye camera.
The conventions are those of the SENSORIUM lab's own pipeline (cajal/pipeline): a master counter of 10 MHz in 32 bits that wraps
every 429 s, frame times from the longest contiguous block of the frame clock with one pulse a slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError

COUNTER_RATE = 1e7
COUNTER_BITS = 32

_MOST_APART = 20
"""How many times as many events one of two clocks that belong together may have seen."""

Times = NDArray[np.float64]


def unwrap_counter(counter: NDArray[Any], *, where: object, rate: float = COUNTER_RATE) -> Times:
    """Seconds since the first sample of an unsigned 32-bit counter (samples,) that wraps.

    Raises:
        InputError: where the counter goes back, which a forward step of more than half its range looks like.
    """
    if len(counter) == 0:
        return np.zeros(0)
    period = 1 << COUNTER_BITS
    steps = np.mod(np.diff(counter.astype(np.int64)), period)
    if len(steps) and int(steps.max()) > period // 2:
        at = int(np.argmax(steps)) + 1
        raise InputError(f"the counter goes back at sample {at}", where=where, advice="Export the file again from the device.")
    return np.concatenate([[0], np.cumsum(steps)]) / rate


def edges(chunks: Iterator[NDArray[Any]], low: float, high: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples at which a signal rises above `high` after it was below `low`, and falls below `low` after it was above `high`.

    Args:
        chunks: the signal (samples,), piece by piece; only one piece is held.
    """
    rising, falling = [], []
    state, before = 0, 0
    for chunk in chunks:
        level = np.zeros(len(chunk) + 1, np.int8)
        level[0] = state
        level[1:][chunk > high] = 1
        level[1:][chunk < low] = -1
        # Between the thresholds the level stays what it was: take the last sample that was clear.
        clear = np.maximum.accumulate(np.where(level != 0, np.arange(len(level)), 0))
        held = level[clear]
        rising.append(np.flatnonzero((held[1:] == 1) & (held[:-1] == -1)) + before)
        falling.append(np.flatnonzero((held[1:] == -1) & (held[:-1] == 1)) + before)
        state = int(held[-1])
        before += len(chunk)
    nothing = np.zeros(0, np.int64)
    return np.concatenate([nothing, *rising]), np.concatenate([nothing, *falling])


def longest_block(times: Times) -> Times:
    """The longest run of pulses (pulses,) without a gap of more than one and a half of the usual interval."""
    if len(times) < 2:
        return times
    gaps = np.diff(times) > 1.5 * float(np.median(np.diff(times)))
    bounds = np.concatenate([[0], np.flatnonzero(gaps) + 1, [len(times)]])
    longest = int(np.argmax(np.diff(bounds)))
    return times[bounds[longest] : bounds[longest + 1]]


def counter_difference(first: int, second: int, rate: float = COUNTER_RATE) -> float:
    """Seconds from one reading of the counter to another that is less than half its range (215 s) away."""
    period = 1 << COUNTER_BITS
    return ((second - first + period // 2) % period - period // 2) / rate


@dataclass(frozen=True)
class ClockMap:
    """ours = rate x theirs + offset, fitted to events that both clocks saw.

    Attributes:
        theirs, ours: indices of the events that belong together (matched,).
        residual: largest distance of a matched event from the fit, seconds.
    """

    rate: float
    offset: float
    theirs: NDArray[np.int64]
    ours: NDArray[np.int64]
    residual: float

    def __call__(self, times: Times) -> Times:
        """Their times on our clock."""
        return self.rate * times + self.offset


def join_clocks(theirs: Times, ours: Times, *, tolerance: float = 0.02, most_missing: int = 200) -> ClockMap | None:
    """Match irregular events (events,) seen on two clocks, in seconds; either clock may have missed some.

    The longest run of equal intervals is the anchor; from it the match grows outwards, refitting rate and offset, because a
    drift that is small over the run adds up over an hour. None where no four intervals in a row agree.

    Args:
        tolerance: how far an event may be from the fit, seconds.
        most_missing: events that one clock may have seen before the other began.
    """
    fewer, more = sorted((len(theirs), len(ours)))
    if fewer < 5 or more > _MOST_APART * fewer + most_missing:  # a line that only shows noise
        return None
    start, our_start, length = _longest_run(np.diff(theirs), np.diff(ours), tolerance / 4, most_missing)
    if length < 4:
        return None
    their_index = np.arange(start, start + length + 1)
    our_index = np.arange(our_start, our_start + length + 1)
    while True:
        rate, offset = np.polyfit(theirs[their_index], ours[our_index], 1)
        if abs(rate - 1) > 0.01:
            return None
        first, last = theirs[their_index[0]], theirs[their_index[-1]]
        near = np.flatnonzero((theirs >= first - (last - first)) & (theirs <= last + (last - first)))
        matched, our_matched = _nearest(rate * theirs[near] + offset, ours, tolerance)
        grown = near[matched]
        if len(grown) <= len(their_index):
            break
        their_index, our_index = grown, our_matched
    residual = np.abs(rate * theirs[their_index] + offset - ours[our_index]).max()
    return ClockMap(float(rate), float(offset), their_index, our_index, float(residual))


def _longest_run(theirs: Times, ours: Times, tolerance: float, most_missing: int) -> tuple[int, int, int]:
    """Start in theirs, start in ours and length of the longest run of equal intervals."""
    best = (0, 0, 0)
    lags = sorted(range(-most_missing, most_missing + abs(len(theirs) - len(ours)) + 1), key=abs)
    for lag in lags:  # ours = theirs + lag
        begin, end = max(0, -lag), min(len(theirs), len(ours) - lag)
        if end - begin <= best[2]:
            continue
        equal = np.abs(theirs[begin:end] - ours[begin + lag : end + lag]) < tolerance
        breaks = np.concatenate([[-1], np.flatnonzero(~equal), [len(equal)]])
        longest = int(np.argmax(np.diff(breaks)))
        length = int(breaks[longest + 1] - breaks[longest] - 1)
        if length > best[2]:
            run = begin + int(breaks[longest]) + 1
            best = (run, run + lag, length)
            if length == end - begin:
                break  # nothing can be longer at a larger lag
    return best


def _nearest(times: Times, ours: Times, tolerance: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of times and of the nearest event of ours, where it is within the tolerance and nobody else's."""
    right = np.clip(np.searchsorted(ours, times), 1, len(ours) - 1)
    nearest = np.where(times - ours[right - 1] < ours[right] - times, right - 1, right)
    close = np.flatnonzero(np.abs(ours[nearest] - times) < tolerance)
    _, single = np.unique(nearest[close], return_index=True)
    return close[single], nearest[close][single]
