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

Float32 = NDArray[np.float32]

PADDING = 2
"""Pixels by which a prepared frame is wider than the raw one on every side, so that four taps always fit."""

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
    """Copy a raw frame (y, x) into `padded` (y + 4, x + 4) float32, its odd lines moved left by `raster_phase` pixels, edges repeated."""
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
def bin_frame(image, margin, factor, binned):  # type: ignore[no-untyped-def]
    """Mean over 1 x 1 or 2 x 2 pixels of `image` inside `margin`, into `binned`; an incomplete last row or column is left out."""
    height, width = binned.shape
    if factor == 1:
        for y in range(height):
            for x in range(width):
                binned[y, x] = image[y + margin, x + margin]
        return
    quarter = np.float32(0.25)
    for y in range(height):
        upper, lower = image[2 * y + margin], image[2 * y + 1 + margin]
        for x in range(width):
            k = 2 * x + margin
            binned[y, x] = quarter * ((upper[k] + upper[k + 1]) + (lower[k] + lower[k + 1]))


@njit(nogil=True, cache=True, inline="always")
def _pixels_to_next(fraction, slope, most):  # type: ignore[no-untyped-def]
    """How many pixels, from 1 to `most`, a position stays between the same two neighbours when it moves by `slope` a pixel."""
    if slope > 0:
        pixels = np.ceil((1 - fraction) / slope)
    elif slope < 0:
        pixels = np.floor(fraction / -slope) + 1
    else:
        return most
    return most if pixels >= most else max(int(pixels), 1)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _plan_row(y, height, width, field, places, parts):  # type: ignore[no-untyped-def]
    """Divide row y into runs of pixels that lie between the same four neighbours; how many there are.

    Args:
        places: (width, 4) int32, overwritten: first pixel, pixels, row and column of the upper left neighbour.
        parts: (width, 4) float32, overwritten: where the first pixel lies after that neighbour in y, slope of this a pixel; likewise in x.
    """
    rows, columns = field.shape[0], field.shape[1]
    pitch_x = (width - 1) / (columns - 1)
    place = y * (rows - 1) / (height - 1)
    i = min(int(place), rows - 2)
    v = place - i
    count = 0
    for j in range(columns - 1):
        x = int(np.ceil(j * pitch_x))
        last = int(np.ceil((j + 1) * pitch_x)) if j < columns - 2 else width
        left_y = (1 - v) * field[i, j, 0] + v * field[i + 1, j, 0]
        left_x = (1 - v) * field[i, j, 1] + v * field[i + 1, j, 1]
        slope_y = ((1 - v) * field[i, j + 1, 0] + v * field[i + 1, j + 1, 0] - left_y) / pitch_x
        slope_x = ((1 - v) * field[i, j + 1, 1] + v * field[i + 1, j + 1, 1] - left_x) / pitch_x
        while x < last:
            shift_y = left_y + (x - j * pitch_x) * slope_y
            shift_x = left_x + (x - j * pitch_x) * slope_x
            whole_y, whole_x = int(np.floor(shift_y)), int(np.floor(shift_x))
            part_y, part_x = shift_y - whole_y, shift_x - whole_x
            run = _pixels_to_next(part_x, slope_x, _pixels_to_next(part_y, slope_y, last - x))
            places[count, 0], places[count, 1], places[count, 2], places[count, 3] = x, run, y + whole_y, x + whole_x
            parts[count, 0], parts[count, 1], parts[count, 2], parts[count, 3] = part_y, slope_y, part_x, slope_x
            count += 1
            x += run
    return count


