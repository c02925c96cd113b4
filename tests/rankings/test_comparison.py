"""Intervals, P(best), ranks and tiers: known answers, and coverage in a small simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium_pipeline.rankings import draw, resample_score
from sensorium_pipeline.rankings.comparison import compare, corrected_variance, holm, shared_ranks
from sensorium_pipeline.scoring import score_predictions


def draws_of(scores, shared, own, resamples=2000, seed=0):
    """Draws (images, neurons, both) where `shared` moves all models together and `own` each alone."""
    random = np.random.default_rng(seed)
    images = shared * random.standard_normal(resamples) + own * random.standard_normal((len(scores), resamples))
    neurons = 0.1 * shared * random.standard_normal(resamples) + np.zeros_like(images)
    return (np.asarray(scores)[:, None] + part for part in (images, neurons, images + neurons))


def test_holm_on_a_known_example():
    p = np.ones((3, 3))
    p[0, 1], p[0, 2], p[1, 2] = 0.01, 0.04, 0.03
    p.T[np.triu_indices(3, 1)] = p[np.triu_indices(3, 1)]
    adjusted = holm(p)
    np.testing.assert_allclose([adjusted[0, 1], adjusted[1, 2], adjusted[0, 2]], [0.03, 0.06, 0.06])
    np.testing.assert_array_equal(adjusted, adjusted.T)


def test_ties_share_a_rank():
    assert shared_ranks(np.array([0.5, 0.7, 0.7, 0.1])).tolist() == [3, 1, 1, 4]
    assert shared_ranks(np.array([0.7, 0.7 + 1e-12])).tolist() == [1, 1]


def test_the_corrected_variance_counts_the_interaction_once():
    # variances of two-way samples: images + interaction, neurons + interaction, images + neurons + 3 interaction
    assert corrected_variance(np.array(5.0), np.array(3.0), np.array(4.0 + 2.0 + 3.0)) == pytest.approx(4 + 2 + 1)
    assert corrected_variance(np.array(5.0), np.array(1.0), np.array(20.0)) == 5


def test_what_images_share_widens_the_scores_interval_and_not_the_differences():
    comparison = compare(np.array([0.50, 0.49]), *draws_of([0.50, 0.49], shared=0.02, own=0.001), degrees_of_freedom=99)
    assert comparison.half_width[0] == pytest.approx(1.984 * 0.02 * np.sqrt(1.01), rel=0.1)
    assert comparison.difference_half_width.tolist() == [0, pytest.approx(1.984 * 0.001 * np.sqrt(2), rel=0.1)]
    assert comparison.rank_tier.tolist() == [1, 2]
    assert comparison.p_best[0] > 0.99


def test_models_that_cannot_be_told_apart_share_a_tier():
    scores = np.array([0.500, 0.499, 0.480, 0.4795, 0.30])
    comparison = compare(scores, *draws_of(scores, shared=0.02, own=0.002), degrees_of_freedom=99)
    assert comparison.rank_tier.tolist() == [1, 1, 2, 2, 3]
    assert comparison.rank_low.tolist() == [1, 1, 3, 3, 5]
    assert comparison.rank_high.tolist() == [2, 2, 4, 4, 5]
    assert comparison.p_best.sum() == pytest.approx(1)


def test_the_chance_to_be_best_is_that_of_the_normal_difference():
    scores = np.array([0.500, 0.498])
    found = compare(scores, *draws_of(scores, shared=0.02, own=0.002), degrees_of_freedom=99)
    # The difference of two models that scatter by 0.002 each scatters by 0.0028.
    assert found.p_best[0] == pytest.approx(0.5 * (1 + math.erf(0.002 / (0.002 * math.sqrt(2)) / math.sqrt(2))), abs=0.03)


def test_the_same_predictions_twice_are_a_tie_in_everything():
    images, neurons, both = draws_of([0.5, 0.5], shared=0.02, own=0.0)
    comparison = compare(np.array([0.5, 0.5]), images, neurons, both, degrees_of_freedom=99)
    assert comparison.rank.tolist() == comparison.rank_tier.tolist() == [1, 1]
    np.testing.assert_allclose(comparison.p_best, [0.5, 0.5])
    assert comparison.rank_high.tolist() == [1, 1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), models=st.integers(1, 9), own=st.floats(0, 0.1))
def test_every_comparison_is_coherent(seed, models, own):
    scores = np.random.default_rng(seed).normal(0.5, 0.05, models)
    found = compare(scores, *draws_of(scores, shared=0.01, own=own, resamples=60, seed=seed), degrees_of_freedom=20)
    order = np.argsort(found.rank, kind="stable")
    assert (np.diff(scores[order]) <= 0).all()
    assert (np.diff(found.rank_tier[order]) >= 0).all()
    assert ((found.rank_low >= 1) & (found.rank_low <= found.rank_high) & (found.rank_high <= models)).all()
    assert found.p_best.sum() == pytest.approx(1)
    assert (found.difference <= 0).all()
    assert np.isfinite([found.half_width, found.difference_half_width]).all()


def test_equal_models_are_rarely_told_apart_where_a_test_over_neurons_fails():
    """Two models with independent errors that all neurons share at an image: resampling neurons alone calls them different.

    The shared part does not average out over neurons, so with more neurons it only gets worse.
    """
    random = np.random.default_rng(0)
    image_id = np.repeat(np.arange(50), 4)
    crossed, over_neurons = 0, 0
    for simulation in range(100):
        signal = random.standard_normal((50, 250))
        responses = signal[image_id] + random.standard_normal((200, 250))
        models = signal + 0.7 * random.standard_normal((2, 50, 1)) + random.standard_normal((2, 50, 250))
        draws = draw("s", image_id, 250, seed=simulation, resamples=150)
        made = [resample_score(model[image_id], responses, image_id, "correlation_to_average", draws) for model in models]
        scored = [score_predictions(model[image_id], responses, image_id, np.ones(250), with_noise_ceiling=False) for model in models]
        scores = [one.metrics.correlation_to_average for one in scored]
        parts = [np.stack([getattr(one, name) for one in made]) for name in ("images", "neurons", "both")]
        found = compare(np.array(scores), *parts, degrees_of_freedom=49)
        crossed += found.rank_tier.max() == 2
        over_neurons += abs(scores[0] - scores[1]) > 1.96 * (parts[1][0] - parts[1][1]).std()
    assert crossed <= 12  # 5 expected
    assert over_neurons >= 20
