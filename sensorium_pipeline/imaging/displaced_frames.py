"""Compiled loops over the pixels of frames that are displaced: moving them back, and Gauss-Newton steps towards a template.

A displacement field is given at the nodes of a regular grid that spans the frame from its first to its last pixel centre and is
bilinear in between. `field[i, j]` is (y, x) in pixels: what belongs at p in the template stands at p + field(p) in the frame.

A row is divided into runs, whose pixels all have their upper left neighbour in the frame at the same distance. Along a run all loads are
contiguous, so that loops over it become vector instructions. All functions release the interpreter's lock, hold no state and run one
thread each, and sums are taken row by row in a fixed order: results do not depend on how callers share frames between threads. They are
one module because what numba has cached of a module is renewed when that file changes, not when one that it imports does; and those that
may reorder sums (`fastmath`) are copied into their callers (`forceinline`), or the process that compiles would run another machine code
of them than those that load from the cache, and the last bit would differ.
"""

import numpy as np
from numba import njit

PADDING = 3
"""Pixels by which a prepared frame is wider than the raw one on every side: enough for four neighbours that all repeat the edge."""

_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
_ONE_AND_A_HALF, _TWO_AND_A_HALF = np.float32(1.5), np.float32(2.5)


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _spread_field(field, spread):  # type: ignore[no-untyped-def]
    """Displacement at every column, of the rows of nodes: field (rows, columns, 2) to `spread` (rows, 2, width) float32, overwritten."""
    rows, columns = field.shape[0], field.shape[1]
    width = spread.shape[2]
    pitch = (width - 1) / (columns - 1)
    for i in range(rows):
        for axis in range(2):
            for j in range(columns - 1):
                first = int(np.ceil(j * pitch))
                after = int(np.ceil((j + 1) * pitch)) if j < columns - 2 else width
                left, right = field[i, j, axis], field[i, j + 1, axis]
                slope = np.float32((right - left) / pitch)
                start = np.float32(left - j * pitch * slope)
                line = spread[i, axis, first:after]
                for k in range(after - first):
                    line[k] = start + np.float32(first + k) * slope


@njit(nogil=True, cache=True, inline="always")
def _row_between(y, height, rows):  # type: ignore[no-untyped-def]
    """The row of nodes above row y, and how far, 0 to 1, y lies from it towards the next."""
    place = y * (rows - 1) / (height - 1)
    i = min(int(place), rows - 2)
    return i, np.float32(place - i)


@njit(nogil=True, cache=True, inline="always")
def _displacement(upper, lower, part):  # type: ignore[no-untyped-def]
    """Displacement of a pixel, `part` of the way from one row of nodes to the next."""
    return upper + part * (lower - upper)


