"""Displacement fields of frames at the nodes of a grid: where the nodes are and what part of the field each stands for."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def node_weights(count: int) -> NDArray[np.float64]:
    """Part of a side that each node stands for."""
    weights = np.ones(count)
    weights[[0, -1]] = 0.5
    return weights / weights.sum()


def mean_over_field(fields: Float32) -> Float32:
    """Mean displacement (n, 2) over the field of fields (n, rows, columns, 2)."""
    weights = np.outer(*(node_weights(count) for count in fields.shape[1:3]))
    return np.einsum("nijk,ij->nk", fields, weights).astype(np.float32)


def block_centres(shape: tuple[int, int], nodes: tuple[int, int]) -> Float32:
    """Where the nodes are (rows, columns, 2), px."""
    axes = [np.linspace(0, length - 1, count) for length, count in zip(shape, nodes, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
