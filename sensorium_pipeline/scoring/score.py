"""One call from predictions and responses to everything that is kept of a score."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import OrganiserError, SubmissionError
from sensorium_pipeline.scoring.metrics import ImageRepeats, NeuronMetrics, neuron_metrics
from sensorium_pipeline.scoring.noise_ceiling import NoiseCeiling, noise_ceiling
from sensorium_pipeline.scoring.records import Metrics, RepeatCounts


@dataclass(frozen=True)
class SessionScore:
    """The score of one session's predictions: per neuron (kept in the sealed store) and as means over neurons."""

    per_neuron: NeuronMetrics
    ceiling_per_neuron: NoiseCeiling | None
    metrics: Metrics
    noise_ceiling: Metrics
    neurons: int
    feve_neurons: int
    images: int
    trials: int
    repeats: RepeatCounts


def score_predictions(
    predictions: NDArray[np.floating[Any]],
    responses: NDArray[np.floating[Any]],
    image_id: NDArray[np.integer[Any]],
    precision: NDArray[np.floating[Any]],
    *,
    with_noise_ceiling: bool = True,
) -> SessionScore:
    """Score the predictions of one tier of one session; `scoring.metrics` says what each number is, and the rules at its edges.

    Args:
        predictions: (trials, neurons), standardised units, rows and columns in the order of the responses.
        responses: (trials, neurons), raw units.
        image_id: (trials,) which image each trial showed; repeats may be unequal.
        precision: (neurons,) `Statistics.response_precision` of the session.
        with_noise_ceiling: it depends on the responses alone, so whoever scores many submissions may compute it once.

    Raises:
        SubmissionError: predictions of another shape, or not finite.
        OrganiserError: responses, image ids and precision do not fit together, are empty or not finite.
    """
    if responses.ndim != 2 or 0 in responses.shape:
        problem = f"responses have shape {responses.shape}, expected (trials, neurons) with at least one of each"
        raise OrganiserError(problem, where="responses", advice="Publish the session again.")
    trials, neurons = responses.shape
    for name, array, shape in (("image_id", image_id, (trials,)), ("precision", precision, (neurons,))):
        if array.shape != shape:
            problem = f"{name} has shape {array.shape}, expected {shape} for responses of shape {responses.shape}"
            raise OrganiserError(problem, where=name, advice="Publish the session again.")
    if not np.isfinite(precision).all():
        raise OrganiserError("the precision of a neuron is not a finite number", where="precision", advice="Publish the session again.")
    if predictions.shape != responses.shape or not np.issubdtype(predictions.dtype, np.floating):
        found = f"predictions are {predictions.dtype} of shape {predictions.shape}"
        raise SubmissionError(
            f"{found}, expected floating point (trials, neurons) = {responses.shape}",
            where="predictions",
            advice="Predict one row for each trial and one column for each neuron, in the order of the session.",
        )
    repeats = ImageRepeats.of(image_id)
    per_neuron = neuron_metrics(predictions, responses, repeats, precision)
    ceiling = noise_ceiling(responses, repeats, precision) if with_noise_ceiling else None
    counted = np.isfinite(per_neuron.feve)
    return SessionScore(
        per_neuron=per_neuron,
        ceiling_per_neuron=ceiling,
        metrics=Metrics(
            single_trial_correlation=float(per_neuron.single_trial_correlation.mean()),
            correlation_to_average=float(per_neuron.correlation_to_average.mean()),
            feve=float(per_neuron.feve[counted].mean()) if counted.any() else None,
        ),
        noise_ceiling=Metrics()
        if ceiling is None
        else Metrics(
            single_trial_correlation=float(ceiling.single_trial_correlation.mean()),
            correlation_to_average=float(ceiling.correlation_to_average.mean()),
        ),
        neurons=neurons,
        feve_neurons=int(counted.sum()),
        images=len(repeats.images),
        trials=trials,
        repeats=RepeatCounts(fewest=int(repeats.counts.min()), most=int(repeats.counts.max())),
    )
