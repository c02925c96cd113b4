"""Compiled: where the pixels of a row of the template stand in a frame that is displaced (see `interpolation` for fields).

A row is divided into runs, whose pixels all have their upper left neighbour in the frame at the same distance. Along a run all loads are
contiguous, so that loops over it become vector instructions.

Modules that use these functions hold them in their own cached code, which numba renews when their own files change: touch those as well.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def spread_field(field, spread):  # type: ignore[no-untyped-def]
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
def row_between(y, height, rows):  # type: ignore[no-untyped-def]
    """The row of nodes above row y, and how far, 0 to 1, y lies from it towards the next."""
    place = y * (rows - 1) / (height - 1)
    i = min(int(place), rows - 2)
    return i, np.float32(place - i)


@njit(nogil=True, cache=True, inline="always")
def displacement(upper, lower, part):  # type: ignore[no-untyped-def]
    """Displacement of a pixel, `part` of the way from one row of nodes to the next."""
    return upper + part * (lower - upper)


@njit(nogil=True, cache=True, inline="always")
def _whole(spread, i, part, x):  # type: ignore[no-untyped-def]
    """Whole pixels, y and x, by which the upper left neighbour of pixel x is away from it."""
    return (
        int(np.floor(displacement(spread[i, 0, x], spread[i + 1, 0, x], part))),
        int(np.floor(displacement(spread[i, 1, x], spread[i + 1, 1, x], part))),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def plan_row(spread, i, part, columns, runs):  # type: ignore[no-untyped-def]
    """Divide a row into runs; how many there are.

    Args:
        spread: see `spread_field`.
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
def inside(first, after, shift, length):  # type: ignore[no-untyped-def]
    """First pixel and the one after the last of those in a run whose neighbours, left and right, lie within a row of `length` pixels."""
    start = min(max(first, -shift), after)
    return start, max(min(after, length - 1 - shift), start)
