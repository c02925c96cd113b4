"""Deconvolution against known spikes, an exact solver, and traces that no recording should hold."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import nnls
from scipy.signal import lfilter, resample

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.deconvolution import DeconvolutionParameters, deconvolve
from sensorium_pipeline.imaging.oasis import _kernel_tables, _solve, explain
from sensorium_pipeline.imaging.trace_noise import noise_level

RATE = 20.0


def simulate(
    neurons: int, frames: int, *, decay: float = 0.8, rise: float = 0.05, noise: float = 0.2, seed: int = 0, rate: float = RATE
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Traces, and spikes a frame: spikes fall anywhere in a frame, and a frame is the mean of what the detector sees meanwhile."""
    generator, fine = np.random.default_rng(seed), 10
    bursts = gaussian_filter1d(generator.standard_normal((neurons, frames)), 0.1 * rate, axis=1)
    spikes = generator.poisson(np.repeat(np.clip(bursts, 0, None) * 0.3 / fine, fine, axis=1)).astype(float)
    d, r = np.exp(-1 / (decay * rate * fine)), np.exp(-1 / (rise * rate * fine))
    calcium = lfilter([1 - r], [1, -(d + r), d * r], spikes, axis=1).reshape(neurons, frames, fine).mean(2)
    traces = 0.5 + calcium + noise * generator.standard_normal((neurons, frames))
    return traces.astype(np.float32), spikes.reshape(neurons, frames, fine).sum(2)


