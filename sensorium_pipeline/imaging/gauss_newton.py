"""Compiled Gauss-Newton steps of a displacement field towards where a frame shows a template (see `interpolation` for fields).

Sums are taken row by row in a fixed order; nothing is shared between calls, and the interpreter's lock is released.
"""

import numpy as np
from numba import njit

from sensorium_pipeline.imaging.displaced_rows import displacement, inside, plan_row, row_between, spread_field


# As in `interpolation`, slices are made where they are used.
@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _differences(frame, row, shift, spread, i, part, down, right, start, end, offset, inverse, template, y, line):  # type: ignore[no-untyped-def]
    """What pixels start..end-1 of row y differ by from the template, sampled bilinearly from `row` and the one after it."""
    from_y, to_y, from_x, to_x = spread[i, 0, start:end], spread[i + 1, 0, start:end], spread[i, 1, start:end], spread[i + 1, 1, start:end]
    upper, lower = frame[row, start + shift : end + shift + 1], frame[row + 1, start + shift : end + shift + 1]
    expected, difference = template[y, start:end], line[start:end]
    for k in range(len(difference)):
        x, y_part = displacement(from_x[k], to_x[k], part) - right, displacement(from_y[k], to_y[k], part) - down
        above = upper[k] + x * (upper[k + 1] - upper[k])
        below = lower[k] + x * (lower[k + 1] - lower[k])
        difference[k] = (above + y_part * (below - above) - offset) * inverse - expected[k]


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add_products(gradient, y, line, part, totals, axis):  # type: ignore[no-untyped-def]
    """Share the products of differences and gradient between the rows of nodes above and below."""
    slope, above, below = gradient[y], totals[axis, 0], totals[axis, 1]
    for k in range(len(line)):
        product = slope[k] * line[k]
        above[k] += product
        below[k] += part * product


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _add_moments(line, template, y, start, end, statistics):  # type: ignore[no-untyped-def]
    difference, expected = line[start:end], template[y, start:end]
    zero = np.float32(0)
    f, ff, t, tt, ft = zero, zero, zero, zero, zero
    for k in range(len(difference)):
        value = difference[k] + expected[k]
        f += value
        ff += value * value
        t += expected[k]
        tt += expected[k] * expected[k]
        ft += value * expected[k]
    statistics[0] += end - start
    statistics[1] += f
    statistics[2] += ff
    statistics[3] += t
    statistics[4] += tt
    statistics[5] += ft


@njit(nogil=True, cache=True, error_model="numpy")
def _collect(totals, i, columns, sums):  # type: ignore[no-untyped-def]
    """Share the totals (2, 2, width) over the rows between two rows of nodes between the nodes, and begin anew."""
    width = totals.shape[2]
    pitch = (width - 1) / (columns - 1)
    for axis in range(2):
        for x in range(width):
            place = x / pitch
            j = min(int(place), columns - 2)
            u = place - j
            below = totals[axis, 1, x]
            above = totals[axis, 0, x] - below
            sums[i, j, axis] += (1 - u) * above
            sums[i, j + 1, axis] += u * above
            sums[i + 1, j, axis] += (1 - u) * below
            sums[i + 1, j + 1, axis] += u * below
    totals[:] = 0


@njit(nogil=True, cache=True, error_model="numpy")
def gradient_sums(frame, margin, offset, gain, field, template, gradient_y, gradient_x, sums, statistics):  # type: ignore[no-untyped-def]
    """Sums of (frame sampled along the field - template) times the filtered gradients, shared between the nodes of the field.

    Args:
        frame: (y, x) float32, surrounded by `margin` pixels that do not count.
        offset: float32, subtracted from the frame before it is divided by `gain`.
        gain: brightness of the frame relative to the template.
        field: (rows, columns, 2) float32, px.
        template: (y, x) float32 of zero mean.
        gradient_y: derivative of the template along y, filtered by the inverse spectrum of the noise; likewise `gradient_x`.
        sums: (rows, columns, 2) float64, overwritten.
        statistics: (6,) float64, overwritten: pixels inside the frame, and over them the sums of frame, frame^2, template, template^2
            and frame x template (frame less offset, by gain); or (0,) where none are wanted.
    """
    height, width = template.shape
    rows, columns = field.shape[0], field.shape[1]
    sums[:] = 0.0
    statistics[:] = 0.0
    inverse = np.float32(1.0 / gain)
    spread, runs = np.empty((rows, 2, width), np.float32), np.empty((width, 4), np.int64)
    line, totals = np.empty(width, np.float32), np.zeros((2, 2, width), np.float32)
    spread_field(field, spread)
    between = 0
    for y in range(height):
        i, part = row_between(y, height, rows)
        if i > between:
            _collect(totals, between, columns, sums)
            between = i
        for n in range(plan_row(spread, i, part, columns, runs)):
            first, after, row, shift = runs[n, 0], runs[n, 1], y + runs[n, 2], runs[n, 3]
            start, end = inside(first, after, shift, width)
            if not 0 <= row < height - 1:
                start, end = after, after
            for x in range(first, start):
                line[x] = 0
            for x in range(end, after):
                line[x] = 0
            if end > start:
                down, right = np.float32(runs[n, 2]), np.float32(shift)
                source = row + margin, shift + margin
                _differences(frame, *source, spread, i, part, down, right, start, end, offset, inverse, template, y, line)
                if len(statistics) > 0:
                    _add_moments(line, template, y, start, end, statistics)
        _add_products(gradient_y, y, line, part, totals, 0)
        _add_products(gradient_x, y, line, part, totals, 1)
    _collect(totals, between, columns, sums)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for n in range(len(a)):
        total += a[n] * b[n]
    return total


@njit(nogil=True, cache=True, error_model="numpy")
def gauss_newton(frame, margin, offset, gain, field, template, gradient_y, gradient_x, information, posterior, steps, evidence, statistics):  # type: ignore[no-untyped-def]
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
        gradient_sums(frame, margin, offset, gain, field, template, gradient_y, gradient_x, sums, statistics)
        for n in range(count):
            flat[n], flat[count + n] = field[n // columns, n % columns, 0], field[n // columns, n % columns, 1]
        for a in range(2 * count):
            n = a % count
            evidence[a] = _dot(information[a], flat) - sums[n // columns, n % columns, a // count]
        for a in range(len(posterior)):
            n = a % count
            field[n // columns, n % columns, a // count] = _dot(posterior[a], evidence)
