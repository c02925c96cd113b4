"""How far a score would move with other images and other neurons: crossed bootstrap draws, the same for every model.

Neurons of one mouse are not independent samples (a test over neurons calls equal models different in 38 % of cases), and neither are
images alone enough. So images, with all their repeats together, and neurons are drawn again with replacement, each alone and both
at once; `rankings.comparison` makes variances of the three. All models see the same draws, so that differences between models are paired.

Per image and neuron only sums over repeats are needed; a resample is then a row of image weights times those sums: matrix products.
Draws are in float32: their rounding (1e-6 of a correlation) is far below what resampling moves. Scores themselves never are.

Source of the correction: the crossed bootstrap of rsatoolbox (Schuett et al. 2023, doi:10.7554/eLife.82566).
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import OrganiserError, PlatformError
from sensorium_pipeline.scoring import ImageRepeats, MetricName
from sensorium_pipeline.scoring.metrics import centred

RESAMPLING_VERSION = "crossed-corrected.1"
RESAMPLES = 1000
# 1001 resamples x 128 neurons x 5 sums x 4 bytes = 2.6 MB, which stays in cache between the product and what is made of it.
NEURONS_A_BLOCK = 128


@dataclass(frozen=True)
class Draws:
    """How often each image and each neuron of a session is in each resample; made once, used for every model.

    Shapes: images (images,) ids in ascending order; image_counts (resamples, images) and neuron_counts (resamples, neurons) uint8.
    """

    seed: int
    images: NDArray[np.int64]
    image_counts: NDArray[np.uint8]
    neuron_counts: NDArray[np.uint8]


def draw(session: str, image_id: NDArray[np.integer[Any]], neurons: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Draws:
    """Draws of a session's images (ids of its trials, (trials,)) and neurons.

    Image draws depend on the set of images alone: sessions that were shown the same images get the same draws, because an odd
    image is odd in all of them. Neurons of different sessions are drawn independently.
    """
    images = np.unique(np.asarray(image_id, dtype=np.int64))
    return Draws(
        seed,
        images,
        _counts(np.random.default_rng([seed, _words(images.tobytes())]), resamples, len(images)),
        _counts(np.random.default_rng([seed, _words(session.encode())]), resamples, neurons),
    )


def _words(payload: bytes) -> int:
    return int.from_bytes(hashlib.sha256(payload).digest()[:8], "little")


def _counts(random: np.random.Generator, resamples: int, size: int) -> NDArray[np.uint8]:
    counts = np.empty((resamples, size), dtype=np.uint8)
    for row in counts:
        row[:] = np.minimum(np.bincount(random.integers(0, size, size), minlength=size), 255)
    return counts


class ResampledScore(BaseModel):
    """A score under resampling, kept beside its `ScoreRecord`; it is as secret as the score of its tier.

    Attributes:
        score_digest: of the `ScoreRecord` it belongs to.
        metric: which metric was resampled.
        images, neurons, both: the score in each resample of images alone, of neurons alone, and of both, (resamples,) each.
        image_count, neuron_count: how many there were to draw from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    score_digest: str
    metric: MetricName
    resampling_version: str = RESAMPLING_VERSION
    resampling_seed: int
    image_count: int
    neuron_count: int
    images: tuple[float, ...]
    neurons: tuple[float, ...]
    both: tuple[float, ...]


@dataclass(frozen=True)
class Resamples:
    """A score in each resample of images alone, neurons alone and both, (resamples,) float64 each."""

    images: NDArray[np.float64]
    neurons: NDArray[np.float64]
    both: NDArray[np.float64]

    def record(self, score_digest: str, metric: MetricName, draws: Draws) -> ResampledScore:
        """What is kept of it."""
        return ResampledScore(
            score_digest=score_digest,
            metric=metric,
            resampling_seed=draws.seed,
            image_count=draws.image_counts.shape[1],
            neuron_count=draws.neuron_counts.shape[1],
            images=tuple(np.round(self.images, 9).tolist()),
            neurons=tuple(np.round(self.neurons, 9).tolist()),
            both=tuple(np.round(self.both, 9).tolist()),
        )


