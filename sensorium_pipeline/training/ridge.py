"""Ridge regression from features to responses, with a penalty for every neuron that leave-one-out prediction chooses.

Leaving out each trial in turn has a closed form for a linear fit: the residual divided by one minus the trial's leverage (PRESS, Allen
1974). So every trial that may be seen is used, and nothing is left to chance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Penalties that are tried, times the mean square of the singular values.
PENALTIES = tuple(10.0**power for power in np.arange(-4, 4.5, 0.5))
_NEURONS_PER_BLOCK = 1024
_SMALLEST = 1e-10


@dataclass(frozen=True)
class Ridge:
    """A fit: standardise features with mean and scale (features,), then weights (features, neurons) and intercept (neurons,)."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]
    intercept: NDArray[np.float32]

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Responses (trials, neurons) of features (trials, features)."""
        return (((features - self.mean) / self.scale) @ self.weights + self.intercept).astype(np.float32)


def fit_ridge(features: NDArray[np.float32], responses: NDArray[np.float32], device: torch.device | str = "cpu") -> Ridge:
    """Fit responses to features, in float64.

    Args:
        features: (trials, features); those that do not vary are ignored.
        responses: (trials, neurons).
        device: where to compute.
    """
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-6 * scale.max(initial=0.0), scale, np.inf)
    centred = torch.from_numpy((features - mean) / scale).to(device)
    left, singular, right = _decompose(centred)
    intercept = responses.mean(0, dtype=np.float64)
    weights = np.empty((features.shape[1], responses.shape[1]), np.float32)
    for start in range(0, responses.shape[1], _NEURONS_PER_BLOCK):
        block = slice(start, start + _NEURONS_PER_BLOCK)
        target = torch.from_numpy(responses[:, block] - intercept[block]).to(device)
        projected = left.T @ target
        penalty = _best_penalty(left, singular, target, projected)
        weights[:, block] = (right @ (projected * (singular[:, None] / (singular.square()[:, None] + penalty)))).cpu().numpy()
    return Ridge(mean.astype(np.float32), scale.astype(np.float32), weights, intercept.astype(np.float32))


def _decompose(centred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values, from the smaller of the two Gram matrices."""
    trials, features = centred.shape
    gram = centred @ centred.T if trials < features else centred.T @ centred
    squares, vectors = torch.linalg.eigh(gram)
    kept = squares > _SMALLEST * squares.max().clamp_min(1e-300)
    singular, vectors = squares[kept].sqrt(), vectors[:, kept]
    others = (centred.T if trials < features else centred) @ vectors / singular
    return (vectors, singular, others) if trials < features else (others, singular, vectors)


def _best_penalty(left: Tensor, singular: Tensor, target: Tensor, projected: Tensor) -> Tensor:
    """The penalty (neurons,) with the least squared error of leave-one-out prediction."""
    trials, neurons = target.shape
    least = torch.full((neurons,), torch.inf, dtype=target.dtype, device=target.device)
    best = torch.zeros_like(least)
    squares = singular.square()
    size = squares.mean() if len(squares) else torch.ones((), dtype=target.dtype, device=target.device)
    for relative in PENALTIES:
        shrunk = squares / (squares + relative * size)
        # The intercept is fitted too: it has a leverage of one over the number of trials.
        leverage = left.square() @ shrunk + 1 / trials
        residual = (target - left @ (shrunk[:, None] * projected)) / (1 - leverage).clamp_min(1e-9)[:, None]
        error = residual.square().mean(0)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, relative * size, best)
    return best