@njit(nogil=True, cache=True, inline="always")
def _whole(spread, i, part, x):  # type: ignore[no-untyped-def]
    """Whole pixels, y and x, by which the upper left neighbour of pixel x is away from it."""
    return (
        int(np.floor(_displacement(spread[i, 0, x], spread[i + 1, 0, x], part))),
        int(np.floor(_displacement(spread[i, 1, x], spread[i + 1, 1, x], part))),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _plan_row(spread, i, part, columns, runs):  # type: ignore[no-untyped-def]
    """Divide a row into runs; how many there are.

    Args:
        spread: see `_spread_field`.
        i: row of nodes above; `part` of the way the row lies from it to the next.
        columns: of nodes; between them the displacement is linear.
        runs: (width, 4) int64, overwritten: first pixel, the one after the last, and what is added to row and column to get those of the
            upper left neighbour.
    """
    width = spread.shape[2]
    pitch = (width - 1) / (columns - 1)
    count, x = 0, 0
    for j in range(columns - 1):
        after_block = int(np.ceil((j + 1) * pitch)) if j < columns - 2 else width
        last = _whole(spread, i, part, after_block - 1)
        while x < after_block:
            whole = _whole(spread, i, part, x)
            after = after_block
            if whole != last:
                # The first pixel elsewhere, by bisection: `here` is not yet, `after` is.
                here, after = x, after_block - 1
                while after - here > 1:
                    middle = (here + after) // 2
                    if _whole(spread, i, part, middle) == whole:
                        here = middle
                    else:
                        after = middle
            if count > 0 and runs[count - 1, 2] == whole[0] and runs[count - 1, 3] == whole[1]:
                runs[count - 1, 1] = after
            else:
                runs[count, 0], runs[count, 1], runs[count, 2], runs[count, 3] = x, after, whole[0], whole[1]
                count += 1
            x = after
    return count


@njit(nogil=True, cache=True, inline="always")
def _inside(first, after, shift, length):  # type: ignore[no-untyped-def]
    """First pixel and the one after the last of those in a run whose neighbours, left and right, lie within a row of `length` pixels."""
    start = min(max(first, -shift), after)
    return start, max(min(after, length - 1 - shift), start)


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


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _moments(line, offset, share, template):  # type: ignore[no-untyped-def]
    """Sums over a row: values (`line` less the offset, plus a share of the template), squares, the template, its squares, products."""
    zero = np.float32(0)
    f, ff, t, tt, ft = zero, zero, zero, zero, zero
    for k in range(len(line)):
        expected = template[k]
        value = line[k] - offset + share * expected
        f += value
        ff += value * value
        t += expected
        tt += expected * expected
        ft += value * expected
    return f, ff, t, tt, ft


@njit(nogil=True, cache=True, error_model="numpy")
def _add_moments(line, first, end, offset, share, template, sums):  # type: ignore[no-untyped-def]
    """Add the moments of pixels first..end-1 of a row to `sums` (6,) float64: how many, then as of `_moments`."""
    sums[0] += end - first
    for k, total in enumerate(_moments(line[first:end], offset, share, template[first:end])):
        sums[k + 1] += total


# Slices are made where they are used: made by the caller, each would be counted as a reference for every run.
@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _warp_run(padded, row, shift, spread, i, part, down, right, start, end, line):  # type: ignore[no-untyped-def]
    """Sample pixels start..end-1 of a row from four rows of a prepared frame, the second of which is `row`, `shift` pixels further on."""
    from_y, to_y, from_x, to_x = spread[i, 0, start:end], spread[i + 1, 0, start:end], spread[i, 1, start:end], spread[i + 1, 1, start:end]
    first, after = start + shift - 1, end + shift + 2
    above, upper = padded[row - 1, first:after], padded[row, first:after]
    lower, below = padded[row + 1, first:after], padded[row + 2, first:after]
    corrected = line[start:end]
    for k in range(len(corrected)):
        a0, a1, a2, a3 = _cubic_weights(_displacement(from_x[k], to_x[k], part) - right)
        b0, b1, b2, b3 = _cubic_weights(_displacement(from_y[k], to_y[k], part) - down)
        r0 = a0 * above[k] + a1 * above[k + 1] + a2 * above[k + 2] + a3 * above[k + 3]
        r1 = a0 * upper[k] + a1 * upper[k + 1] + a2 * upper[k + 2] + a3 * upper[k + 3]
        r2 = a0 * lower[k] + a1 * lower[k + 1] + a2 * lower[k + 2] + a3 * lower[k + 3]
        r3 = a0 * below[k] + a1 * below[k + 1] + a2 * below[k + 2] + a3 * below[k + 3]
        corrected[k] = b0 * r0 + b1 * r1 + b2 * r2 + b3 * r3


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _warp_column(padded, row, column, spread, i, part, down, start, end, line):  # type: ignore[no-untyped-def]
    """As `_warp_run`, where all pixels along a row are those of one column, beyond the left or right edge."""
    above, upper, lower, below = padded[row - 1, column], padded[row, column], padded[row + 1, column], padded[row + 2, column]
    from_y, to_y, corrected = spread[i, 0, start:end], spread[i + 1, 0, start:end], line[start:end]
    for k in range(len(corrected)):
        b0, b1, b2, b3 = _cubic_weights(_displacement(from_y[k], to_y[k], part) - down)
        corrected[k] = b0 * above + b1 * upper + b2 * lower + b3 * below


@njit(nogil=True, cache=True, error_model="numpy")
def _warp_row(y, padded, spread, columns, runs, line):  # type: ignore[no-untyped-def]
    """Sample row y of a prepared frame into `line` (x,), `spread` and `columns` as of `_plan_row`.

    Returns the first pixel and the one after the last that lie inside.
    """
    width, height = len(line), len(padded) - 2 * PADDING
    first_inside, after_inside = width, 0
    i, part = _row_between(y, height, len(spread))
    for n in range(_plan_row(spread, i, part, columns, runs)):
        first, after, whole_y, whole_x = runs[n, 0], runs[n, 1], runs[n, 2], runs[n, 3]
        row = y + whole_y
        if 0 <= row < height - 1:
            start, end = _inside(first, after, whole_x, width)
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
    _spread_field(field, spread)
    for y in range(height):
        _warp_row(y, padded, spread, field.shape[1], runs, corrected[y])


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _store(line, whole, stored):  # type: ignore[no-untyped-def]
    if whole:
        low, high = np.float32(-32768), np.float32(32767)
        for x in range(len(line)):
            stored[x] = np.rint(min(max(line[x], low), high))
    else:
        for x in range(len(line)):
            stored[x] = line[x]


@njit(nogil=True, cache=True, error_model="numpy")
def correct_frame(padded, field, offset, template, whole, corrected, sums):  # type: ignore[no-untyped-def]
    """`warp_frame` in one pass with all that is wanted of the corrected frame, while its rows are in the processor's cache.

    Args:
        offset: about the mean of the frame, subtracted for precision alone.
        template: (y, x) float32 of zero mean.
        whole: whether to round, and to clip to the range of int16.
        corrected: (y, x) int16 or float32, overwritten.
        sums: as `statistics` of `gradient_sums`, of the corrected frame less the offset.
    """
    height, width = corrected.shape
    spread, runs = np.empty((len(field), 2, width), np.float32), np.empty((width, 4), np.int64)
    line = np.empty(width, np.float32)
    sums[:] = 0.0
    _spread_field(field, spread)
    for y in range(height):
        first, after = _warp_row(y, padded, spread, field.shape[1], runs, line)
        if after > first:
            _add_moments(line, first, after, offset, np.float32(0), template[y], sums)
        _store(line, whole, corrected[y])


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _differences(frame, row, shift, spread, i, part, down, right, start, end, offset, inverse, template, y, line):  # type: ignore[no-untyped-def]
    """What pixels start..end-1 of row y differ by from the template, sampled bilinearly from `row` and the one after it."""
    from_y, to_y, from_x, to_x = spread[i, 0, start:end], spread[i + 1, 0, start:end], spread[i, 1, start:end], spread[i + 1, 1, start:end]
    upper, lower = frame[row, start + shift : end + shift + 1], frame[row + 1, start + shift : end + shift + 1]
    expected, difference = template[y, start:end], line[start:end]
    for k in range(len(difference)):
        x, y_part = _displacement(from_x[k], to_x[k], part) - right, _displacement(from_y[k], to_y[k], part) - down
        above = upper[k] + x * (upper[k + 1] - upper[k])
        below = lower[k] + x * (lower[k + 1] - lower[k])
        difference[k] = (above + y_part * (below - above) - offset) * inverse - expected[k]


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
def _add_products(gradient, y, line, part, totals, axis):  # type: ignore[no-untyped-def]
    """Share the products of differences and gradient between the rows of nodes above and below."""
    slope, above, below = gradient[y], totals[axis, 0], totals[axis, 1]
    for k in range(len(line)):
        product = slope[k] * line[k]
        above[k] += product
        below[k] += part * product


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
    _spread_field(field, spread)
    between = 0
    for y in range(height):
        i, part = _row_between(y, height, rows)
        if i > between:
            _collect(totals, between, columns, sums)
            between = i
        for n in range(_plan_row(spread, i, part, columns, runs)):
            first, after, row, shift = runs[n, 0], runs[n, 1], y + runs[n, 2], runs[n, 3]
            start, end = _inside(first, after, shift, width)
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
                    _add_moments(line, start, end, np.float32(0), np.float32(1), template[y], statistics)
        _add_products(gradient_y, y, line, part, totals, 0)
        _add_products(gradient_x, y, line, part, totals, 1)
    _collect(totals, between, columns, sums)


@njit(nogil=True, cache=True, forceinline=True, fastmath=True, error_model="numpy")
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
