"""What is wrong with a raw frame before it is compared with any other image: not finite, blank, or lit from elsewhere."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[Any]

FINE = ""
NOT_FINITE = "not finite"
BLANK = "blank"
TOO_BRIGHT = "far brighter than the others"

_DEVIATIONS, _TIMES = 8.0, 3.0
"""A frame is too bright whose mean is above the usual one by so many standard deviations, and so many times the light of that one."""


def condition(frame: Frames, highest: float = np.inf) -> str:
    """What is wrong with a frame (y, x) whose mean may be `highest` counts, see `brightest`."""
    low, high = frame.min(), frame.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return NOT_FINITE
    return BLANK if low == high else TOO_BRIGHT if light(frame) > highest else FINE


def light(frame: Frames) -> float:
    """Mean of a frame (y, x), counts, from every third line and pixel."""
    return float(frame[::3, ::3].mean(dtype=np.float64))


def brightest(lights: NDArray[np.float64], frames: Frames) -> float:
    """Mean in counts above which a frame shows light from elsewhere and not the plane: a stimulus, a lamp, a door.

    Args:
        lights: (n,) `light` of frames over the whole recording, most of them as they should be.
        frames: (n, y, x) these.
    """
    usual = float(np.median(lights))
    frame = frames[int(np.argmin(np.abs(lights - usual)))].astype(np.float64)
    deviation = max(1.4826 * float(np.median(np.abs(lights - usual))), float(frame.std()) / np.sqrt(frame[::3, ::3].size))
    return usual + max(_DEVIATIONS * deviation, _TIMES * (usual - float(np.percentile(frame, 1))))
