"""Compiled arithmetic of the search for cells, over stacks (y, x, bins) whose bins lie side by side.

One thread each, without a linear algebra library whose own threads would fight those that work on other blocks. A window into a stack
is given by its first row and column, so that the stack stays contiguous and the innermost loops run as vector instructions.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@numba.njit(nogil=True, cache=True, fastmath=True)
def bin_frames(frames, use, size, means, coarse, first_bin, square):  # type: ignore[no-untyped-def]
    """Mean over every `size` of the frames (n, y, x) that have `use`, into `means` (bins, y, x), overwritten.

    `coarse` (y, x, bins) gets the sums over squares of `square` pixels, in its bins from `first_bin` on. Bins without a frame in use are
    left out.
    """
    height, width = frames.shape[1], frames.shape[2]
    filled = 0
    for start in range(0, len(frames) - size + 1, size):
        count = 0
        for n in range(start, start + size):
            count += use[n]
        if count == 0:
            continue
        scale = np.float32(1) / np.float32(count)
        for y in range(height):
            part = means[filled, y]
            part[:] = 0
            for n in range(start, start + size):
                if use[n]:
                    for x in range(width):
                        part[x] += frames[n, y, x]
            for x in range(width):
                part[x] *= scale
            for column in range(coarse.shape[1]):
                total = np.float32(0)
                for x in range(column * square, min((column + 1) * square, width)):
                    total += part[x]
                coarse[y // square, column, first_bin + filled] += total
        filled += 1


@numba.njit(nogil=True, cache=True, forceinline=True, fastmath=True)
def add_weighted(target, weights, series, first):  # type: ignore[no-untyped-def]
    """Add to target (bins,) the rows of `series` (rows, bins) from `first` on times `weights`, four in one pass: fewer loads and stores."""
    k, many = 0, len(weights)
    while k + 4 <= many:
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        row_a, row_b, row_c, row_d = series[first + k], series[first + k + 1], series[first + k + 2], series[first + k + 3]
        for t in range(len(target)):
            target[t] += a * row_a[t] + b * row_b[t] + c * row_c[t] + d * row_d[t]
        k += 4
    while k < many:
        a, row_a = weights[k], series[first + k]
        for t in range(len(target)):
            target[t] += a * row_a[t]
        k += 1


@numba.njit(nogil=True, cache=True, forceinline=True, fastmath=True)
def high_pass(series, length, sums):  # type: ignore[no-untyped-def]
    """Take the running mean over `length` samples, fewer at the ends, from four series (4, bins) in place.

    `sums` (bins + 1, 4) float64 is room. Four sums grow side by side, since each alone would wait for its last addition.
    """
    bins = series.shape[1]
    half = length // 2
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    sums[0] = 0
    for t in range(bins):
        a += series[0, t]
        b += series[1, t]
        c += series[2, t]
        d += series[3, t]
        sums[t + 1, 0], sums[t + 1, 1], sums[t + 1, 2], sums[t + 1, 3] = a, b, c, d
    for t in range(bins):
        first, last = max(t - half, 0), min(t + half + 1, bins)
        scale = 1.0 / (last - first)
        for k in range(4):
            series[k, t] -= np.float32((sums[last, k] - sums[first, k]) * scale)


@numba.njit(nogil=True, cache=True, fastmath=True)
def high_pass_all(stack, length):  # type: ignore[no-untyped-def]
    """`high_pass` of every pixel of a stack, in place."""
    height, width, bins = stack.shape
    sums, room = np.empty((bins + 1, 4), np.float64), np.zeros((4, bins), np.float32)
    for y in range(height):
        for x in range(0, width - 3, 4):
            high_pass(stack[y, x : x + 4], length, sums)
        left = width - width % 4
        if left < width:
            room[: width - left] = stack[y, left:]
            high_pass(room, length, sums)
            stack[y, left:] = room[: width - left]


@numba.njit(nogil=True, cache=True, fastmath=True)
def weigh_rows(coarse, first, weights, result):  # type: ignore[no-untyped-def]
    """Rows `result` (y, x, bins), overwritten: weighted sums of those of `coarse`, `weights` (y, taps) from row `first` (y,) on."""
    result[:] = 0
    for y in range(len(weights)):
        for x in range(coarse.shape[1]):
            add_weighted(result[y, x], weights[y], coarse[:, x], first[y])


@numba.njit(nogil=True, cache=True, fastmath=True)
def remove_background(stack, rows, first, weights, around, inverse, square, corner, least, most):  # type: ignore[no-untyped-def]
    """Take the neuropil of every pixel of a stack away, in place; returns the noise (y, x).

    Args:
        stack: (y, x, bins) float32, a window of the plane without slow changes, its first pixel at `corner` (y, x) of the squares.
        rows: (y, columns, bins) float32, smooth neuropil in the rows of the window at columns of the coarse grid.
        first, weights: (x,) and (x, taps), how the pixels of a row follow from those columns.
        around: (squares y, squares x, directions, bins) float32, brightness around the squares that the window lies in.
        inverse: (squares y, squares x, directions, directions) float32, of their products, damped.
        square: px.
        least, most: how strongly neuropil can show in a pixel.

    Pixels differ in how strongly neuropil shows in them, so its factor is fitted, within bounds since a bright cell is part of its own
    surround. What is left of it, where it is not as smooth as was assumed, is fitted by what shows around at a distance. Noise is the
    standard deviation that the steps between bins tell.
    """
    height, width, bins = stack.shape
    directions = around.shape[2]
    noise = np.empty((height, width), np.float32)
    smooth_here = np.empty(bins, np.float32)
    product, shares = np.empty(directions, np.float32), np.empty(directions, np.float32)
    for y in range(height):
        for x in range(width):
            series = stack[y, x]
            smooth_here[:] = 0
            add_weighted(smooth_here, weights[x], rows[y], first[x])
            shared, power = np.float32(0), np.float32(0)
            for t in range(bins):
                shared += series[t] * smooth_here[t]
                power += smooth_here[t] * smooth_here[t]
            factor = min(max(shared / max(power, np.float32(1e-20)), np.float32(least)), np.float32(most))
            for t in range(bins):
                series[t] -= factor * smooth_here[t]
            row, column = (corner[0] + y) // square, (corner[1] + x) // square
            for k in range(directions):
                shown, total = around[row, column, k], np.float32(0)
                for t in range(bins):
                    total += series[t] * shown[t]
                product[k] = total
            for k in range(directions):
                share = np.float32(0)
                for j in range(directions):
                    share -= inverse[row, column, k, j] * product[j]
                shares[k] = share
            add_weighted(series, shares, around[row, column], 0)
            total = np.float32(0)
            for t in range(1, bins):
                step = series[t] - series[t - 1]
                total += step * step
            noise[y, x] = np.sqrt(total / np.float32(2 * max(bins - 1, 1)))
    return noise


@numba.njit(nogil=True, cache=True, fastmath=True)
def smooth(stack, weights, stride, result):  # type: ignore[no-untyped-def]
    """Every `stride`-th row and column of a stack (y, x, bins) after convolution with `weights` along both; zero beyond the edges.

    `result` (y / stride, x / stride, bins) is overwritten.
    """
    height, width, bins = stack.shape
    reach = len(weights) // 2
    line = np.empty((width, bins), np.float32)
    for row in range(result.shape[0]):
        y = row * stride
        result[row] = 0
        line[:] = 0
        for k in range(max(-reach, -y), min(reach, height - 1 - y) + 1):
            weight = weights[k + reach]
            for x in range(width):
                for t in range(bins):
                    line[x, t] += weight * stack[y + k, x, t]
        for column in range(result.shape[1]):
            x = column * stride
            for k in range(max(-reach, -x), min(reach, width - 1 - x) + 1):
                weight = weights[k + reach]
                for t in range(bins):
                    result[row, column, t] += weight * line[x + k, t]


@numba.njit(nogil=True, cache=True, fastmath=True)
def step_noise(stack):  # type: ignore[no-untyped-def]
    """Standard deviation of the noise (y, x) of a stack, from the steps between bins."""
    height, width, bins = stack.shape
    result = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            total = np.float32(0)
            for t in range(1, bins):
                step = stack[y, x, t] - stack[y, x, t - 1]
                total += step * step
            result[y, x] = np.sqrt(total / np.float32(2 * max(bins - 1, 1)))
    return result


@numba.njit(nogil=True, cache=True, fastmath=True)
def event_energy(stack, noise, threshold):  # type: ignore[no-untyped-def]
    """Sum of the squares above `threshold` (y, x) at every pixel of a stack, in units of the noise (y, x)."""
    height, width, bins = stack.shape
    result = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            level, total = threshold * noise[y, x], np.float32(0)
            for t in range(bins):
                value = stack[y, x, t]
                total += value * value if value > level else np.float32(0)
            result[y, x] = total / (noise[y, x] * noise[y, x])
    return result


@numba.njit(nogil=True, cache=True, fastmath=True)
def piece_of(footprint, level, y, x):  # type: ignore[no-untyped-def]
    """Footprint (y, x) without what is not joined to the pixel (y, x), side by side, by pixels above `level`."""
    height, width = footprint.shape
    result = np.zeros_like(footprint)
    open_y, open_x = np.empty(footprint.size, np.int64), np.empty(footprint.size, np.int64)
    open_y[0], open_x[0], many = y, x, 1
    result[y, x] = footprint[y, x]
    while many > 0:
        many -= 1
        y, x = open_y[many], open_x[many]
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            to_y, to_x = y + down, x + right
            if 0 <= to_y < height and 0 <= to_x < width and footprint[to_y, to_x] > level and result[to_y, to_x] == 0:
                result[to_y, to_x] = footprint[to_y, to_x]
                open_y[many], open_x[many] = to_y, to_x
                many += 1
    return result


@numba.njit(nogil=True, cache=True, fastmath=True)
def take_from_smoothed(smoothed, footprint, trace, row, column, noise, threshold, energy):  # type: ignore[no-untyped-def]
    """Take footprint (y, x) x trace from a smoothed stack at (row, column) in place, and bring the energy of events there up to date."""
    bins = len(trace)
    for y in range(footprint.shape[0]):
        for x in range(footprint.shape[1]):
            weight = footprint[y, x]
            if weight == 0:
                continue
            error = noise[row + y, column + x]
            level, total = threshold * error, np.float32(0)
            for t in range(bins):
                value = smoothed[row + y, column + x, t] - weight * trace[t]
                smoothed[row + y, column + x, t] = value
                total += value * value if value > level else np.float32(0)
            energy[row + y, column + x] = total / (error * error)


@numba.njit(nogil=True, cache=True, fastmath=True)
def trace_of(stack, footprint, row, column):  # type: ignore[no-untyped-def]
    """Trace (bins,) that fits a stack best for a given footprint (y, x) at (row, column)."""
    bins = stack.shape[2]
    trace = np.zeros(bins, np.float32)
    energy = np.float32(0)
    for y in range(footprint.shape[0]):
        for x in range(footprint.shape[1]):
            weight = footprint[y, x]
            if weight != 0:
                energy += weight * weight
                for t in range(bins):
                    trace[t] += weight * stack[row + y, column + x, t]
    return trace / max(energy, np.float32(1e-20))


@numba.njit(nogil=True, cache=True, fastmath=True)
def footprint_of(stack, trace, row, column, height, width):  # type: ignore[no-untyped-def]
    """Footprint (height, width) at (row, column) that fits a stack best for a given trace (bins,)."""
    bins = len(trace)
    energy = np.float32(0)
    for t in range(bins):
        energy += trace[t] * trace[t]
    footprint = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            total = np.float32(0)
            for t in range(bins):
                total += stack[row + y, column + x, t] * trace[t]
            footprint[y, x] = total / max(energy, np.float32(1e-20))
    return footprint


@numba.njit(nogil=True, cache=True, fastmath=True)
def subtract(stack, footprint, trace, row, column):  # type: ignore[no-untyped-def]
    """Take footprint (y, x) x trace from a stack at (row, column) in place."""
    for y in range(footprint.shape[0]):
        for x in range(footprint.shape[1]):
            weight = footprint[y, x]
            if weight != 0:
                for t in range(len(trace)):
                    stack[row + y, column + x, t] -= weight * trace[t]


@numba.njit(nogil=True, cache=True, fastmath=True)
def fit_footprint(stack, footprint, support, trace, row, column):  # type: ignore[no-untyped-def]
    """Refit a cell, footprint then trace, to a stack that lacks it, in place; the stack is left as what the new cell leaves over.

    Footprint (y, x) >= 0 within the support (y, x). One round of alternating least squares.
    """
    height, width = footprint.shape
    bins = len(trace)
    energy = np.float32(0)
    for t in range(bins):
        energy += trace[t] * trace[t]
    norm = np.float32(0)
    change = np.zeros(bins, np.float32)
    for y in range(height):
        for x in range(width):
            if not support[y, x]:
                continue
            total = np.float32(0)
            for t in range(bins):
                total += stack[row + y, column + x, t] * trace[t]
            fitted = max(footprint[y, x] + total / max(energy, np.float32(1e-20)), np.float32(0))
            step = fitted - footprint[y, x]
            footprint[y, x] = fitted
            norm += fitted * fitted
            # The trace is fitted to what the new footprint leaves.
            for t in range(bins):
                value = stack[row + y, column + x, t] - step * trace[t]
                stack[row + y, column + x, t] = value
                change[t] += fitted * value
    for t in range(bins):
        change[t] /= max(norm, np.float32(1e-20))
        trace[t] += change[t]
    for y in range(height):
        for x in range(width):
            weight = footprint[y, x]
            if weight != 0:
                for t in range(bins):
                    stack[row + y, column + x, t] -= weight * change[t]


@numba.njit(nogil=True, cache=True, fastmath=True)
def add_turned(stack, rows, columns, lags, weights, sums):  # type: ignore[no-untyped-def]
    """Weighted sums (draws, bins) of the pixels of a stack at rows and columns (draws, weights), each turned in time by its lag."""
    draws, count = rows.shape
    bins = stack.shape[2]
    for draw in range(draws):
        for k in range(count):
            y, x, lag, weight = rows[draw, k], columns[draw, k], lags[draw, k], weights[k]
            for t in range(bins - lag):
                sums[draw, t] += weight * stack[y, x, t + lag]
            for t in range(lag):
                sums[draw, bins - lag + t] += weight * stack[y, x, t]