def lone_spikes(rate: float, decay: float, rise: float, noise: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Traces of transients of the height one, and spikes a frame, which fall anywhere in it and are independent."""
    generator, fine = np.random.default_rng(0), 10
    neurons, frames = 4, int(np.clip(150 * rate, 1500, 5000))
    spikes = generator.poisson(0.4 / rate / fine, (neurons, frames * fine)).astype(float)
    d, r = np.exp(-1 / (decay * rate * fine)), (np.exp(-1 / (rise * rate * fine)) if rise > 0 else 0.0)
    single = lfilter([1], [1, -(d + r), d * r], np.eye(1, int(8 * decay * rate * fine))[0])
    calcium = lfilter([1 / single.max()], [1, -(d + r), d * r], spikes, axis=1).reshape(neurons, frames, fine).mean(2)
    traces = calcium + noise * generator.standard_normal((neurons, frames))
    return traces.astype(np.float32), spikes.reshape(neurons, frames, fine).sum(2)


def lateness(activity: NDArray[np.float32], spikes: NDArray[np.float64]) -> float:
    """Frames from independent spikes to the centre of the activity that goes with them."""
    lags, edge = np.arange(-3, 4), 4
    spikes = (spikes - spikes.mean(1, keepdims=True))[:, edge:-edge]
    response = np.array([np.sum(np.roll(activity, -lag, axis=1)[:, edge:-edge] * spikes) for lag in lags])
    return float(np.sum(lags * response) / np.sum(response))


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("order", [1, 2])
def test_activity_follows_the_spikes(order: int) -> None:
    traces, spikes = simulate(10, 3000)
    result = deconvolve(traces, RATE, DeconvolutionParameters(order=order))
    assert result.activity.dtype == np.float32
    assert result.activity.min() >= 0
    assert correlation(gaussian_filter1d(result.activity, 2, axis=1), gaussian_filter1d(spikes, 2, axis=1)) > 0.9
    if order == 2:
        assert np.allclose(result.noise, 0.2, rtol=0.5)  # the spectrum above a quarter of the rate holds some calcium
        assert np.allclose(np.median(result.time_constants, axis=0), [0.8, 0.05], rtol=[0.25, 2.0])  # a frame's length adds to the rise
        assert np.allclose(result.baseline.mean(1), 0.5, atol=0.4)


def test_residual_has_the_variance_of_the_noise() -> None:
    traces, _ = simulate(6, 3000, noise=0.3)
    result = deconvolve(traces, RATE)
    rest = traces - result.denoised - result.baseline
    assert np.allclose(rest.std(1), result.noise, rtol=0.02)
    assert (result.penalty > 0).all()


def test_calcium_is_the_activity_through_the_kernel() -> None:
    trace = simulate(1, 1500)[0][0] - np.float32(0.5)
    found = explain(trace, 16.0, 1.0, 0.2)
    d, r = np.exp(-1 / 16), np.exp(-1)
    assert np.allclose(lfilter([1], [1, -(d + r), d * r], found.activity), found.calcium, atol=1e-4)
    assert found.unexplained == pytest.approx(0.04, rel=0.02)
    assert found.baseline == pytest.approx(float(np.mean(trace - found.calcium)), abs=1e-4)


@pytest.mark.parametrize("noise", [0.05, 0.15])
@pytest.mark.parametrize("rise", [0.0, 0.01, 0.05, 0.1, 0.18])
@pytest.mark.parametrize("rate", [4.0, 8.0, 15.0, 30.0, 60.0])
def test_activity_is_neither_early_nor_late(rate: float, rise: float, noise: float) -> None:
    """The centre of the activity around spikes that fall anywhere in their frame, within 0.25 of a frame or 25 ms.

    Rise and decay are drawn a little to what is typical, so that neither a very quick decay nor a very slow rise is quite told: 0.3 of a
    frame and 50 ms.
    """
    for decay in (0.3, 0.7, 1.5):
        traces, spikes = lone_spikes(rate, decay, rise, noise)
        allowed = max(0.3 if decay < 0.5 else 0.25, (0.05 if rise > 0.1 else 0.025) * rate)
        assert abs(lateness(deconvolve(traces, rate).activity, spikes)) < allowed


@pytest.mark.parametrize(("rate", "rise"), [(4.0, 0.05), (4.0, 0.1), (8.0, 0.0), (8.0, 0.05), (15.0, 0.0), (30.0, 0.0)])
def test_activity_of_noisy_traces_keeps_its_frame(rate: float, rise: float) -> None:
    for decay in (0.3, 0.7, 1.5):
        traces, spikes = lone_spikes(rate, decay, rise, 1 / 3)
        assert abs(lateness(deconvolve(traces, rate).activity, spikes)) < (0.37 if decay < 0.5 else 0.3)


def test_spikes_that_begin_with_their_frame_stay_there() -> None:
    generator = np.random.default_rng(0)
    spikes = generator.poisson(0.03, (6, 1500)).astype(float)
    traces = lfilter([1], [1, -np.exp(-0.1)], spikes, axis=1) + 0.05 * generator.standard_normal(spikes.shape)
    found = deconvolve(traces.astype(np.float32), 10.0)
    assert correlation(found.activity, spikes) > 0.9
    assert np.allclose(found.noise, 0.05, rtol=0.5)


def test_unit_and_offset_of_a_trace_do_not_matter() -> None:
    traces, _ = simulate(3, 3000)
    dff, counts = deconvolve(traces, RATE), deconvolve(20_000 + 300 * traces.astype(np.float64), RATE)
    assert correlation(dff.activity, counts.activity) > 0.999
    assert np.allclose(counts.noise, 300 * dff.noise, rtol=0.01)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int16", "uint16"])
def test_any_type_of_number(dtype: str) -> None:
    traces, _ = simulate(3, 1500)
    counts = np.asfortranarray((1000 + 100 * traces).astype(dtype))
    assert correlation(deconvolve(traces, RATE).activity, deconvolve(counts, RATE).activity) > 0.99


def test_a_drifting_baseline_is_followed() -> None:
    traces, spikes = simulate(4, 6000)
    drift = np.sin(np.arange(6000) / 6000 * 2 * np.pi)
    steady, drifting = deconvolve(traces, RATE), deconvolve((traces + drift).astype(np.float32), RATE)
    wide = 5.0
    score = [
        correlation(gaussian_filter1d(each.activity, wide, axis=1), gaussian_filter1d(spikes, wide, axis=1)) for each in (steady, drifting)
    ]
    assert score[1] > score[0] - 0.05


def test_drift_does_not_look_like_slower_calcium() -> None:
    traces, _ = simulate(6, 6000, seed=3)
    drift = np.sin(np.arange(6000) / RATE / 60.0 * 2 * np.pi)
    found = deconvolve((traces + drift).astype(np.float32), RATE)
    assert np.median(found.time_constants[:, 0]) < 1.4


@pytest.mark.parametrize("frames", [200, 400])
def test_short_traces_with_large_transients(frames: int) -> None:
    """Such a trace's mean lies far above its baseline, which has to be found all the same."""
    traces, spikes = simulate(10, frames, noise=0.05, seed=1)
    found = deconvolve(traces + 3, RATE)
    rest = traces + 3 - found.denoised - found.baseline
    assert np.median(rest.std(1)) < 0.12
    assert correlation(gaussian_filter1d(found.activity, 2, axis=1), gaussian_filter1d(spikes, 2, axis=1)) > 0.93


def test_bursts_do_not_look_like_slower_calcium() -> None:
    """Firing that goes on for a second lengthens the autocovariance, which is not all taken for decay."""
    generator, decay = np.random.default_rng(2), 1.5
    drive = gaussian_filter1d(generator.standard_normal((8, 5000)), 0.5 * RATE, axis=1)
    spikes = generator.poisson(0.02 * np.exp(1.5 * drive / drive.std())).astype(float)
    d, r = np.exp(-1 / (decay * RATE)), np.exp(-1 / (0.05 * RATE))
    traces = lfilter([1 - r], [1, -(d + r), d * r], spikes, axis=1) + 0.1 * generator.standard_normal(spikes.shape)
    found = deconvolve(traces.astype(np.float32), RATE)
    assert np.median(found.time_constants[:, 0]) == pytest.approx(decay, rel=0.12)


@pytest.mark.parametrize(("rise", "tolerance"), [(0.0, 1e-4), (0.5, 0.04)])
@pytest.mark.parametrize("gap", [False, True])
def test_solution_is_that_of_an_exact_solver(rise: float, tolerance: float, gap: bool) -> None:
    """First order is exact; second order is greedy, and its objective stays within a few per cent of the optimum."""
    frames, decay = 200, 0.9
    generator = np.random.default_rng(3)
    kernel = (decay ** np.arange(1, frames + 1) - rise ** np.arange(1, frames + 1)) / (decay - rise)
    design = np.array([[kernel[t - s] if t >= s else 0.0 for s in range(frames)] for t in range(frames)])
    trace = design @ (generator.random(frames) < 0.1) + 0.3 * generator.standard_normal(frames)
    if gap:
        trace[50:53] = trace[120] = trace[0] = np.nan
    calcium, jumps = np.zeros(frames, np.float32), np.zeros(frames, np.float32)
    room = np.empty(frames + 1, np.int64), np.empty((frames + 1, 7))
    tables = _kernel_tables(decay, rise, frames)
    mean, variance = _solve(trace.astype(np.float32), gap, decay, rise, tables, 0.1, calcium, jumps, *room)
    known = ~np.isnan(trace)
    _, best = nnls(design[known], trace[known] - 0.1)
    rest = trace[known] - calcium[known]
    assert np.linalg.norm(rest - 0.1) <= best * (1 + tolerance)
    assert (mean, variance) == (pytest.approx(rest.mean(), abs=1e-5), pytest.approx(rest.var(), rel=1e-4))


@pytest.mark.parametrize("degree", [1, 3])
@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_noise_is_right_although_a_resampled_trace_has_no_upper_spectrum(factor: int, degree: int) -> None:
    traces, _ = simulate(5, 4000, noise=0.3)
    frames = np.arange(4000)
    time = np.arange(3999 * factor) / factor
    resampled = np.stack([make_interp_spline(frames, trace, k=degree)(time) for trace in traces]).astype(np.float32)
    # Linear interpolation itself takes up to a third of the noise's variance.
    level, found = noise_level(resampled, RATE * factor)
    assert (level > 0.17).all()
    assert (level < 0.4).all()
    assert (found == 1).all() if factor == 1 else (found <= 2 * factor).all()


@pytest.mark.parametrize("rate", [60.0, 250.0])
@pytest.mark.parametrize("decay", [0.1, 0.15, 0.3])
def test_clear_traces_do_not_look_resampled(rate: float, decay: float) -> None:
    """Fast calcium without noise has a plateau and falls, but not off a cliff."""
    for simulated in (lone_spikes(rate, decay, 0.03, 0.002), simulate(4, 6000, decay=decay, rise=0.005, noise=0.01, rate=rate)):
        traces = simulated[0]
        assert (noise_level(traces - traces.mean(1, keepdims=True), rate)[1] == 1).all()


@pytest.mark.parametrize("way", ["Fourier", "linear"])
@pytest.mark.parametrize("factor", [3, 5, 10])
@pytest.mark.parametrize("gap", [False, True])
def test_a_resampled_trace_shows_what_it_showed_before(factor: int, gap: bool, way: str) -> None:
    """As traces that are published at 100 Hz were recorded at 8 to 30 Hz."""
    frames = 2000
    traces, spikes = simulate(6, frames, rate=10.0)
    times = (np.arange(frames * factor) + 0.5) / factor - 0.5
    finer = np.stack([np.interp(times, np.arange(frames), trace) for trace in traces]).astype(np.float32)
    if way == "Fourier":
        finer = np.roll(resample(traces, frames * factor, axis=1), (factor - 1) // 2, axis=1).astype(np.float32)
    if gap:
        finer[:, 3007:3100] = np.nan
    before, found = deconvolve(traces, 10.0), deconvolve(finer, 10.0 * factor)
    assert np.array_equal(np.isnan(found.activity), np.isnan(finer))
    # What joins frames averages noise, the more that was halved between them already.
    assert np.allclose(found.noise, 0.16 if way == "Fourier" else 0.12, rtol=0.25)
    together = np.nan_to_num(found.activity).reshape(6, frames, factor).sum(2)
    assert np.median(together.sum(1) / before.activity.sum(1)) == pytest.approx(1, abs=0.3)
    assert correlation(gaussian_filter1d(together, 2.0, axis=1), gaussian_filter1d(spikes, 2.0, axis=1)) > (0.93 if gap else 0.96)
    assert np.nanmax(found.denoised) == pytest.approx(before.denoised.max(), rel=0.15)


def test_missing_frames_stay_missing_and_do_not_disturb_the_rest() -> None:
    traces, spikes = simulate(8, 3000)
    gappy = traces.copy()
    gappy[:, 500:520] = np.nan
    gappy[:, ::97] = np.nan
    result = deconvolve(gappy, RATE)
    missing = np.isnan(gappy)
    assert np.array_equal(np.isnan(result.activity), missing)
    assert np.array_equal(np.isnan(result.denoised), missing)
    whole = deconvolve(traces, RATE)
    known = ~missing[0]
    known[520:540] = False
    assert correlation(result.denoised[:, known], whole.denoised[:, known]) > 0.98
    assert correlation(result.activity[:, known], spikes[:, known]) > 0.9 * correlation(whole.activity[:, known], spikes[:, known])


@pytest.mark.parametrize("rate", [20.0, 100.0])
@pytest.mark.parametrize("missing", ["every second", "some", "most"])
def test_noise_is_that_of_the_frames_that_are_known(rate: float, missing: str) -> None:
    traces, _ = simulate(4, 6000, rate=rate)
    if missing == "every second":
        traces[:, 1::2] = np.nan
    else:
        traces[:, np.random.default_rng(0).random(6000) < (0.3 if missing == "some" else 0.6)] = np.nan
    assert np.allclose(deconvolve(traces, rate).noise, 0.2, rtol=0.3)


@pytest.mark.parametrize("missing", [0, 100])
def test_calcium_from_before_the_recording_is_no_activity(missing: int) -> None:
    traces, _ = simulate(6, 3000, noise=0.05)
    traces[:, :missing] = np.nan
    begin = slice(missing, missing + 3)
    left = 3 * np.exp(-np.arange(-missing, 3000 - missing) / 0.8 / RATE).astype(np.float32)
    usual, found = deconvolve(traces, RATE).activity, deconvolve(traces + left, RATE).activity
    assert (found[:, begin].sum(1) < usual[:, begin].sum(1) + 0.05).all()
    assert correlation(found[:, missing + 60 :], usual[:, missing + 60 :]) > 0.9


def test_noise_at_the_end_is_not_taken_for_activity() -> None:
    """A transient that rises slowly has not risen there, so that little noise would stand for much activity; likewise before a long gap."""
    traces, _ = simulate(60, 1500, decay=0.3, rise=0.04, noise=0.2, rate=500.0)
    missing = np.full((60, 1000), np.nan, np.float32)
    for each in (traces, np.concatenate([traces, missing, traces], axis=1)):
        found = deconvolve(each, 500.0).activity
        assert found[:, 1490:1500].mean() < 2 * np.nanmean(found)


def test_traces_without_a_signal_give_no_activity() -> None:
    traces = np.zeros((5, 400), np.float32)
    traces[1] = 3.0
    traces[2] = np.nan
    traces[3, :200] = np.nan
    traces[4] = np.random.default_rng(0).standard_normal(400)
    result = deconvolve(traces, RATE)
    assert np.nansum(result.activity[:4]) == 0
    assert np.isnan(result.activity[2]).all()
    assert np.allclose(result.baseline[:4], [[0], [3], [0], [0]])
    # Pure noise: hardly anything is left to be called activity.
    assert result.denoised[4].std() < 0.5


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e6])
def test_one_transient_without_noise(unit: float) -> None:
    trace = np.zeros(1000)
    trace[500:] = unit * np.exp(-np.arange(500) / 14)
    found = deconvolve(trace[None], RATE)
    assert abs(int(found.activity[0].argmax()) - 500) <= 1
    assert np.corrcoef(found.denoised[0], trace)[0, 1] > 0.95