def resample_score(
    predictions: NDArray[np.floating[Any]],
    responses: NDArray[np.floating[Any]],
    image_id: NDArray[np.integer[Any]],
    metric: MetricName,
    draws: Draws,
) -> Resamples:
    """One of the two correlations (mean over neurons) in every resample.

    Correlations do not change with the scale of responses, so raw responses serve. A neuron that is constant within a resample
    has a correlation of 0 there (rule 2 of `scoring.metrics`).

    Args:
        predictions: (trials, neurons), finite: score first.
        responses: (trials, neurons).
        image_id: (trials,).
        metric: "single_trial_correlation" or "correlation_to_average".
        draws: made for this session by `draw`.

    Raises:
        OrganiserError: a metric that cannot rank.
        PlatformError: draws of another session.
    """
    if metric == "feve":
        raise OrganiserError("FEVE is not a ranking metric", where="metric", advice="Rank by one of the two correlations.")
    repeats = ImageRepeats.of(image_id)
    neurons = responses.shape[1]
    if not np.array_equal(repeats.images, draws.images) or draws.neuron_counts.shape[1] != neurons or predictions.shape != responses.shape:
        problem = "these draws were made for other images or another number of neurons"
        raise PlatformError(problem, where="draws", advice="Draw with the image ids and neurons of the session that is resampled.")
    average = metric == "correlation_to_average"
    # Row 0 is the sample itself. Weights of a row sum to 1 over what the metric averages over: images, or trials.
    weights = np.vstack([np.ones(len(draws.images), dtype=np.uint8), draws.image_counts]).astype(np.float64)
    weights /= weights.sum(1, keepdims=True) if average else (weights @ repeats.counts)[:, None]
    image_weights = weights.astype(np.float32)

    resamples = len(draws.image_counts)
    by_images, by_neurons, by_both = np.zeros(resamples), np.zeros(resamples), np.zeros(resamples)
    for start in range(0, neurons, NEURONS_A_BLOCK):
        block = slice(start, start + NEURONS_A_BLOCK)
        correlations = _correlations(image_weights, _sums(predictions[:, block], responses[:, block], repeats, average=average))
        counts = draws.neuron_counts[:, block].astype(np.float32)
        by_images += correlations[1:].sum(1)
        by_neurons += counts @ correlations[0]
        by_both += np.einsum("bn,bn->b", counts, correlations[1:])
    return Resamples(by_images / neurons, by_neurons / neurons, by_both / neurons)


def _sums(
    predictions: NDArray[np.floating[Any]], responses: NDArray[np.floating[Any]], repeats: ImageRepeats, *, average: bool
) -> NDArray[np.float32]:
    """Per image and neuron r, p, r^2, p^2, r p, as sums over repeats or of the averages over repeats: (5, images, neurons)."""
    response, prediction = (_z_scores(values, repeats, average=average) for values in (responses, predictions))
    products = (response, prediction, response**2, prediction**2, response * prediction)
    summed = products if average else tuple(repeats.summing @ values for values in products)
    return np.stack(summed).astype(np.float32)


def _z_scores(values: NDArray[np.floating[Any]], repeats: ImageRepeats, *, average: bool) -> NDArray[np.float64]:
    """Trials, or averages over repeats, of mean 0 and variance 1, which keep float32 sums accurate; what is constant becomes exactly 0."""
    values = values.astype(np.float64)
    values -= values[0].copy()
    if average:
        values = centred((repeats.summing @ values) / repeats.counts[:, None], np.einsum("tn,tn->n", values, values))
    else:
        values -= values.mean(0)
    std = np.sqrt(np.einsum("tn,tn->n", values, values) / len(values))
    return values * np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)


def _correlations(weights: NDArray[np.float32], sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlation (rows of weights, neurons) from weights (rows, images) and sums (5, images, neurons)."""
    # One product and not five: where other processes keep the cores busy, BLAS threads wait for each other at each product.
    kinds, images, neurons = sums.shape
    product = weights @ np.ascontiguousarray(sums.transpose(1, 0, 2)).reshape(images, kinds * neurons)
    r, p, rr, pp, rp = product.reshape(len(weights), kinds, neurons).transpose(1, 0, 2)
    rp -= r * p
    rr -= np.square(r, out=r)
    pp -= np.square(p, out=p)
    # A variance below 1e-6 of that of the whole sample is rounding: the neuron is constant in this resample.
    varies = np.minimum(rr, pp) > 1e-6
    deviations = np.sqrt(np.maximum(rr, 1e-6) * np.maximum(pp, 1e-6))
    correlations: NDArray[np.float32] = rp / deviations * varies
    return correlations
