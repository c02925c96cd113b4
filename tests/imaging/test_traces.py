"""Traces against what the cells are known to add."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import RATE, ArrayMovie, TruePlane, simulate_plane

from sensorium_pipeline.imaging.cells import Cells
from sensorium_pipeline.imaging.traces import TraceParameters, Traces, extract_traces, running_percentile


def as_cells(footprints: np.ndarray) -> Cells:
    flat = footprints.reshape(len(footprints), footprints.shape[1] * footprints.shape[2])
    flat = flat * (flat > 0.05)
    neuron, pixel = np.nonzero(flat)
    weight = flat[neuron, pixel] / np.linalg.norm(flat, axis=1)[neuron]
    count, (height, width) = len(footprints), footprints.shape[1:]
    places = np.stack(np.divmod(np.arange(height * width), width), axis=1)
    return Cells(
        neuron.astype(np.int32),
        pixel.astype(np.int32),
        weight.astype(np.float32),
        (flat @ places / flat.sum(1, keepdims=True)).astype(np.float32),
        np.ones(count, np.float32),
        np.ones(count, bool),
        ("",) * count,
    )


def extract(plane: TruePlane, flagged: np.ndarray | None = None) -> Traces:
    flagged = np.zeros(plane.movie.frames, bool) if flagged is None else flagged
    return extract_traces(plane.movie, as_cells(plane.footprints), frame_rate=RATE, flagged=flagged, parameters=TraceParameters())


def test_traces_follow_the_cells_and_not_their_neighbours(true_plane: TruePlane) -> None:
    traces = extract(true_plane)
    assert traces.fluorescence.dtype == traces.dff.dtype == np.float32
    for cell, added in enumerate(true_plane.added):
        assert np.corrcoef(traces.dff[cell], added)[0, 1] > 0.95
    # Cells 4 and 5 overlap: what one does must not show in the other.
    rest = traces.dff[4] - np.polyval(np.polyfit(true_plane.added[4], traces.dff[4], 1), true_plane.added[4])
    assert abs(np.corrcoef(rest, true_plane.added[5])[0, 1]) < 0.2


def test_three_cells_on_top_of_each_other_are_told_apart() -> None:
    plane = simulate_plane([(30, 30), (30, 33.5), (33, 31.5)], (62, 62), 1200, seed=3)
    flat = plane.footprints.reshape(3, -1)
    shared = flat @ flat.T / (flat**2).sum(1)
    assert shared[~np.eye(3, dtype=bool)].min() > 0.5
    found = extract(plane).dff
    summed = np.einsum("cyx,tyx->ct", plane.footprints, plane.movie.array.astype(float))
    told = [np.corrcoef(trace, added)[0, 1] for trace, added in zip(found, plane.added, strict=True)]
    mixed = [np.corrcoef(trace, added)[0, 1] for trace, added in zip(summed, plane.added, strict=True)]
    assert min(told) > 0.95
    assert max(mixed) < 0.85  # a plain weighted sum


def test_neuropil_is_measured_and_its_share_fitted(true_plane: TruePlane) -> None:
    traces = extract(true_plane)
    for neuropil in traces.neuropil:
        assert np.corrcoef(neuropil, true_plane.neuropil)[0, 1] > 0.95
    # Here neuropil shines through cells in full.
    assert np.median(traces.neuropil_coefficient) > 0.8
    quiet = true_plane.added.max(0) < 5
    for dff in traces.dff:
        assert abs(np.corrcoef(dff[quiet], true_plane.neuropil[quiet])[0, 1]) < 0.6


def test_neuropil_that_is_brighter_on_one_side_is_met_in_the_middle() -> None:
    """Also where the field ends and where a neighbour covers what lies on the other side."""
    plane = simulate_plane([(30, 12), (30, 22), (55, 60)], (90, 90), 800, neuropil=0.0, strength=100.0)
    generator = np.random.default_rng(1)
    wave = np.convolve(generator.normal(0, 40, 800), np.ones(8) / 8, "same")
    slope = np.linspace(0, 3, 90)
    movie = plane.movie.array + (wave[:, None, None] * slope).astype(np.int16)
    neuropil = extract(replace(plane, movie=ArrayMovie(movie))).neuropil
    for trace, column in zip(neuropil, (12, 22, 60), strict=True):
        assert np.polyfit(wave, trace, 1)[0] == pytest.approx(slope[column], abs=0.15)


def test_footprints_that_are_not_kept_do_not_hide_the_neuropil(true_plane: TruePlane) -> None:
    """Most of them are neuropil themselves; in a dense plane they would leave nothing to measure it by."""
    footprints = np.concatenate([true_plane.footprints, np.ones((1, 82, 80))])
    cells = replace(as_cells(footprints), kept=np.arange(12) < 11)
    both = extract_traces(
        true_plane.movie,
        cells,
        frame_rate=RATE,
        flagged=np.zeros(true_plane.movie.frames, bool),
        parameters=TraceParameters(),
    )
    alone = extract(true_plane)
    assert np.array_equal(both.neuropil[:11], alone.neuropil)
    assert np.array_equal(both.dff[:11], alone.dff)


def test_flagged_frames_are_nan_and_change_nothing_else(true_plane: TruePlane) -> None:
    flagged = np.zeros(true_plane.movie.frames, bool)
    flagged[100:110] = True
    traces, whole = extract(true_plane, flagged), extract(true_plane)
    for name in ("fluorescence", "neuropil", "dff"):
        assert np.array_equal(np.isnan(getattr(traces, name)), np.broadcast_to(flagged, getattr(traces, name).shape))
    assert np.array_equal(traces.fluorescence[:, ~flagged], whole.fluorescence[:, ~flagged])
    assert np.corrcoef(traces.dff[0][~flagged], whole.dff[0][~flagged])[0, 1] > 0.99


def test_no_cells_and_only_flagged_frames(true_plane: TruePlane) -> None:
    none = extract_traces(
        true_plane.movie,
        as_cells(np.zeros((0, 82, 80))),
        frame_rate=RATE,
        flagged=np.zeros(true_plane.movie.frames, bool),
        parameters=TraceParameters(),
    )
    assert none.dff.shape == (0, true_plane.movie.frames)
    lost = extract(true_plane, np.ones(true_plane.movie.frames, bool))
    assert np.isnan(lost.dff).all()


def test_dim_cells_give_finite_dff() -> None:
    """Counts may be negative: the baseline of a dim cell can be zero or below."""
    generator = np.random.default_rng(0)
    movie = ArrayMovie(generator.normal(-2, 5, (400, 40, 40)).astype(np.float32))
    footprint = np.zeros((1, 40, 40))
    footprint[0, 18:24, 18:24] = 1
    traces = extract_traces(movie, as_cells(footprint), frame_rate=RATE, flagged=np.zeros(400, bool), parameters=TraceParameters())
    assert np.isfinite(traces.dff).all()


@pytest.mark.parametrize("gap", [False, True])
def test_running_percentile_is_near_the_exact_one(gap: bool) -> None:
    generator = np.random.default_rng(0)
    trace = (np.sin(np.arange(2000) / 300) + generator.random(2000)).astype(np.float32)
    if gap:
        trace[500:560] = np.nan
    found = running_percentile(trace, 200, 20.0)
    exact = np.array([np.nanpercentile(trace[max(t - 100, 0) : t + 101], 20) for t in range(0, 2000, 50)])
    assert np.abs(found[::50] - exact).max() < 0.08
    assert np.isnan(running_percentile(np.full(10, np.nan, np.float32), 5, 20.0)).all()
