"""Compiled Gauss-Newton steps of a displacement field towards where a frame shows a template (see `interpolation` for fields).

Sums are taken row by row in a fixed order; nothing is shared between calls, and the interpreter's lock is released.
"""

import numpy as np
from numba import njit

_ONE = np.float32(1.0)


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


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for n in range(len(a)):
        total += a[n] * b[n]
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def gauss_newton(frame, offset, gain, field, template, gradient_y, gradient_x, information, posterior, steps, evidence, statistics):  # type: ignore[no-untyped-def]
    """Move `field` (rows, columns, 2), in place, by Gauss-Newton steps towards where the frame shows the template.

    Args:
        information: (2 nodes, 2 nodes) float64, y of all nodes before x: what the pixels alone say.
        posterior: (2 nodes, 2 nodes) float64, covariance of the field given pixels and prior.
        steps: how many; the last one leaves `evidence` but moves the field only where `posterior` is not empty.
        evidence: (2 nodes,) float64, overwritten: information x the field that the pixels alone ask for, as of the last step.
        statistics: see `gradient_sums`; before the last step.
    """
    rows, columns = field.shape[0], field.shape[1]
    count = rows * columns
    sums = np.empty((rows, columns, 2))
    flat = np.empty(2 * count)
    for _ in range(steps):
        gradient_sums(frame, offset, gain, field, template, gradient_y, gradient_x, sums, statistics)
        for n in range(count):
            flat[n], flat[count + n] = field[n // columns, n % columns, 0], field[n // columns, n % columns, 1]
        for a in range(2 * count):
            n = a % count
            evidence[a] = _dot(information[a], flat) - sums[n // columns, n % columns, a // count]
        for a in range(len(posterior)):
            n = a % count
            field[n // columns, n % columns, a // count] = _dot(posterior[a], evidence)
