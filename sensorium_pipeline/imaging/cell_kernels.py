"""Compiled arithmetic of the search for cells, over stacks (y, x, bins) whose bins lie side by side.

One thread each, without a linear algebra library whose own threads would fight those that work on other blocks.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def smooth(stack: Float32, scale: float) -> Float32:
    """Gaussian of standard deviation `scale` px over y and x, reflected at the edges, cut off at three standard deviations."""
    reach = int(3 * scale + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / scale) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    between, result = np.empty_like(stack), np.empty_like(stack)
    _along_rows(stack, weights, between)
    _along_columns(between, weights, result)
    return result


@numba.njit(nogil=True, cache=True)
def _reflected(index, length):  # type: ignore[no-untyped-def]
    while index < 0 or index >= length:
        index = -index - 1 if index < 0 else 2 * length - 1 - index
    return index


@numba.njit(nogil=True, cache=True, fastmath=True)
def _along_rows(stack, weights, result):  # type: ignore[no-untyped-def]
    height, width, bins = stack.shape
    reach = len(weights) // 2
    for y in range(height):
        for x in range(width):
            result[y, x, :] = 0
            for k in range(len(weights)):
                source = _reflected(y + k - reach, height)
                for t in range(bins):
                    result[y, x, t] += weights[k] * stack[source, x, t]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _along_columns(stack, weights, result):  # type: ignore[no-untyped-def]
    height, width, bins = stack.shape
    reach = len(weights) // 2
    for y in range(height):
        for x in range(width):
            result[y, x, :] = 0
            for k in range(len(weights)):
                source = _reflected(x + k - reach, width)
                for t in range(bins):
                    result[y, x, t] += weights[k] * stack[y, source, t]


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
            result[y, x] = np.sqrt(total / (2 * max(bins - 1, 1)))
    return result


@numba.njit(nogil=True, cache=True, fastmath=True)
def event_energy(stack, threshold):  # type: ignore[no-untyped-def]
    """Sum of the squares above `threshold` (y, x) at every pixel of a stack."""
    height, width, bins = stack.shape
    result = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            total = np.float32(0)
            for t in range(bins):
                value = stack[y, x, t]
                total += value * value if value > threshold[y, x] else np.float32(0)
            result[y, x] = total
    return result


@numba.njit(nogil=True, cache=True, fastmath=True)
def trace_of(stack, footprint):  # type: ignore[no-untyped-def]
    """Trace (bins,) that fits a stack best for a given footprint (y, x)."""
    height, width, bins = stack.shape
    trace = np.zeros(bins, np.float32)
    energy = np.float32(0)
    for y in range(height):
        for x in range(width):
            weight = footprint[y, x]
            if weight != 0:
                energy += weight * weight
                for t in range(bins):
                    trace[t] += weight * stack[y, x, t]
    return trace / max(energy, np.float32(1e-20))


@numba.njit(nogil=True, cache=True, fastmath=True)
def footprint_of(stack, trace):  # type: ignore[no-untyped-def]
    """Footprint (y, x) that fits a stack best for a given trace (bins,)."""
    height, width, bins = stack.shape
    energy = np.float32(0)
    for t in range(bins):
        energy += trace[t] * trace[t]
    footprint = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            total = np.float32(0)
            for t in range(bins):
                total += stack[y, x, t] * trace[t]
            footprint[y, x] = total / max(energy, np.float32(1e-20))
    return footprint


@numba.njit(nogil=True, cache=True, fastmath=True)
def subtract(stack, footprint, trace):  # type: ignore[no-untyped-def]
    """Take footprint x trace from a stack in place."""
    height, width, bins = stack.shape
    for y in range(height):
        for x in range(width):
            weight = footprint[y, x]
            if weight != 0:
                for t in range(bins):
                    stack[y, x, t] -= weight * trace[t]


@numba.njit(nogil=True, cache=True, fastmath=True)
def remove_neuropil(stack, neuropil):  # type: ignore[no-untyped-def]
    """Take the neuropil around it from every pixel of a stack in place, as much of it as the pixel shows.

    Pixels differ in brightness and noise, and so in how strongly neuropil shows. The factor is held near one, since a bright cell is
    part of its own surround.
    """
    height, width, bins = stack.shape
    for y in range(height):
        for x in range(width):
            shared, power = np.float32(0), np.float32(0)
            for t in range(bins):
                shared += stack[y, x, t] * neuropil[y, x, t]
                power += neuropil[y, x, t] * neuropil[y, x, t]
            factor = min(max(shared / max(power, np.float32(1e-20)), np.float32(0.6)), np.float32(1.5))
            for t in range(bins):
                stack[y, x, t] -= factor * neuropil[y, x, t]
