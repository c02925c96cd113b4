"""Images at the scale that models see: 144 x 256 rescaled by a quarter, linear interpolation, no anti-aliasing.

The convention is that of the SENSORIUM 2022 baselines, and equals torch's `interpolate(mode="bilinear", align_corners=False,
antialias=False)`. Written in numpy so that publishing a session needs no torch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL_INPUT_SHAPE = (36, 64)


def rescale(images: NDArray[Any], shape: tuple[int, int] = MODEL_INPUT_SHAPE) -> NDArray[np.float32]:
    """Images (..., y, x) of any grey-value type at another size (..., *shape), float32, in the same grey values."""
    upper, lower, row_share = _neighbours(images.shape[-2], shape[0])
    left, right, column_share = _neighbours(images.shape[-1], shape[1])
    top, bottom = images[..., upper, :], images[..., lower, :]
    return _mix(
        _mix(top[..., left], top[..., right], column_share), _mix(bottom[..., left], bottom[..., right], column_share), row_share[:, None]
    )


def _neighbours(size: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Pixels on both sides of every wanted pixel's centre, and the share of the second."""
    centre = np.maximum(
        (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(size / wanted) - np.float32(0.5), np.float32(0)
    )
    first = np.minimum(centre.astype(np.intp), size - 1)
    return first, np.minimum(first + 1, size - 1), (centre - first).astype(np.float32)


def _mix(first: NDArray[Any], second: NDArray[Any], share: NDArray[np.float32]) -> NDArray[np.float32]:
    return first.astype(np.float32) * (np.float32(1) - share) + second.astype(np.float32) * share
