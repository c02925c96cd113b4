"""Compiled loops over the pixels of frames where they are: halving their resolution and adding them up.

All release the interpreter's lock, hold no state and run one thread each, as in `displaced_frames`.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _bin_pair(image, y, x, line, binned):  # type: ignore[no-untyped-def]
    """Mean over 2 x 2 pixels of two rows from pixel (y, x) on; `line` is room for their sum."""
    upper, lower, pairs = image[y, x : x + len(line)], image[y + 1, x : x + len(line)], line.reshape(len(binned), 2)
    quarter = np.float32(0.25)
    for k in range(len(line)):
        line[k] = upper[k] + lower[k]
    for k in range(len(binned)):
        binned[k] = quarter * (pairs[k, 0] + pairs[k, 1])


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def bin_frame(image, margin, factor, binned):  # type: ignore[no-untyped-def]
    """Mean over 1 x 1 or 2 x 2 pixels of `image` inside `margin`, into `binned`; an incomplete last row or column is left out."""
    height, width = binned.shape
    if factor == 1:
        for y in range(height):
            for x in range(width):
                binned[y, x] = image[y + margin, x + margin]
        return
    line = np.empty(2 * width, np.float32)
    for y in range(height):
        _bin_pair(image, 2 * y + margin, margin, line, binned[y])


@njit(nogil=True, cache=True, error_model="numpy")
def pearson(sums):  # type: ignore[no-untyped-def]
    """Correlation from sums (6,) as of `displaced_frames.gradient_sums`; zero where nothing varies."""
    count = sums[0]
    if count < 2:
        return np.float32(0)
    covariance = sums[5] - sums[1] * sums[3] / count
    spread = (sums[2] - sums[1] ** 2 / count) * (sums[4] - sums[3] ** 2 / count)
    return np.float32(covariance / np.sqrt(spread)) if spread > 0 else np.float32(0)


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _add_row(row, total, largest):  # type: ignore[no-untyped-def]
    for x in range(len(row)):
        value = np.float32(row[x])
        total[x] += value
        largest[x] = max(largest[x], value)


@njit(nogil=True, cache=True, error_model="numpy")
def accumulate(frames, use, first, last, total, largest):  # type: ignore[no-untyped-def]
    """Add the frames (n, y, x) with `use` to `total` (y, x) float64 and keep the maximum in `largest` (y, x), lines first..last-1."""
    subtotal = np.empty(frames.shape[2], np.float32)
    for y in range(first, last):
        subtotal[:] = 0
        for n in range(frames.shape[0]):
            if use[n]:
                _add_row(frames[n, y], subtotal, largest[y])
        for x in range(len(subtotal)):
            total[y, x] += subtotal[x]


@njit(nogil=True, cache=True, error_model="numpy")
def add_windows(images, windows, first, last, total, count):  # type: ignore[no-untyped-def]
    """Add what each image (n, y, x) shows inside its window to `total` and one to `count`, both (y, x) float64, lines first..last-1.

    Args:
        windows: (n, 4) int64, rows and columns: the first of each, and the one after the last.
    """
    for y in range(first, last):
        for n in range(len(images)):
            if windows[n, 0] <= y < windows[n, 1]:
                for x in range(windows[n, 2], windows[n, 3]):
                    total[y, x] += images[n, y, x]
                    count[y, x] += 1
