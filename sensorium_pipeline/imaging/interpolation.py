"""Compiled loops over the pixels of a frame: preparing it and moving it back along a displacement field.

A displacement field is given at the nodes of a regular grid that spans the frame from its first to its last pixel centre and is
bilinear in between. `field[i, j]` is (y, x) in pixels: what belongs at p in the template stands at p + field(p) in the frame.

All functions release the interpreter's lock, hold no state and run one thread each, so that callers may share the frames of a chunk
between threads and several planes may be corrected in one process. Sums are taken row by row in a fixed order: results do not depend
on the number of threads.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sensorium_pipeline.imaging.displaced_rows import displacement, inside, plan_row, row_between, spread_field

Float32 = NDArray[np.float32]

PADDING = 3
"""Pixels by which a prepared frame is wider than the raw one on every side: enough for four neighbours that all repeat the edge."""

_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_TWO = np.float32(2.0)
_ONE_AND_A_HALF = np.float32(1.5)
_TWO_AND_A_HALF = np.float32(2.5)


@njit(nogil=True, cache=True, inline="always")
def _cubic_weights(t):  # type: ignore[no-untyped-def]
    """Weights of four neighbours for a position t in 0..1 after the second (Keys 1981, a = -1/2)."""
    w0 = ((-_HALF * t + _ONE) * t - _HALF) * t
    w1 = (_ONE_AND_A_HALF * t - _TWO_AND_A_HALF) * t * t + _ONE
    w2 = ((-_ONE_AND_A_HALF * t + _TWO) * t + _HALF) * t
    w3 = (_HALF * t - _HALF) * t * t
    return w0, w1, w2, w3


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def prepare_frame(raw, raster_phase, padded):  # type: ignore[no-untyped-def]
    """Copy a raw frame (y, x) into `padded` (y + 6, x + 6) float32, its odd lines moved left by `raster_phase` pixels, edges repeated."""
    height, width = raw.shape
    for y in range(height):
        row = padded[y + PADDING]
        if y % 2 == 0 or raster_phase == 0:
            for x in range(width):
                row[x + PADDING] = np.float32(raw[y, x])
        else:
            whole = int(np.floor(raster_phase))
            w0, w1, w2, w3 = _cubic_weights(np.float32(raster_phase - whole))
            for x in range(width):
                x1 = x + whole
                if x1 >= 1 and x1 + 2 < width:
                    a, b, c, d = raw[y, x1 - 1], raw[y, x1], raw[y, x1 + 1], raw[y, x1 + 2]
                else:
                    a, b = raw[y, min(max(x1 - 1, 0), width - 1)], raw[y, min(max(x1, 0), width - 1)]
                    c, d = raw[y, min(max(x1 + 1, 0), width - 1)], raw[y, min(max(x1 + 2, 0), width - 1)]
                row[x + PADDING] = w0 * np.float32(a) + w1 * np.float32(b) + w2 * np.float32(c) + w3 * np.float32(d)
        for k in range(PADDING):
            row[k] = row[PADDING]
            row[width + PADDING + k] = row[width + PADDING - 1]
    for k in range(PADDING):
        padded[k] = padded[PADDING]
        padded[height + PADDING + k] = padded[height + PADDING - 1]


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
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


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _moments(line, offset, template):  # type: ignore[no-untyped-def]
    """Sums over a row: sampled values less the offset, their squares, the template, its squares, and the products."""
    zero = np.float32(0)
    f, ff, t, tt, ft = zero, zero, zero, zero, zero
    for k in range(len(line)):
        value, expected = line[k] - offset, template[k]
        f += value
        ff += value * value
        t += expected
        tt += expected * expected
        ft += value * expected
    return f, ff, t, tt, ft


@njit(nogil=True, cache=True, error_model="numpy")
def _correlate_row(line, first, end, offset, template, sums):  # type: ignore[no-untyped-def]
    """Add the moments of pixels first..end-1 of a row to `sums` (6,) float64: how many, then as of `_moments`."""
    f, ff, t, tt, ft = _moments(line[first:end], offset, template[first:end])
    sums[0] += end - first
    sums[1] += f
    sums[2] += ff
    sums[3] += t
    sums[4] += tt
    sums[5] += ft


@njit(nogil=True, cache=True, error_model="numpy")
def pearson(sums):  # type: ignore[no-untyped-def]
    """Correlation from the sums of `_correlate_row`; zero where nothing varies."""
    count = sums[0]
    if count < 2:
        return np.float32(0)
    covariance = sums[5] - sums[1] * sums[3] / count
    spread = (sums[2] - sums[1] ** 2 / count) * (sums[4] - sums[3] ** 2 / count)
    return np.float32(covariance / np.sqrt(spread)) if spread > 0 else np.float32(0)


# Slices are made where they are used: made by the caller, each would be counted as a reference for every run.
@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _warp_run(padded, row, shift, spread, i, part, down, right, start, end, line):  # type: ignore[no-untyped-def]
    """Sample pixels start..end-1 of a row from four rows of a prepared frame, the second of which is `row`, `shift` pixels further on."""
    from_y, to_y, from_x, to_x = spread[i, 0, start:end], spread[i + 1, 0, start:end], spread[i, 1, start:end], spread[i + 1, 1, start:end]
    first, after = start + shift - 1, end + shift + 2
    above, upper, lower, below = (
        padded[row - 1, first:after],
        padded[row, first:after],
        padded[row + 1, first:after],
        padded[row + 2, first:after],
    )
    corrected = line[start:end]
    for k in range(len(corrected)):
        a0, a1, a2, a3 = _cubic_weights(displacement(from_x[k], to_x[k], part) - right)
        b0, b1, b2, b3 = _cubic_weights(displacement(from_y[k], to_y[k], part) - down)
        r0 = a0 * above[k] + a1 * above[k + 1] + a2 * above[k + 2] + a3 * above[k + 3]
        r1 = a0 * upper[k] + a1 * upper[k + 1] + a2 * upper[k + 2] + a3 * upper[k + 3]
        r2 = a0 * lower[k] + a1 * lower[k + 1] + a2 * lower[k + 2] + a3 * lower[k + 3]
        r3 = a0 * below[k] + a1 * below[k + 1] + a2 * below[k + 2] + a3 * below[k + 3]
        corrected[k] = b0 * r0 + b1 * r1 + b2 * r2 + b3 * r3


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _warp_column(padded, row, column, spread, i, part, down, start, end, line):  # type: ignore[no-untyped-def]
    """As `_warp_run`, where all pixels along a row are those of one column, beyond the left or right edge."""
    above, upper, lower, below = padded[row - 1, column], padded[row, column], padded[row + 1, column], padded[row + 2, column]
    from_y, to_y, corrected = spread[i, 0, start:end], spread[i + 1, 0, start:end], line[start:end]
    for k in range(len(corrected)):
        b0, b1, b2, b3 = _cubic_weights(displacement(from_y[k], to_y[k], part) - down)
        corrected[k] = b0 * above + b1 * upper + b2 * lower + b3 * below


@njit(nogil=True, cache=True, error_model="numpy")
def _warp_row(y, padded, spread, columns, runs, line):  # type: ignore[no-untyped-def]
    """Sample row y of a prepared frame into `line` (x,), `spread` and `columns` as in `displaced_rows`.

    Returns the first pixel and the one after the last that lie inside.
    """
    width, height = len(line), len(padded) - 2 * PADDING
    first_inside, after_inside = width, 0
    i, part = row_between(y, height, len(spread))
    for n in range(plan_row(spread, i, part, columns, runs)):
        first, after, whole_y, whole_x = runs[n, 0], runs[n, 1], runs[n, 2], runs[n, 3]
        row = y + whole_y
        if 0 <= row < height - 1:
            start, end = inside(first, after, whole_x, width)
            if end > start:
                first_inside, after_inside = min(first_inside, start), max(after_inside, end)
        # Beyond the edge all rows are alike.
        row = min(max(row, 1 - PADDING), height - 3 + PADDING) + PADDING
        # Pixels whose four neighbours along the row all lie in the prepared frame.
        start = min(max(first, 1 - PADDING - whole_x), after)
        end = max(min(after, width - 2 + PADDING - whole_x), start)
        down, right = np.float32(whole_y), np.float32(whole_x)
        if start > first:
            _warp_column(padded, row, 0, spread, i, part, down, first, start, line)
        _warp_run(padded, row, whole_x + PADDING, spread, i, part, down, right, start, end, line)
        if after > end:
            _warp_column(padded, row, width + 2 * PADDING - 1, spread, i, part, down, end, after, line)
    return first_inside, after_inside


@njit(nogil=True, cache=True, error_model="numpy")
def warp_frame(padded, field, corrected):  # type: ignore[no-untyped-def]
    """Sample a prepared frame along the field by cubic convolution, into `corrected` (y, x) float32; outside, the edge is repeated."""
    height, width = corrected.shape
    spread, runs = np.empty((len(field), 2, width), np.float32), np.empty((width, 4), np.int64)
    spread_field(field, spread)
    for y in range(height):
        _warp_row(y, padded, spread, field.shape[1], runs, corrected[y])


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _store(line, whole, stored):  # type: ignore[no-untyped-def]
    if whole:
        low, high = np.float32(-32768), np.float32(32767)
        for x in range(len(line)):
            stored[x] = np.rint(min(max(line[x], low), high))
    else:
        for x in range(len(line)):
            stored[x] = line[x]


@njit(nogil=True, cache=True, error_model="numpy")
def correct_frame(padded, field, offset, template, whole, corrected):  # type: ignore[no-untyped-def]
    """`warp_frame` in one pass with all that is wanted of the corrected frame, while its rows are in the processor's cache.

    Args:
        offset: about the mean of the frame, subtracted for precision alone.
        template: (y, x) float32 of zero mean.
        whole: whether to round, and to clip to the range of int16.
        corrected: (y, x) int16 or float32, overwritten.

    Returns:
        Pearson correlation of the corrected frame with the template over the pixels inside the frame.
    """
    height, width = corrected.shape
    spread, runs = np.empty((len(field), 2, width), np.float32), np.empty((width, 4), np.int64)
    line, sums = np.empty(width, np.float32), np.zeros(6)
    spread_field(field, spread)
    for y in range(height):
        first, after = _warp_row(y, padded, spread, field.shape[1], runs, line)
        if after > first:
            _correlate_row(line, first, after, offset, template[y], sums)
        _store(line, whole, corrected[y])
    return pearson(sums)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
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
