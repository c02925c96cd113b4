"""Tiers, statistics of training trials, and the scale that models see."""

import numpy as np
import pytest
import torch

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.sessions.scaling import rescale
from sensorium_pipeline.sessions.statistics import training_statistics
from sensorium_pipeline.sessions.tiers import assign_tiers

SETS = dict.fromkeys(range(1000), "single") | dict.fromkeys(range(1000, 1010), "test") | dict.fromkeys(range(1010, 1020), "final_test")


def test_a_tenth_of_the_images_shown_once_is_validation():
    tiers = assign_tiers(np.arange(1020), SETS, "1-1-1")
    assert {name: int((tiers == name).sum()) for name in np.unique(tiers)} == {
        "train": 900,
        "validation": 100,
        "test": 10,
        "final_test": 10,
    }


def test_the_draw_is_the_sessions_own_and_repeatable():
    first = assign_tiers(np.arange(1020), SETS, "1-1-1")
    np.testing.assert_array_equal(first, assign_tiers(np.arange(1020), SETS, "1-1-1"))
    assert (first != assign_tiers(np.arange(1020), SETS, "2-1-1")).any()


def test_the_draw_knows_nothing_of_the_order_shown():
    order = np.random.default_rng(0).permutation(1020)
    np.testing.assert_array_equal(assign_tiers(order, SETS, "1-1-1"), assign_tiers(np.arange(1020), SETS, "1-1-1")[order])


def test_an_image_of_no_set_is_named():
    with pytest.raises(InputError, match="4711"):
        assign_tiers(np.array([1, 4711]), SETS, "1-1-1")


def test_statistics_are_of_the_population_and_count_each_trial():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 12, 16), np.uint8)
    index = np.array([0, 1, 1, 4])
    table = rng.normal(3, 2, (4, 7)).astype(np.float32)
    behavior, pupil = table[:, :3] + 1, table[:, :2] - 1
    statistics = training_statistics(images, index, table, behavior, pupil)
    shown = images[index].astype(np.float64)
    assert statistics.image_mean == pytest.approx(shown.mean(), rel=1e-12)
    assert statistics.image_std == pytest.approx(shown.std(), rel=1e-12)
    np.testing.assert_allclose(statistics.response_mean, table.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.response_std, table.std(axis=0, ddof=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.behavior_std, behavior.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.pupil_center_mean, pupil.mean(axis=0), rtol=1e-6)


def test_precision_floors_small_deviations_at_a_hundredth_of_the_mean():
    table = np.array([[0, 0, 5], [2, 1e-4, 5]], np.float32)
    statistics = training_statistics(np.zeros((1, 2, 2), np.uint8), np.zeros(2, int), table)
    floor = 0.01 * np.mean([1.0, 5e-5, 0.0])
    np.testing.assert_allclose(statistics.response_precision, [1.0, 1 / floor, 1 / floor], rtol=1e-5)


def test_statistics_refuse_hidden_responses_and_an_empty_tier():
    images = np.zeros((1, 2, 2), np.uint8)
    with pytest.raises(OrganiserError, match="not finite"):
        training_statistics(images, np.zeros(2, int), np.array([[1.0], [np.nan]], np.float32))
    with pytest.raises(OrganiserError, match="no training trial"):
        training_statistics(images, np.zeros(0, int), np.zeros((0, 1), np.float32))


@pytest.mark.parametrize(("size", "shape"), [((144, 256), (36, 64)), ((30, 50), (9, 16)), ((20, 20), (33, 47)), ((144, 256), (144, 256))])
def test_scaling_is_torchs(size, shape):
    images = np.random.default_rng(0).integers(0, 256, (6, *size), np.uint8)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(images.astype(np.float32))[:, None], size=shape, mode="bilinear", align_corners=False, antialias=False
    )[:, 0].numpy()
    ours = rescale(images, shape)
    assert ours.dtype == np.float32
    if size == (144, 256):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=1e-5)
