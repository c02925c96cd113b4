"""The metrics equal a plain implementation, keep their invariances, and follow the written rules at the edges."""

import numpy as np
import plain_metrics
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium_pipeline.errors import OrganiserError, SubmissionError
from sensorium_pipeline.scoring import ImageRepeats, neuron_metrics, score_predictions


def make_session(rng, images=12, neurons=7, most_repeats=6, fewest_repeats=1, noise=1.0):
    """Responses in raw units, good predictions in standardised units, unequal repeats in random order."""
    counts = rng.integers(fewest_repeats, most_repeats + 1, images)
    image_id = rng.permutation(np.repeat(rng.choice(9000, images, replace=False), counts))
    signal = rng.gamma(1.0, 1.0, (9000, neurons))[image_id]
    responses = (signal + noise * rng.gamma(1.0, 1.0, signal.shape)).astype(np.float32)
    precision = (1 / (responses.std(0) + 0.1)).astype(np.float32)
    predictions = (signal * precision + 0.3 * rng.standard_normal(signal.shape)).astype(np.float32)
    return predictions, responses, image_id, precision


def assert_equal_to_plain(predictions, responses, image_id, precision):
    found = neuron_metrics(predictions, responses, ImageRepeats.of(image_id), precision)
    for neuron in range(responses.shape[1]):
        single, average, feve, fev = plain_metrics.neuron(predictions[:, neuron], responses[:, neuron], image_id, precision[neuron])
        assert found.single_trial_correlation[neuron] == pytest.approx(single, abs=1e-9)
        assert found.correlation_to_average[neuron] == pytest.approx(average, abs=1e-9)
        assert found.fev[neuron] == pytest.approx(np.nan if fev is None else fev, abs=1e-9, nan_ok=True)
        assert found.feve[neuron] == pytest.approx(np.nan if feve is None else feve, rel=1e-9, abs=1e-8, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 15),
    neurons=st.integers(1, 5),
    most_repeats=st.integers(1, 7),
    noise=st.floats(0, 10),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    shift=st.sampled_from([0.0, -3.0, 1000.0]),
)
def test_equal_to_the_plain_implementation(seed, images, neurons, most_repeats, noise, scale, shift):
    rng = np.random.default_rng(seed)
    predictions, responses, image_id, precision = make_session(rng, images, neurons, most_repeats, noise=noise)
    responses = responses * np.float32(scale) + np.float32(shift)
    # The precision of a session never comes from its test trials, so it need not fit them.
    precision = (1 / (responses.std(0) + scale)).astype(np.float32)
    assert_equal_to_plain(predictions, responses, image_id, precision)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1.0, 1e3, 1e6, 1e15, 1e30]), repeats=st.integers(2, 5), exact=st.booleans())
def test_predictions_that_cancel_within_every_image_gain_nothing(seed, size, repeats, exact):
    """Their averages are all but the same, and far from every trial: as differences of sums they once scored far above 1."""
    rng = np.random.default_rng(seed)
    _, responses, image_id, precision = make_session(rng, 14, 6, repeats, fewest_repeats=repeats)
    order = np.argsort(image_id, kind="stable")
    swings = rng.standard_normal((14, repeats, 6))
    swings = swings - swings[:, ::-1] if exact else swings - swings.mean(1, keepdims=True)
    predictions = np.empty_like(responses)
    predictions[order] = (size * swings).reshape(-1, 6)
    found = neuron_metrics(predictions, responses, ImageRepeats.of(image_id), precision).correlation_to_average
    if exact:
        assert (found == 0).all()
    for neuron in range(6):
        expected = plain_metrics.neuron(predictions[:, neuron], responses[:, neuron], image_id, precision[neuron])[1]
        assert found[neuron] == pytest.approx(expected, abs=1e-6)


def test_blocks_of_neurons_are_joined_in_order():
    rng = np.random.default_rng(3)
    predictions, responses, image_id, precision = make_session(rng, images=9, neurons=530)
    whole = neuron_metrics(predictions, responses, ImageRepeats.of(image_id), precision)
    for neuron in (0, 255, 256, 511, 512, 529):
        column = slice(neuron, neuron + 1)
        alone = neuron_metrics(predictions[:, column], responses[:, column], ImageRepeats.of(image_id), precision[column])
        assert whole.single_trial_correlation[neuron] == pytest.approx(alone.single_trial_correlation[0], abs=1e-12)
        assert whole.feve[neuron] == pytest.approx(alone.feve[0], abs=1e-12, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), gain=st.floats(0.1, 50), shift=st.floats(-20, 20))
