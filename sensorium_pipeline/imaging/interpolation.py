"""Compiled loops over the pixels of a frame: preparing it, sampling it along a displacement field, moving it back.

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


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def gradient_sums(frame, offset, gain, field, template, gradient_y, gradient_x, sums, statistics):  # type: ignore[no-untyped-def]
    """Sums of (frame sampled along the field - template) times the filtered gradients, shared between the nodes of the field.

    Args:
        frame: (y, x) float32.
        offset: subtracted from the frame before it is divided by `gain`.
        gain: brightness of the frame relative to the template.
        field: (rows, columns, 2) float32, px.
        template: (y, x) float32 of zero mean.
        gradient_y: derivative of the template along y, filtered by the inverse spectrum of the noise; likewise `gradient_x`.
        sums: (rows, columns, 2) float64, overwritten.
        statistics: (6,) float64, overwritten: pixels inside the frame, and over them the sums of frame, frame^2, template, template^2
            and frame x template (frame less offset, by gain).
    """
    height, width = template.shape
    rows, columns = field.shape[0], field.shape[1]
    sums[:] = 0.0
    statistics[:] = 0.0
    inverse = np.float32(1.0 / gain)
    shift = np.float32(offset)
    bottom, right = np.float32(height - 1), np.float32(width - 1)
    pitch_x = (width - 1) / (columns - 1)
    slope = np.float32(1.0 / pitch_x)
    zero = np.float32(0)
    for y in range(height):
        place = y * (rows - 1) / (height - 1)
        i = min(int(place), rows - 2)
        v = place - i
        for j in range(columns - 1):
            first = int(np.ceil(j * pitch_x))
            last = int(np.ceil((j + 1) * pitch_x)) if j < columns - 2 else width
            left_y = np.float32((1 - v) * field[i, j, 0] + v * field[i + 1, j, 0])
            left_x = np.float32((1 - v) * field[i, j, 1] + v * field[i + 1, j, 1])
            step_y = np.float32((1 - v) * field[i, j + 1, 0] + v * field[i + 1, j + 1, 0]) - left_y
            step_x = np.float32((1 - v) * field[i, j + 1, 1] + v * field[i + 1, j + 1, 1]) - left_x
            start = np.float32(j * pitch_x)
            y0 = np.float32(y) + left_y
            sum_y, sum_yu, sum_x, sum_xu = zero, zero, zero, zero
            count, total_f, total_ff, total_t, total_tt, total_ft = zero, zero, zero, zero, zero, zero
            for x in range(first, last):
                u = (np.float32(x) - start) * slope
                py = y0 + u * step_y
                px = np.float32(x) + left_x + u * step_x
                inside = _ONE if (py >= zero and py <= bottom and px >= zero and px <= right) else zero
                iy = min(max(np.int32(py), np.int32(0)), np.int32(height - 2))
                ix = min(max(np.int32(px), np.int32(0)), np.int32(width - 2))
                ty = py - np.float32(iy)
                tx = px - np.float32(ix)
                upper = frame[iy, ix] * (_ONE - tx) + frame[iy, ix + 1] * tx
                lower = frame[iy + 1, ix] * (_ONE - tx) + frame[iy + 1, ix + 1] * tx
                value = (upper * (_ONE - ty) + lower * ty - shift) * inverse
                # Far outside, the extrapolated value may be huge; a select keeps it out of the sums.
                value = value if inside > zero else zero
                expected = template[y, x] * inside
                error = value - expected
                gy = gradient_y[y, x] * error
                gx = gradient_x[y, x] * error
                sum_y += gy
                sum_yu += gy * u
                sum_x += gx
                sum_xu += gx * u
                count += inside
                total_f += value
                total_ff += value * value
                total_t += expected
                total_tt += expected * expected
                total_ft += value * expected
            sums[i, j, 0] += (1 - v) * (sum_y - sum_yu)
            sums[i, j + 1, 0] += (1 - v) * sum_yu
            sums[i + 1, j, 0] += v * (sum_y - sum_yu)
            sums[i + 1, j + 1, 0] += v * sum_yu
            sums[i, j, 1] += (1 - v) * (sum_x - sum_xu)
            sums[i, j + 1, 1] += (1 - v) * sum_xu
            sums[i + 1, j, 1] += v * (sum_x - sum_xu)
            sums[i + 1, j + 1, 1] += v * sum_xu
            statistics[0] += count
            statistics[1] += total_f
            statistics[2] += total_ff
            statistics[3] += total_t
            statistics[4] += total_tt
            statistics[5] += total_ft


@njit(nogil=True, cache=True, error_model="numpy")
def gauss_newton(frame, offset, gain, field, template, gradient_y, gradient_x, information, posterior, steps, evidence, statistics):  # type: ignore[no-untyped-def]
    """Move `field` (rows, columns, 2), in place, by Gauss-Newton steps towards where the frame shows the template.

    Args:
        information: (2 nodes, 2 nodes) float64, y of all nodes before x: what the pixels alone say.
        posterior: (2 nodes, 2 nodes) float64, covariance of the field given pixels and prior.
        evidence: (2 nodes,) float64, overwritten: information x the field that the pixels alone ask for, as of the last step.
        statistics: see `gradient_sums`; before the last step.
    """
    rows, columns = field.shape[0], field.shape[1]
    count = rows * columns
    sums = np.empty((rows, columns, 2))
    for _ in range(steps):
        gradient_sums(frame, offset, gain, field, template, gradient_y, gradient_x, sums, statistics)
        for a in range(2 * count):
            total = 0.0
            for n in range(count):
                total += (
                    information[a, n] * field[n // columns, n % columns, 0]
                    + information[a, count + n] * field[n // columns, n % columns, 1]
                )
            n = a % count
            evidence[a] = total - sums[n // columns, n % columns, a // count]
        for a in range(2 * count):
            total = 0.0
            for n in range(2 * count):
                total += posterior[a, n] * evidence[n]
            n = a % count
            field[n // columns, n % columns, a // count] = total


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


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def warp_frame(padded, field, corrected):  # type: ignore[no-untyped-def]
    """Sample a prepared frame along the field by cubic convolution, into `corrected` (y, x) float32; outside, the edge is repeated."""
    height, width = corrected.shape
    places, parts = np.empty((width, 4), np.int32), np.empty((width, 4), np.float32)
    for y in range(height):
        # Planning and sampling are loops of their own: only then does the second become vector instructions.
        count = _plan_row(y, height, width, field, places, parts)
        for n in range(count):
            x, run, row, column = places[n, 0], places[n, 1], places[n, 2] + PADDING, places[n, 3] + PADDING
            part_y, slope_y, part_x, slope_x = parts[n, 0], parts[n, 1], parts[n, 2], parts[n, 3]
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
                    corrected[y, x + at : x + at + 1],
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
                corrected[y, x + inner : x + outer],
            )


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def round_frame(frame, rounded):  # type: ignore[no-untyped-def]
    """Round a frame (y, x) float32 to int16, clipped to its range."""
    low, high = np.float32(-32768), np.float32(32767)
    for y in range(frame.shape[0]):
        for x in range(frame.shape[1]):
            rounded[y, x] = np.int16(np.rint(min(max(frame[y, x], low), high)))


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def accumulate(frames, use, first, last, total, largest):  # type: ignore[no-untyped-def]
    """Add the frames (n, y, x) with `use` to `total` (y, x) and keep the maximum in `largest` (y, x), lines first..last-1."""
    for y in range(first, last):
        for n in range(frames.shape[0]):
            if use[n]:
                for x in range(frames.shape[2]):
                    value = np.float32(frames[n, y, x])
                    total[y, x] += value
                    largest[y, x] = max(largest[y, x], value)
