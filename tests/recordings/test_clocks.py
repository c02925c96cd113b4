"""Clocks are joined through events that both saw, however they drift, wrap and miss."""

import numpy as np
import pytest

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.clocks import counter_difference, edges, join_clocks, longest_block, unwrap_counter


def test_counter_wraps_every_429_seconds() -> None:
    true = np.arange(0, 2000, 0.01)
    counter = ((true * 1e7).astype(np.int64) + 4_000_000_000) % (1 << 32)
    assert np.abs(unwrap_counter(counter.astype(np.uint32), where="x") - true).max() < 1e-6
    assert (np.diff(counter) < 0).sum() == 5
    assert len(unwrap_counter(np.zeros(0, np.uint32), where="x")) == 0


def test_counter_that_goes_back_is_refused() -> None:
    with pytest.raises(InputError, match=r"treadmill.h5: the counter goes back at sample 2"):
        unwrap_counter(np.array([100, 200, 150, 300], np.uint32), where="treadmill.h5")


def test_difference_of_two_readings_across_the_wrap() -> None:
    assert counter_difference(2**32 - 10_000_000, 10_000_000) == pytest.approx(2.0)
    assert counter_difference(10_000_000, 2**32 - 10_000_000) == pytest.approx(-2.0)


def test_edges_need_both_thresholds_and_cross_pieces() -> None:
    signal = np.array([0, 4, 6, 9, 5, 6, 9, 1, 5, 0, 0, 9, 9, 0], float)
    for cut in range(len(signal)):
        rising, falling = edges(iter([signal[:cut], signal[cut:]]), 3, 7)
        assert rising.tolist() == [3, 11]
        assert falling.tolist() == [7, 13]


def test_noise_around_the_threshold_makes_no_edges() -> None:
    generator = np.random.default_rng(0)
    signal = np.repeat([0.0, 1.0, 0.0, 1.0], 500) + generator.normal(0, 0.08, 2000)
    rising, falling = edges(iter(np.array_split(signal, 7)), 1 / 3, 2 / 3)
    assert rising.tolist() == [500, 1500]
    assert falling.tolist() == [1000]


def test_longest_block_of_a_frame_clock() -> None:
    start = np.arange(5) * 0.1
    long = 3 + np.arange(50) * 0.1
    np.testing.assert_array_equal(longest_block(np.concatenate([start, long, [20.0]])), long)


@pytest.mark.parametrize("missed_theirs", [0, 30])
@pytest.mark.parametrize("missed_ours", [0, 30])
@pytest.mark.parametrize("head", [0, 25])
def test_clocks_with_drift_jitter_and_missing_events(missed_theirs: int, missed_ours: int, head: int) -> None:
    generator = np.random.default_rng(missed_theirs + missed_ours + head)
    true = np.cumsum(generator.uniform(0.9, 1.12, 2000))
    rate, offset = 1 + 4e-5, -1234.5
    ours = np.delete(true, generator.choice(2000, missed_ours, replace=False)) + generator.normal(0, 2e-4, 2000 - missed_ours)
    theirs = np.delete((true - offset) / rate, generator.choice(2000, missed_theirs, replace=False))[head:]
    joined = join_clocks(theirs, ours)
    assert joined is not None
    assert joined.rate == pytest.approx(rate, abs=1e-7)
    assert np.abs(joined(theirs) - (theirs * rate + offset)).max() < 1e-3
    assert len(joined.theirs) >= 2000 - missed_theirs - missed_ours - head
    assert np.abs(ours[joined.ours] - joined(theirs[joined.theirs])).max() == pytest.approx(joined.residual)


def test_events_of_another_session_do_not_join() -> None:
    generator = np.random.default_rng(2)
    for _ in range(20):
        theirs, ours = (np.cumsum(generator.uniform(2, 6, 250)) for _ in range(2))
        joined = join_clocks(theirs, ours)
        assert joined is None or len(joined.theirs) < 30
    assert join_clocks(np.arange(3.0), np.arange(3.0)) is None