@pytest.mark.parametrize("rate", [1e-3, 0.5, 1000.0, 3e4])
@pytest.mark.parametrize("frames", [8, 300])
def test_uncommon_frame_rates(rate: float, frames: int) -> None:
    traces = np.random.default_rng(0).standard_normal((3, frames)).astype(np.float32)
    result = deconvolve(traces, rate)
    assert np.isfinite(result.activity).all()
    assert result.activity.min() >= 0
    assert np.isfinite(result.time_constants).all()


@pytest.mark.parametrize("frames", [0, 1, 2, 5, 9])
def test_very_short_traces(frames: int) -> None:
    result = deconvolve(np.linspace(0, 1, 2 * frames, dtype=np.float32).reshape(2, frames), RATE)
    assert result.activity.shape == (2, frames)
    assert np.isfinite(result.activity).all()


def test_same_traces_give_the_same_bytes_in_any_company() -> None:
    traces, _ = simulate(40, 600)
    together, alone = deconvolve(traces, RATE), deconvolve(traces[7:8], RATE)
    assert together.activity[7].tobytes() == alone.activity[0].tobytes()
    assert together.activity.tobytes() == deconvolve(traces, RATE).activity.tobytes()


@pytest.mark.parametrize(
    ("traces", "rate"),
    [
        (np.zeros((2, 10)), 0.0),
        (np.zeros((2, 10)), -3.0),
        (np.zeros((2, 10)), float("nan")),
        (np.zeros((2, 10)), 1e-300),
        (np.zeros((2, 10)), 1e300),
        (np.zeros(10), RATE),
        (np.array([["a", "b"]]), RATE),
        (np.full((1, 10), np.inf), RATE),
        (1e30 * np.random.default_rng(0).standard_normal((2, 300)), RATE),
        (1e200 * np.random.default_rng(0).standard_normal((2, 300)), RATE),
        (np.ones((2, 300), bool), RATE),
    ],
)
def test_bad_input_is_refused(traces: NDArray[np.generic], rate: float) -> None:
    with pytest.raises(InputError) as caught:
        deconvolve(traces, rate)
    assert caught.value.advice
