"""Resampled scores are what drawing again and scoring slowly gives; draws are shared, seeded and joint over sessions."""

import numpy as np
import pytest

from sensorium_pipeline.errors import OrganiserError, PlatformError
from sensorium_pipeline.rankings import draw, resample_score
from sensorium_pipeline.scoring import score_predictions


@pytest.fixture
def session():
    random = np.random.default_rng(5)
    counts = random.integers(1, 7, 25)
    image_id = random.permutation(np.repeat(random.choice(5000, 25, replace=False), counts))
    signal = random.gamma(1.0, 1.0, (5000, 140))[image_id]
    responses = (50 + 8 * (signal + random.gamma(1.0, 1.0, signal.shape))).astype(np.float32)
    predictions = signal + random.standard_normal(signal.shape)
    responses[:, 3] = 7.3
    predictions[:, 4] = 0.1  # in float64 the mean of three such numbers is another number
    return predictions, responses, image_id


@pytest.mark.parametrize("metric", ["single_trial_correlation", "correlation_to_average"])
def test_equal_to_drawing_trials_and_scoring_them(session, metric):
    predictions, responses, image_id = session
    draws = draw("static1-1-1", image_id, 140, resamples=12)
    made = resample_score(predictions, responses, image_id, metric, draws)
    per_neuron = getattr(score_predictions(predictions, responses, image_id, np.ones(140)).per_neuron, metric)
    trials = {image: np.flatnonzero(image_id == image) for image in draws.images}
    for b in range(12):
        rows, ids = [], []
        for copy, image in enumerate(np.repeat(draws.images, draws.image_counts[b])):
            rows.append(trials[image])
            ids.append(np.full(len(trials[image]), copy))  # an image drawn twice is two images
        rows, ids = np.concatenate(rows), np.concatenate(ids)
        slow = getattr(score_predictions(predictions[rows], responses[rows], ids, np.ones(140)).per_neuron, metric)
        counts = draws.neuron_counts[b]
        assert made.images[b] == pytest.approx(slow.mean(), abs=2e-6)
        assert made.both[b] == pytest.approx((slow * counts).sum() / 140, abs=2e-6)
        assert made.neurons[b] == pytest.approx((per_neuron * counts).sum() / 140, abs=2e-6)


@pytest.mark.parametrize("metric", ["single_trial_correlation", "correlation_to_average"])
def test_a_neuron_that_is_constant_in_a_resample_counts_nothing_there(metric):
    image_id = np.repeat(np.arange(10), 3)
    predictions = np.random.default_rng(0).standard_normal((30, 1))
    responses = 0.1 + (image_id == 4)[:, None]
    draws = draw("s", image_id, 1, resamples=100)
    made = resample_score(predictions, responses, image_id, metric, draws).images
    assert (made[draws.image_counts[:, 4] == 0] == 0).all()
    assert (made[draws.image_counts[:, 4] > 0] != 0).all()


def test_draws_are_seeded_and_keep_sample_sizes():
    image_id = np.repeat(np.arange(30), 3)
    draws, again, other = (draw("s", image_id, 40, seed=seed, resamples=50) for seed in (1, 1, 2))
    assert (draws.image_counts.sum(1) == 30).all()
    assert (draws.neuron_counts.sum(1) == 40).all()
    np.testing.assert_array_equal(draws.image_counts, again.image_counts)
    np.testing.assert_array_equal(draws.neuron_counts, again.neuron_counts)
    assert (draws.image_counts != other.image_counts).any()


def test_sessions_with_the_same_images_share_image_draws_but_not_neuron_draws():
    image_id = np.repeat(np.arange(30), 3)
    one = draw("static1-1-1", image_id, 40, resamples=20)
    other = draw("static2-1-1", image_id[::-1][2:], 40, resamples=20)
    np.testing.assert_array_equal(one.image_counts, other.image_counts)
    assert (one.neuron_counts != other.neuron_counts).any()


def test_what_cannot_be_resampled_is_refused(session):
    predictions, responses, image_id = session
    draws = draw("s", image_id, 140, resamples=5)
    with pytest.raises(OrganiserError, match="FEVE"):
        resample_score(predictions, responses, image_id, "feve", draws)
    with pytest.raises(PlatformError, match="other images"):
        resample_score(predictions[:, :9], responses[:, :9], image_id, "correlation_to_average", draws)
    with pytest.raises(PlatformError, match="other images"):
        resample_score(predictions, responses, image_id + 1, "correlation_to_average", draws)
