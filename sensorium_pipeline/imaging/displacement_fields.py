"""Displacement fields of frames at the nodes of a grid: where the nodes are, and fields of frames that tell nothing themselves."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def bridge(fields: Float32, good: NDArray[np.bool_], last_good: Float32 | None) -> Float32 | None:
    """Interpolate the fields (n, ...) of frames that are not good in time, in place; the last good field, for the next chunk."""
    known = np.flatnonzero(good)
    for n in np.flatnonzero(~good).tolist():
        after = known[known > n][:1]
        before = known[known < n][-1:]
        earlier = fields[before[0]] if len(before) else last_good
        if earlier is not None and len(after):
            first = int(before[0]) if len(before) else -1
            part = (n - first) / (int(after[0]) - first)
            fields[n] = (1 - part) * earlier + part * fields[after[0]]
        elif earlier is not None:
            fields[n] = earlier
        else:
            fields[n] = fields[after[0]] if len(after) else 0
    return fields[known[-1]].copy() if len(known) else last_good


def node_weights(count: int) -> NDArray[np.float64]:
    """Part of a side that each node stands for."""
    weights = np.ones(count)
    weights[[0, -1]] = 0.5
    return weights / weights.sum()


def block_centres(shape: tuple[int, int], nodes: tuple[int, int]) -> Float32:
    """Where the nodes are (rows, columns, 2), px."""
    axes = [np.linspace(0, length - 1, count) for length, count in zip(shape, nodes, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
