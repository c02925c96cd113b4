"""The three metrics of SENSORIUM 2022, per neuron.

With r a standardised response (raw response x precision), p a prediction on the same scale, T trials in all:

- corr(a, b) = mean of (a - mean a)/(std a + 1e-8) * (b - mean b)/(std b + 1e-8), population standard deviations.
- **Single Trial Correlation**: corr(r, p) over all trials.
- **Correlation to Average**: r and p are averaged over the repeats of each image; corr over images.
- **FEVE** (fraction of explainable variance explained): total = variance of r over all trials (ddof 1); noise = unweighted mean over
  images of the variance over repeats (ddof 1); fev = (total - noise)/total; mse = mean of (r - p)^2;
  feve = 1 - (mse - noise)/(total - noise), for neurons with fev >= 0.15. It is not clipped.

The value of a session is the mean over neurons. Source: the SENSORIUM 2022 server (Willeke et al. 2022, arXiv:2206.08666); every
value that was finite there is the same here. Where it was not, or where there was no rule, these rules hold:

1. **NaN or infinity** in predictions: no score at all, the submission is refused (`SubmissionError`) with the first place it happens.
   In responses or precision: `OrganiserError`. A number is never put in the place of a missing one.
2. **A constant neuron** (the response or the prediction is the same in every trial, or in every image average): its correlation is
   0, exactly, and stays in the mean over neurons. A constant response has no variance to explain: it is not among the FEVE neurons. A
   constant prediction has a FEVE like any other.
3. **An image with a single repeat** has no variance over repeats: it is left out of the noise mean, and counts everywhere else (in 2022
   it made every FEVE NaN). With no repeated image at all FEVE is undefined (NaN per neuron, None in records), never 0.
4. **No neuron with fev >= 0.15**: the session's FEVE is undefined; the two correlations stand.
5. **One trial, or one image**: a single number is constant, so rule 2 gives 0. No trials or no neurons: refused.

A change of any of this is a new `METRIC_VERSION`, and all kept predictions are scored again. (The first version took the variance of
image averages as a difference of sums, which predictions that cancel within every image turned into correlations far above 1.)
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sensorium_pipeline.errors import OrganiserError, SensoriumError, SubmissionError

METRIC_VERSION = "sensorium-2022.2"
FEV_THRESHOLD = 0.15
EPSILON = 1e-8
# Image averages that differ by less than this share of the trials' root sum of squares differ by the rounding of their sums alone.
ROUNDING = 1e-13
# Neurons handled at a time: 1000 trials x 256 neurons x 8 bytes = 2 MB an array, which stays in a core's cache.
NEURONS_A_BLOCK = 256


@dataclass(frozen=True)
class ImageRepeats:
    """Which trials showed the same image; repeats may be unequal.

    Shapes: images (images,) image ids in ascending order; image_of_trial (trials,) index into images; counts (images,) repeats.
    """

    images: NDArray[np.int64]
    image_of_trial: NDArray[np.intp]
    counts: NDArray[np.intp]

    @classmethod
    def of(cls, image_id: NDArray[np.integer[Any]]) -> "ImageRepeats":
        """Group trials by image_id (trials,)."""
        images, image_of_trial, counts = np.unique(np.asarray(image_id), return_inverse=True, return_counts=True)
        return cls(images.astype(np.int64), image_of_trial.astype(np.intp), counts.astype(np.intp))

    @property
    def trials(self) -> int:
        """Number of trials."""
        return len(self.image_of_trial)

    @cached_property
    def summing(self) -> sparse.csr_matrix:
        """Matrix (images, trials) of ones: times values (trials, neurons) it gives sums over the repeats of each image."""
        ones = np.ones(self.trials)
        return sparse.csr_matrix((ones, (self.image_of_trial, np.arange(self.trials))), shape=(len(self.images), self.trials))

    @cached_property
    def noise_weights(self) -> NDArray[np.float64]:
        """Weight (images,) of an image's summed squares in the noise: 1/((repeats - 1) x repeated images), 0 for a single repeat."""
        repeated = self.counts > 1
        share = 1.0 / max(int(repeated.sum()), 1)
        return np.where(repeated, share / np.maximum(self.counts - 1, 1), 0.0)

    @property
    def repeated(self) -> bool:
        """Whether any image was shown more than once."""
        return bool((self.counts > 1).any())


@dataclass(frozen=True)
class NeuronMetrics:
    """Metrics per neuron, each (neurons,) float64.

    feve is NaN for neurons with fev below the threshold and where it is undefined; fev (the fraction of a neuron's variance that the
    image explains) is NaN where it is undefined.
    """

    single_trial_correlation: NDArray[np.float64]
    correlation_to_average: NDArray[np.float64]
    feve: NDArray[np.float64]
    fev: NDArray[np.float64]


