"""From resampled scores of all models to what may be said about them: intervals, differences, P(best), ranks, rank tiers.

- **Variance**, of a score or of a paired difference: 2 (v_images + v_neurons) - v_both, clipped to [max(v_images, v_neurons), v_both].
  Drawing both counts the part of the noise that belongs to single image-neuron pairs three times; the combination counts it once
  (rsatoolbox; Schuett et al. 2023). `tests/benchmarks/ranking_coverage.py` simulates how often its 95 % intervals hold the truth: 0.92
  to 0.94 for the score, 0.96 to 0.97 for the paired difference.
- **Interval**: 95 %, Student's t with min(images, neurons) - 1 degrees of freedom, around the score itself.
- **P(best)** and the 95 % **rank interval**: from draws of all scores together, normal with the corrected covariance.
- **Rank tiers**: all pairs are tested, the p-values are adjusted by Holm's method (5 % familywise), and a tier holds the best model not
  yet placed and those that follow it in order of score until one differs from it. Within a tier nobody can be told from its first.
- **Ranks**: by score; equal scores share a rank.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

CONFIDENCE = 0.95
SIMULATED_TABLES = 4000
# Scores that agree to this are the same number: predictions are float32, and means over seeds add up in any order.
SAME_SCORE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """What may be said of M models, in the order they were given in.

    Shapes: (M,) each, except p_adjusted (M, M). half_width is of the score's 95 % interval, difference and difference_half_width of the
    paired difference to the leader (0 for the leader itself). rank_low and rank_high bound the rank interval, best first.
    """

    rank: NDArray[np.int64]
    rank_tier: NDArray[np.int64]
    half_width: NDArray[np.float64]
    difference: NDArray[np.float64]
    difference_half_width: NDArray[np.float64]
    p_best: NDArray[np.float64]
    rank_low: NDArray[np.int64]
    rank_high: NDArray[np.int64]
    p_adjusted: NDArray[np.float64]


def compare(
    scores: NDArray[np.float64],
    images: NDArray[np.float64],
    neurons: NDArray[np.float64],
    both: NDArray[np.float64],
    *,
    degrees_of_freedom: int,
    seed: int = 0,
) -> Comparison:
    """Compare models by their scores (M,) and the scores resampled over images, neurons and both, (M, resamples) each.

    Equal input in the same order gives equal output; the caller keeps a canonical order.
    """
    models = len(scores)
    covariances = tuple(np.atleast_2d(np.cov(draws)) for draws in (images, neurons, both))
    variance = corrected_variance(*(np.diagonal(covariance) for covariance in covariances))
    pair_variance = corrected_variance(*(_of_differences(covariance) for covariance in covariances))
    quantile = special.stdtrit(max(degrees_of_freedom, 1), 0.5 + CONFIDENCE / 2)

    rank = shared_ranks(scores)
    leader = int(np.argmin(rank))
    differences = scores[:, None] - scores[None, :]
    p_adjusted = holm(_p_values(differences, np.sqrt(pair_variance), max(degrees_of_freedom, 1)))
    p_best, rank_low, rank_high = _simulated_tables(scores, covariances, models, seed)
    return Comparison(
        rank=rank,
        rank_tier=_tiers(rank, p_adjusted),
        half_width=quantile * np.sqrt(variance),
        difference=scores - scores[leader],
        difference_half_width=quantile * np.sqrt(pair_variance[leader]),
        p_best=p_best,
        rank_low=rank_low,
        rank_high=rank_high,
        p_adjusted=p_adjusted,
    )


def corrected_variance(images: NDArray[np.float64], neurons: NDArray[np.float64], both: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance with both images and neurons drawn from populations, from the variances of the three kinds of resampling."""
    least = np.maximum(images, neurons)
    return np.clip(2 * (images + neurons) - both, least, np.maximum(both, least))


def shared_ranks(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks from 1, highest score first; scores that are the same share the best of their ranks (1, 1, 3)."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores), dtype=np.int64)
    for place, model in enumerate(order):
        before = order[place - 1]
        ranks[model] = ranks[before] if place and scores[before] - scores[model] <= SAME_SCORE else place + 1
    return ranks


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjustment of the p-values above the diagonal of a symmetric (M, M) matrix; the diagonal becomes 1."""
    models = len(p_values)
    upper = np.triu_indices(models, 1)
    raw = p_values[upper]
    order = np.argsort(raw, kind="stable")
    stepped = raw[order] * (len(raw) - np.arange(len(raw)))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    result = np.ones_like(p_values)
    result[upper] = adjusted
    result.T[upper] = adjusted
    return result


def _of_differences(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    variance = np.diagonal(covariance)
    return np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0.0)


def _p_values(differences: NDArray[np.float64], errors: NDArray[np.float64], degrees_of_freedom: int) -> NDArray[np.float64]:
    """Two-sided p-values (M, M); the same score is never different, whatever its error."""
    same = np.abs(differences) <= SAME_SCORE
    ratio = np.divide(np.abs(differences), errors, out=np.full_like(differences, np.inf), where=errors > 0)
    p_values: NDArray[np.float64] = np.where(same, 1.0, 2 * special.stdtr(degrees_of_freedom, -ratio))
    return p_values


def _tiers(rank: NDArray[np.int64], p_adjusted: NDArray[np.float64]) -> NDArray[np.int64]:
    tiers = np.zeros(len(rank), dtype=np.int64)
    first, tier = -1, 0
    for model in np.argsort(rank, kind="stable"):
        if first < 0 or p_adjusted[first, model] < 1 - CONFIDENCE:
            first, tier = int(model), tier + 1
        tiers[model] = tier
    return tiers


def _simulated_tables(
    scores: NDArray[np.float64], covariances: tuple[NDArray[np.float64], ...], models: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    images, neurons, both = covariances
    values, vectors = np.linalg.eigh(2 * (images + neurons) - both)
    root = vectors * np.sqrt(np.maximum(values, 0.0))  # an estimate may have slightly negative directions
    noise = np.random.default_rng(seed).standard_normal((SIMULATED_TABLES, models))
    tables = scores + noise @ root.T
    tables -= tables.max(1, keepdims=True)
    best = tables >= -SAME_SCORE
    p_best = (best / best.sum(1, keepdims=True)).mean(0)
    low, high = np.empty(models, dtype=np.int64), np.empty(models, dtype=np.int64)
    tail = (1 - CONFIDENCE) / 2
    by_model = np.ascontiguousarray(tables.T)  # adding up whole rows takes half as long
    for model in range(models):
        ranks = 1 + (by_model > by_model[model] + SAME_SCORE).sum(0, dtype=np.int32)
        low[model] = int(np.quantile(ranks, tail, method="lower"))
        high[model] = int(np.quantile(ranks, 1 - tail, method="higher"))
    return p_best, low, high
