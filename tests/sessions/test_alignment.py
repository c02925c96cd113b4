"""Alignment of activity and behaviour to trials, against sums written out by hand and by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.sessions.alignment import (
    lost_frames,
    outside,
    rate_of_change,
    responses,
    sample_delays,
    spoiled_samples,
    touches,
    window_means,
)


def test_window_sums_whole_frames_and_the_shares_at_both_ends():
    # Frames at 0, 0.2, 0.4 ...; the window from 0.5 to 1.0 holds half of (0.4, 0.6], then (0.6, 0.8] and (0.8, 1.0].
    times = 0.2 * np.arange(8)
    activity = np.array([[0, 0, 7, 10, 20, 40, 80, 0]], np.float32)
    np.testing.assert_allclose(responses(activity, times, np.zeros(1), np.array([0.5]), (0.0, 0.5)), [[5 + 20 + 40]], rtol=1e-6)


def test_a_later_scanned_neuron_sums_earlier_frames():
    times = 0.2 * np.arange(8)
    activity = np.tile(np.array([0, 0, 7, 10, 20, 40, 80, 0], np.float32), (2, 1))
    got = responses(activity, times, np.array([0.0, 0.1]), np.array([0.5]), (0.0, 0.5))
    # A delay of 0.1 s moves its samples to 0.1, 0.3, 0.5 ...: the window holds (0.5, 0.7], (0.7, 0.9] and half of (0.9, 1.1].
    np.testing.assert_allclose(got, [[65, 10 + 20 + 20]], rtol=1e-6)


def test_sum_is_not_multiplied_by_the_frame_time():
    for rate in (5.0, 10.0, 40.0):
        times = np.arange(int(4 * rate)) / rate
        ones = np.ones((1, len(times)), np.float32)
        np.testing.assert_allclose(responses(ones, times, np.zeros(1), np.array([1.03])), [[0.5 * rate]], rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(3, 40), start=st.floats(0, 0.4), length=st.floats(0.05, 1.5))
def test_equals_brute_force_on_a_fine_grid(seed, rate, start, length):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.9, 1.1, 60)) / rate
    activity = rng.exponential(size=(3, 60)).astype(np.float32)
    delays = rng.uniform(0, 1 / rate, 3)
    onsets = (
        rng.permutation(rng.uniform(times[0] + delays.max() - 1 / rate, times[-1] - 2, 20))
        if times[-1] > 4
        else np.array([times[0] + 1 / rate])
    )
    got = responses(activity, times, delays, onsets, (start, start + length))
    for neuron in range(3):
        edges = np.concatenate([[2 * times[0] - times[1]], times]) + delays[neuron]
        for trial, onset in enumerate(onsets):
            inside = [
                max(0.0, min(onset + start + length, edges[i + 1]) - max(onset + start, edges[i])) / (edges[i + 1] - edges[i])
                for i in range(60)
            ]
            if onset + start < edges[0] or onset + start + length > edges[-1]:
                assert np.isnan(got[trial, neuron])
            else:
                assert got[trial, neuron] == pytest.approx(np.dot(inside, activity[neuron]), rel=1e-4, abs=1e-5)


def test_order_of_trials_does_not_matter():
    rng = np.random.default_rng(0)
    times = np.arange(400) / 8.0
    activity, delays = rng.exponential(size=(4, 400)).astype(np.float32), rng.uniform(0, 0.1, 4)
    onsets = np.sort(rng.uniform(1, 48, 50))
    order = rng.permutation(50)
    ahead, shuffled = responses(activity, times, delays, onsets), responses(activity, times, delays, onsets[order])
    np.testing.assert_array_equal(ahead[order], shuffled)


def test_missing_samples_make_exactly_the_windows_they_touch_missing():
    times = np.arange(100) / 10.0
    activity = np.ones((1, 100), np.float32)
    activity[0, 50] = np.nan  # stands for (4.9, 5.0]
    onsets = np.array([4.0, 4.34, 4.36, 4.94, 4.96, 6.0])
    missing = np.isnan(responses(activity, times, np.zeros(1), onsets)[:, 0])
    assert missing.tolist() == [False, False, True, True, False, False]
    marked = np.arange(100) == 50
    assert touches(marked, times, np.zeros(1), onsets).tolist() == missing.tolist()


def test_delays_widen_what_a_marked_sample_touches():
    times, marked = np.arange(100) / 10.0, np.arange(100) == 50
    onsets = np.array([4.34, 4.40, 5.0, 5.10])
    assert touches(marked, times, np.array([0.0, 0.1]), onsets).tolist() == [False, True, True, False]


def test_windows_outside_the_recording():
    times, delays = np.arange(100) / 10.0, np.array([0.0, 0.05])
    assert outside(times, delays, np.array([-0.2, 0.0, 9.3, 9.4, np.nan])).tolist() == [True, False, False, True, True]


def test_lost_frames_are_where_an_interval_is_too_long():
    times = np.delete(np.arange(50) / 8.0, [20, 21])
    assert np.flatnonzero(lost_frames(times)).tolist() == [20]


def test_activity_after_a_flagged_run_is_spoiled_too():
    flagged = np.array([0, 0, 1, 1, 0, 0, 1], bool)
    assert spoiled_samples(flagged).tolist() == [False, False, True, True, True, False, True]


def test_delay_is_the_planes_and_the_mean_lines():
    np.testing.assert_allclose(sample_delays(np.array([0.0, 100.5]), 0.03, 1e-4), [0.03, 0.03 + 0.01005])


def test_behaviour_is_averaged_over_the_same_window_and_missing_samples_are_counted():
    time = np.arange(0, 10, 0.05)
    values = np.stack([time, np.ones_like(time)], axis=1)
    values[(time > 2.0) & (time < 2.4), 1] = np.nan
    means, present = window_means(time, values, np.array([1.0, 2.0, 20.0]), (0.0499, 0.5499))
    inside = time[(time >= 1.0499) & (time < 1.5499)]
    assert means[0, 0] == pytest.approx(inside.mean())
    assert present[0] == pytest.approx([1.0, 1.0])
    assert present[1] == pytest.approx([1.0, 0.3])
    assert np.isnan(means[2]).all()
    assert present[2].tolist() == [0, 0]


def test_rate_of_change():
    time = np.arange(0, 5, 0.05)
    rate = rate_of_change(time, np.where(np.arange(100) == 50, np.nan, 3 * time))
    assert np.isnan(rate[49:52]).any()
    np.testing.assert_allclose(rate[:49], 3, rtol=1e-9)


@pytest.mark.parametrize(
    ("activity", "times", "window", "said"),
    [
        ((2, 10), np.arange(10.0)[::-1], (0.05, 0.55), "ascend"),
        ((2, 10), np.arange(10.0), (0.5, 0.5), "empty"),
        ((3, 10), np.arange(10.0), (0.05, 0.55), "shape"),
        ((2, 1), np.arange(1.0), (0.05, 0.55), "two frames"),
    ],
)
def test_bad_input_says_what_is_wrong(activity, times, window, said):
    with pytest.raises(InputError, match=said):
        responses(np.zeros(activity, np.float32), times, np.zeros(2), np.zeros(1), window)