def test_correlations_ignore_gain_and_shift_but_feve_does_not(seed, gain, shift):
    rng = np.random.default_rng(seed)
    predictions, responses, image_id, precision = make_session(rng, fewest_repeats=2)
    before = score_predictions(predictions.astype(np.float64), responses, image_id, precision).metrics
    after = score_predictions(predictions.astype(np.float64) * gain + shift, responses, image_id, precision).metrics
    assert after.single_trial_correlation == pytest.approx(before.single_trial_correlation, abs=1e-5)
    assert after.correlation_to_average == pytest.approx(before.correlation_to_average, abs=1e-5)
    if before.feve is not None and abs(shift) > 10:
        assert after.feve < before.feve


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_trials_and_neurons_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    predictions, responses, image_id, precision = make_session(rng)
    rows, columns = rng.permutation(len(responses)), rng.permutation(responses.shape[1])
    before = score_predictions(predictions, responses, image_id, precision)
    after = score_predictions(predictions[rows][:, columns], responses[rows][:, columns], image_id[rows], precision[columns])
    for name in ("single_trial_correlation", "correlation_to_average", "feve"):
        assert after.metrics.value(name) == pytest.approx(before.metrics.value(name), abs=1e-9)
    assert (after.images, after.trials, after.neurons, after.repeats) == (before.images, before.trials, before.neurons, before.repeats)


def test_perfect_predictions():
    rng = np.random.default_rng(0)
    _, responses, image_id, precision = make_session(rng, fewest_repeats=3, noise=0.3)
    perfect = responses.astype(np.float64) * precision
    score = score_predictions(perfect, responses, image_id, precision)
    assert score.metrics.single_trial_correlation == pytest.approx(1, abs=1e-7)
    assert score.metrics.correlation_to_average == pytest.approx(1, abs=1e-7)
    assert score.metrics.feve > 1  # it predicts the noise too, and is not clipped


def test_the_expected_response_has_a_feve_near_one():
    rng = np.random.default_rng(1)
    image_id = np.repeat(np.arange(200), 10)
    signal = rng.standard_normal((200, 5))[image_id]
    responses = signal + rng.standard_normal(signal.shape)
    score = score_predictions(signal, responses, image_id, np.ones(5))
    assert score.metrics.feve == pytest.approx(1, abs=0.02)
    assert score.feve_neurons == 5


def test_dropping_the_threshold_of_explainable_variance_ruins_feve():
    """The regression of the 2022 code: without fev >= 0.15 a model's FEVE fell from 0.433 to -0.003, carried by noise neurons."""
    rng = np.random.default_rng(2)
    image_id = np.repeat(np.arange(100), 10)
    strength = np.where(np.arange(400) < 200, 1.0, 0.08)  # fev of about 0.5, and of less than 0.01
    signal = rng.standard_normal((100, 400))[image_id] * strength
    responses = signal + rng.standard_normal(signal.shape)
    predictions = 0.7 * signal + 0.25 * rng.standard_normal((100, 400))[image_id]
    score = score_predictions(predictions, responses, image_id, np.ones(400))
    per_neuron = [plain_metrics.neuron(predictions[:, n], responses[:, n], image_id, 1.0) for n in range(400)]
    assert score.feve_neurons == 200
    assert score.metrics.feve == pytest.approx(np.mean([feve for _, _, feve, _ in per_neuron if feve is not None]), abs=1e-9)
    assert score.metrics.feve > 0.7
    total = responses.var(0, ddof=1)
    noise = responses.reshape(100, 10, 400).var(1, ddof=1).mean(0)
    without_threshold = 1 - (((responses - predictions) ** 2).mean(0) - noise) / (total - noise)
    assert without_threshold.mean() < 0