@njit(nogil=True, cache=True, inline="always")
def _inside(first, count, neighbour, length):  # type: ignore[no-untyped-def]
    """First pixel and the one after the last of those in a run whose neighbours, left and right, lie within a row of `length` pixels."""
    start = first + max(-neighbour, 0)
    return start, max(min(first + count, first + length - 1 - neighbour), start)


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


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _warp_run(above, upper, lower, below, shift_y, slope_y, shift_x, slope_x, corrected):  # type: ignore[no-untyped-def]
    """One run of a row of which every pixel has the same four rows above and below and the same offset along the row.

    Kept apart because only then are all loads contiguous and the loop becomes vector instructions.
    """
    zero = np.float32(0)
    for k in range(len(corrected)):
        step = np.float32(k)
        a0, a1, a2, a3 = _cubic_weights(min(max(shift_x + step * slope_x, zero), _ONE))
        b0, b1, b2, b3 = _cubic_weights(min(max(shift_y + step * slope_y, zero), _ONE))
        r0 = a0 * above[k] + a1 * above[k + 1] + a2 * above[k + 2] + a3 * above[k + 3]
        r1 = a0 * upper[k] + a1 * upper[k + 1] + a2 * upper[k + 2] + a3 * upper[k + 3]
        r2 = a0 * lower[k] + a1 * lower[k + 1] + a2 * lower[k + 2] + a3 * lower[k + 3]
        r3 = a0 * below[k] + a1 * below[k + 1] + a2 * below[k + 2] + a3 * below[k + 3]
        corrected[k] = b0 * r0 + b1 * r1 + b2 * r2 + b3 * r3


@njit(nogil=True, cache=True, error_model="numpy")
def _warp_row(y, padded, field, places, parts, line):  # type: ignore[no-untyped-def]
    """Sample row y of a prepared frame along the field into `line` (x,); the first pixel and the one after the last that lie inside."""
    width, height = len(line), len(padded) - 2 * PADDING
    first_inside, after_inside = width, 0
    # Planning and sampling are loops of their own: only then does the second become vector instructions.
    for n in range(_plan_row(y, height, width, field, places, parts)):
        x, run, row, column = places[n, 0], places[n, 1], places[n, 2] + PADDING, places[n, 3] + PADDING
        part_y, slope_y, part_x, slope_x = parts[n, 0], parts[n, 1], parts[n, 2], parts[n, 3]
        if PADDING <= row < height + PADDING - 1:
            start, end = _inside(x, run, column - PADDING, width)
            if end > start:
                first_inside, after_inside = min(first_inside, start), max(after_inside, end)
        if row < 1 or row > height + 1:
            row, part_y, slope_y = (1, np.float32(0), np.float32(0)) if row < 1 else (height + 1, _ONE, np.float32(0))
        # Beyond the left or right edge, one pixel at a time.
        inner = min(max(1 - column, 0), run)
        outer = max(min(width + 2 - column, run), inner)
        for k in range(inner + run - outer):
            at = k if k < inner else k - inner + outer
            edge, beyond = (1, np.float32(0)) if k < inner else (width + 1, _ONE)
            _warp_run(
                padded[row - 1, edge - 1 : edge + 3],
                padded[row, edge - 1 : edge + 3],
                padded[row + 1, edge - 1 : edge + 3],
                padded[row + 2, edge - 1 : edge + 3],
                part_y + np.float32(at) * slope_y,
                np.float32(0),
                beyond,
                np.float32(0),
                line[x + at : x + at + 1],
            )
        first, end = column + inner, column + outer
        _warp_run(
            padded[row - 1, first - 1 : end + 2],
            padded[row, first - 1 : end + 2],
            padded[row + 1, first - 1 : end + 2],
            padded[row + 2, first - 1 : end + 2],
            part_y + np.float32(inner) * slope_y,
            slope_y,
            part_x + np.float32(inner) * slope_x,
            slope_x,
            line[x + inner : x + outer],
        )
    return first_inside, after_inside


@njit(nogil=True, cache=True, error_model="numpy")
def warp_frame(padded, field, corrected):  # type: ignore[no-untyped-def]
    """Sample a prepared frame along the field by cubic convolution, into `corrected` (y, x) float32; outside, the edge is repeated."""
    height, width = corrected.shape
    places, parts = np.empty((width, 4), np.int32), np.empty((width, 4), np.float32)
    for y in range(height):
        _warp_row(y, padded, field, places, parts, corrected[y])


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
    places, parts = np.empty((width, 4), np.int32), np.empty((width, 4), np.float32)
    line, sums = np.empty(width, np.float32), np.zeros(6)
    for y in range(height):
        first, after = _warp_row(y, padded, field, places, parts, line)
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