def neuron_metrics(
    predictions: NDArray[np.floating[Any]],
    responses: NDArray[np.floating[Any]],
    repeats: ImageRepeats,
    precision: NDArray[np.floating[Any]],
) -> NeuronMetrics:
    """The three metrics of every neuron in one pass over the trials, with sums in float64.

    Args:
        predictions: (trials, neurons), standardised units.
        responses: (trials, neurons), raw units.
        repeats: the trials' images.
        precision: (neurons,) factor from raw to standardised responses.

    Raises:
        SubmissionError: a prediction is not a finite number (or so large that its square is not).
        OrganiserError: a response or a precision is not.
    """
    neurons = responses.shape[1]
    columns = np.empty((4, neurons))
    for start in range(0, neurons, NEURONS_A_BLOCK):
        block = slice(start, start + NEURONS_A_BLOCK)
        response = responses[:, block].astype(np.float64)
        response *= precision[block]
        prediction = predictions[:, block].astype(np.float64)
        columns[:, block] = _block_metrics(prediction, response, repeats)
        if not np.isfinite(columns[:2, block]).all():
            raise _not_finite(predictions, responses, precision)
    return NeuronMetrics(*columns)


def centred(averages: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Image averages (images, neurons) minus their mean over images; exactly 0 where they differ by rounding alone.

    Trials may cancel within every image, and what rounding leaves of large numbers is no prediction.

    Args:
        averages: of trials that were measured from one of them.
        squares: (neurons,) sums of the squares of the same trials.
    """
    difference = averages - averages.mean(0)
    return difference * (np.einsum("in,in->n", difference, difference) > ROUNDING**2 * squares)


def _block_metrics(prediction: NDArray[np.float64], response: NDArray[np.float64], repeats: ImageRepeats) -> NDArray[np.float64]:
    """Rows single trial, average, FEVE, fev of a block; overwrites its arguments, both (trials, neurons) standardised."""
    trials = repeats.trials
    offset = response[0] - prediction[0]
    # Measured from the first trial, a constant neuron gives sums that are exactly 0. Nothing is lost by cancellation: a value of
    # the sample lies within sqrt(trials) standard deviations of the mean.
    with np.errstate(invalid="ignore", over="ignore"):
        response -= response[0].copy()
        prediction -= prediction[0].copy()
        response_means = (repeats.summing @ response) / repeats.counts[:, None]
        prediction_means = (repeats.summing @ prediction) / repeats.counts[:, None]
        product = np.einsum("tn,tn->n", response, prediction)
        prediction_square = np.einsum("tn,tn->n", prediction, prediction)
        weights = np.stack([np.ones(trials), repeats.noise_weights[repeats.image_of_trial]])
        response_square, weighted_square = weights @ np.square(response, out=response)

        counts = repeats.counts.astype(np.float64)
        response_sum, prediction_sum = counts @ response_means, counts @ prediction_means
        response_mean, prediction_mean = response_sum / trials, prediction_sum / trials
        single = _correlation(
            product / trials - response_mean * prediction_mean,
            response_square / trials - response_mean**2,
            prediction_square / trials - prediction_mean**2,
        )
        # Averages may lie close together and far from the first trial, where sums of their squares would cancel.
        of_responses, of_predictions = centred(response_means, response_square), centred(prediction_means, prediction_square)
        average = _correlation((of_responses * of_predictions).mean(0), (of_responses**2).mean(0), (of_predictions**2).mean(0))
        feve = fev = np.full_like(single, np.nan)
        if repeats.repeated:
            total = (response_square - response_sum**2 / trials) / (trials - 1)
            noise = weighted_square - (repeats.noise_weights * counts) @ response_means**2
            square_error = response_square - 2 * product + prediction_square
            mse = (square_error + 2 * offset * (response_sum - prediction_sum)) / trials + offset**2
            varies = total > 0
            explainable = total - noise
            fev = np.divide(explainable, total, out=np.full_like(total, np.nan), where=varies)
            counted = varies & (fev >= FEV_THRESHOLD)
            feve = 1 - np.divide(mse - noise, explainable, out=np.full_like(total, np.nan), where=counted)
    return np.stack([single, average, feve, fev])


def _correlation(
    covariance: NDArray[np.float64], response_variance: NDArray[np.float64], prediction_variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correlation of every neuron, all (neurons,)."""
    deviations = [np.sqrt(np.maximum(variance, 0.0)) + EPSILON for variance in (response_variance, prediction_variance)]
    return covariance / (deviations[0] * deviations[1])


def _not_finite(
    predictions: NDArray[np.floating[Any]], responses: NDArray[np.floating[Any]], precision: NDArray[np.floating[Any]]
) -> SensoriumError:
    if not np.isfinite(precision).all():
        return OrganiserError("the precision of a neuron is not a finite number", where="precision", advice="Publish the session again.")
    if not np.isfinite(responses).all():
        trial, neuron = np.argwhere(~np.isfinite(responses))[0]
        where = f"responses, row {trial}, column {neuron}"
        return OrganiserError("a response is not a finite number", where=where, advice="Score only trials with recorded responses.")
    unusable = ~(np.abs(predictions) < np.float64(1e100))  # NaN compares false; above this a sum of squares may overflow
    trial, neuron = np.argwhere(unusable)[0] if unusable.any() else (0, 0)
    return SubmissionError(
        f"a prediction is {predictions[trial, neuron]}, not a usable number ({int(unusable.sum())} of {predictions.size} are not)",
        where=f"predictions, row {trial}, column {neuron}",
        advice="Predict a finite number for every trial and neuron.",
    )
