"""How well the best possible model could do, given the noise of the responses: one ceiling for each correlation.

- **Single Trial Correlation**: the leave-one-out oracle. Each trial is "predicted" by the mean of the other repeats of its image; the
  correlation over trials per neuron, averaged over neurons (the oracle score of Walker et al. 2019, used by SENSORIUM). The oracle is
  itself the mean of few noisy trials, so the ceiling is a little low, and a very good model may pass it. Images with a single
  repeat are left out.
- **Correlation to Average**: leaving one out has no counterpart here, because the average holds every repeat. The ceiling is the
  correlation of an image's average with its expectation, sqrt(signal/(signal + noise of the average)), with the signal's variance
  estimated as the variance of the averages minus the mean of (variance over repeats)/repeats, at least 0 (CC_max of Schoppe et al.
  2016, doi:10.3389/fncom.2016.00010).

A constant neuron has a ceiling of 0. Without repeated images there is no ceiling: None. Both depend on the responses alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.scoring.metrics import NEURONS_A_BLOCK, ImageRepeats, neuron_metrics


@dataclass(frozen=True)
class NoiseCeiling:
    """Ceilings per neuron, each (neurons,) float64."""

    single_trial_correlation: NDArray[np.float64]
    correlation_to_average: NDArray[np.float64]


def noise_ceiling(responses: NDArray[np.floating[Any]], repeats: ImageRepeats, precision: NDArray[np.floating[Any]]) -> NoiseCeiling | None:
    """Ceilings of responses (trials, neurons) in raw units with precision (neurons,); None where no image was repeated.

    Raises:
        OrganiserError: a response or a precision is not a finite number.
    """
    repeated = repeats.counts > 1
    if not repeated.any():
        return None
    trials = repeated[repeats.image_of_trial]
    kept = ImageRepeats.of(repeats.images[repeats.image_of_trial[trials]])
    neurons = responses.shape[1]
    single, average = np.empty(neurons), np.empty(neurons)
    for start in range(0, neurons, NEURONS_A_BLOCK):
        block = slice(start, start + NEURONS_A_BLOCK)
        response = responses[trials, block].astype(np.float64)
        response -= response[0].copy()
        counts = kept.counts[:, None].astype(np.float64)
        sums = kept.summing @ response
        of_others = (sums[kept.image_of_trial] - response) / (counts[kept.image_of_trial] - 1)
        single[block] = neuron_metrics(of_others, response, kept, precision[block]).single_trial_correlation
        average[block] = _reliability(response, sums, counts, kept)
    return NoiseCeiling(single, average)


def _reliability(
    response: NDArray[np.float64], sums: NDArray[np.float64], counts: NDArray[np.float64], repeats: ImageRepeats
) -> NDArray[np.float64]:
    """Correlation (neurons,) of the averages with their expectation; sums (images, neurons), counts (images, 1)."""
    means = sums / counts
    if len(means) < 2:
        return np.zeros(response.shape[1])
    squares = repeats.summing @ (response**2)
    noise_of_average = ((squares - counts * means**2) / ((counts - 1) * counts)).mean(0)
    variance = means.var(0, ddof=1)
    signal = np.maximum(variance - noise_of_average, 0.0)
    return np.sqrt(np.divide(signal, variance, out=np.zeros_like(variance), where=variance > 0))
