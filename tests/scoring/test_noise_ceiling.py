"""The ceilings equal the plain oracle and the truth of simulated neurons."""

import numpy as np
import plain_metrics
import pytest

from sensorium_pipeline.scoring import ImageRepeats, noise_ceiling, score_predictions


def test_the_oracle_equals_the_plain_one_with_unequal_and_single_repeats():
    rng = np.random.default_rng(0)
    image_id = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 7, 20)))
    responses = rng.gamma(1.0, 1.0, (20, 6))[image_id] + rng.gamma(1.0, 1.0, (len(image_id), 6))
    responses[:, 5] = 0.1
    precision = rng.random(6) + 0.5
    ceiling = noise_ceiling(responses, ImageRepeats.of(image_id), precision)
    expected = [plain_metrics.oracle(responses[:, neuron], image_id, precision[neuron]) for neuron in range(6)]
    np.testing.assert_allclose(ceiling.single_trial_correlation, expected, atol=1e-9)
    assert ceiling.single_trial_correlation[5] == ceiling.correlation_to_average[5] == 0


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_ceilings_are_what_the_true_model_reaches(noise):
    rng = np.random.default_rng(1)
    image_id = np.repeat(np.arange(150), 10)
    signal = rng.standard_normal((150, 200))[image_id]
    responses = signal + noise * rng.standard_normal(signal.shape)
    score = score_predictions(signal, responses, image_id, np.ones(200))
    assert score.noise_ceiling.correlation_to_average == pytest.approx(score.metrics.correlation_to_average, abs=0.01)
    # Nine noisy trials predict a little worse than the truth does, never better.
    ratio = score.noise_ceiling.single_trial_correlation / score.metrics.single_trial_correlation
    assert ratio == pytest.approx(1 / np.sqrt(1 + noise**2 / 9), abs=0.02)


def test_reliability_of_averages_on_a_worked_example():
    responses = np.array([0.0, 2.0, 4.0, 6.0, 5.0, 9.0])[:, None]
    ceiling = noise_ceiling(responses, ImageRepeats.of(np.array([1, 1, 2, 2, 3, 3])), np.ones(1))
    # Averages 1, 5, 7 have a variance of 28/3; variances over repeats 2, 2, 8 leave a noise of (1 + 1 + 4)/3 in the averages.
    assert ceiling.correlation_to_average[0] == pytest.approx(np.sqrt((28 / 3 - 2) / (28 / 3)))


def test_pure_noise_has_a_ceiling_near_zero():
    rng = np.random.default_rng(2)
    responses = rng.standard_normal((1000, 300))
    ceiling = noise_ceiling(responses, ImageRepeats.of(np.repeat(np.arange(100), 10)), np.ones(300))
    assert abs(ceiling.single_trial_correlation.mean()) < 0.02
    assert ceiling.correlation_to_average.mean() < 0.25  # a variance estimate that is cut off at 0 is a little too large