class TestRules:
    """One test for each numbered rule of `scoring.metrics`."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_1_a_prediction_that_is_not_finite_refuses_the_submission(self, value):
        predictions, responses, image_id, precision = make_session(np.random.default_rng(0), neurons=300)
        predictions[3, 270] = value
        with pytest.raises(SubmissionError, match=r"row 3, column 270.*finite number"):
            score_predictions(predictions, responses, image_id, precision)

    def test_1_a_response_or_precision_that_is_not_finite_is_the_organisers_fault(self):
        predictions, responses, image_id, precision = make_session(np.random.default_rng(0))
        responses[2, 4] = np.nan
        with pytest.raises(OrganiserError, match="row 2, column 4"):
            score_predictions(predictions, responses, image_id, precision)
        responses[2, 4], precision[1] = 0, np.inf
        with pytest.raises(OrganiserError, match="precision"):
            score_predictions(predictions, responses, image_id, precision)

    def test_2_constant_neurons_have_a_correlation_of_exactly_zero_and_count_in_the_mean(self):
        predictions, responses, image_id, precision = make_session(np.random.default_rng(0), fewest_repeats=2, noise=0.1)
        before = score_predictions(predictions, responses, image_id, precision)
        responses[:, 0] = 0.1  # not a binary fraction: its mean in floating point differs from it
        predictions[:, 1] = 12345.678
        score = score_predictions(predictions, responses, image_id, precision)
        assert (score.per_neuron.single_trial_correlation[:2] == 0).all()
        assert (score.per_neuron.correlation_to_average[:2] == 0).all()
        expected = before.per_neuron.single_trial_correlation[2:].sum() / score.neurons
        assert score.metrics.single_trial_correlation == pytest.approx(expected)
        assert np.isnan(score.per_neuron.feve[0])
        assert score.per_neuron.feve[1] < -1000
        assert_equal_to_plain(predictions, responses, image_id, precision)

    def test_3_an_image_with_a_single_repeat_only_leaves_the_noise(self):
        rng = np.random.default_rng(0)
        predictions, responses, image_id, precision = make_session(rng, fewest_repeats=2, noise=0.1)
        image_id[0] = 99999
        score = score_predictions(predictions, responses, image_id, precision)
        assert score.repeats.fewest == 1
        assert score.metrics.feve is not None
        assert_equal_to_plain(predictions, responses, image_id, precision)

    def test_3_without_repeats_feve_and_ceiling_are_undefined(self):
        predictions, responses, _, precision = make_session(np.random.default_rng(0))
        score = score_predictions(predictions, responses, np.arange(len(responses)), precision)
        assert score.metrics.feve is None
        assert score.feve_neurons == 0
        assert score.noise_ceiling.single_trial_correlation is None
        assert score.metrics.correlation_to_average == pytest.approx(score.metrics.single_trial_correlation)

    def test_4_no_neuron_above_the_threshold_leaves_the_correlations(self):
        rng = np.random.default_rng(0)
        image_id = np.repeat(np.arange(60), 10)
        responses = rng.standard_normal((600, 4))
        score = score_predictions(responses + 1.0, responses, image_id, np.ones(4))
        assert score.metrics.feve is None
        assert score.feve_neurons == 0
        assert score.metrics.single_trial_correlation == pytest.approx(1)

    def test_5_a_single_trial_is_constant(self):
        score = score_predictions(np.ones((1, 2)), np.ones((1, 2)), np.array([7]), np.ones(2))
        assert (score.metrics.single_trial_correlation, score.metrics.correlation_to_average) == (0, 0)
        assert score.metrics.feve is None

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
    def test_5_nothing_to_score_is_refused(self, shape):
        with pytest.raises(OrganiserError, match="at least one"):
            score_predictions(np.ones(shape), np.ones(shape), np.arange(shape[0]), np.ones(shape[1]))


def test_predictions_of_another_shape_or_type_are_refused_with_the_expected_shape():
    predictions, responses, image_id, precision = make_session(np.random.default_rng(0))
    with pytest.raises(SubmissionError, match="expected floating point"):
        score_predictions(predictions[:-1], responses, image_id, precision)
    with pytest.raises(SubmissionError, match="int64"):
        score_predictions(predictions.astype(np.int64), responses, image_id, precision)
    with pytest.raises(OrganiserError, match="image_id has shape"):
        score_predictions(predictions, responses, image_id[:-1], precision)
    with pytest.raises(OrganiserError, match="precision has shape"):
        score_predictions(predictions, responses, image_id, precision[:-1])
