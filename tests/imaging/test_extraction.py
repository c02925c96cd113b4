"""One plane from raw frames to activity."""

from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, ArrayMovie, TruePlane, simulate_plane
from scipy.ndimage import gaussian_filter, gaussian_filter1d, shift

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.extraction import extract_plane
from sensorium_pipeline.imaging.measurements import measure_light, measure_residual_motion
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.imaging.quality import QualityGates, judge
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.recordings.movie import open_movie

ARRAYS = {
    "shifts": ("frames", 2),
    "template_correlation": ("frames",),
    "flagged": ("frames",),
    "centroids": ("neurons", 2),
    "fluorescence": ("neurons", "frames"),
    "neuropil": ("neurons", "frames"),
    "neuropil_coefficient": ("neurons",),
    "dff": ("neurons", "frames"),
    "activity": ("neurons", "frames"),
    "denoised": ("neurons", "frames"),
    "noise": ("neurons",),
    "time_constants": ("neurons", 2),
    "snr": ("neurons",),
    "kept": ("neurons",),
    "mean_after": ("height", "width"),
    "max_before": ("height", "width"),
}


@pytest.fixture(scope="module")
def moving_plane(true_plane: TruePlane) -> ArrayMovie:
    generator = np.random.default_rng(5)
    motion = 1.5 * gaussian_filter1d(generator.standard_normal((true_plane.movie.frames, 2)), 10, axis=0) / 0.17
    frames = [shift(frame.astype(float), by, order=1, mode="nearest") for frame, by in zip(true_plane.movie.array, motion, strict=True)]
    movie = np.stack(frames).astype(np.float32)
    movie[700:703] = np.nan
    return ArrayMovie(movie)


@pytest.fixture(scope="module")
def plane(moving_plane: ArrayMovie, tmp_path_factory: pytest.TempPathFactory) -> PlaneExtraction:
    return extract_plane(moving_plane, frame_rate=RATE, scratch=tmp_path_factory.mktemp("scratch"))


def test_the_plane_is_what_was_moved(true_plane: TruePlane, plane: PlaneExtraction) -> None:
    matches = true_plane.matches(plane.footprint_neuron, plane.footprint_pixel, plane.footprint_weight)
    assert len(matches) >= len(true_plane.footprints) - 1
    assert plane.kept.sum() <= len(true_plane.footprints) + 1
    good = ~plane.flagged
    correlations = [np.corrcoef(plane.dff[neuron][good], true_plane.added[cell][good])[0, 1] for cell, neuron in matches.items()]
    assert np.median(correlations) > 0.9
    denoised = [np.corrcoef(plane.denoised[neuron][good], true_plane.added[cell][good])[0, 1] for cell, neuron in matches.items()]
    assert np.median(denoised) > max(np.median(correlations), 0.95)
    onsets = np.diff(true_plane.added, prepend=0).clip(0)
    responses = [
        np.corrcoef(gaussian_filter1d(plane.activity[n][good], 2), gaussian_filter1d(onsets[c][good], 2))[0, 1] for c, n in matches.items()
    ]
    assert np.median(responses) > 0.8


def test_arrays_have_the_shapes_and_types_that_are_promised(plane: PlaneExtraction) -> None:
    sizes = {"frames": 1600, "neurons": plane.neurons, "height": 82, "width": 80}
    for name, shape in ARRAYS.items():
        array = getattr(plane, name)
        assert array.shape == tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape), name
        assert array.dtype == (bool if name in ("flagged", "kept") else np.float32), name
    for name in ("dff", "activity", "denoised", "fluorescence", "neuropil"):
        assert np.array_equal(np.isnan(getattr(plane, name)), np.broadcast_to(plane.flagged, getattr(plane, name).shape)), name
    assert plane.flagged[700:703].all()
    assert np.nanmin(plane.activity) >= 0
    assert np.isfinite(plane.snr).all()


def test_metrics_are_finite_and_gates_judge_them(plane: PlaneExtraction) -> None:
    metrics = plane.metrics
    assert all(np.isfinite(value) for value in metrics.model_dump().values())
    assert metrics.kept_cells == plane.kept.sum()
    assert metrics.shift_rms == pytest.approx(2.1, abs=0.7)
    assert all(gate.passed for gate in judge(metrics))
    refused = [gate for gate in judge(metrics, QualityGates(kept_cells=100)) if not gate.passed]
    assert [gate.name for gate in refused] == ["kept_cells"]
    assert str(refused[0]) == f"kept_cells is {metrics.kept_cells}, must be at least 100 ({100 - metrics.kept_cells} too little)"


def test_same_input_same_bytes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    movie = simulate_plane([(20, 20), (40, 44)], (60, 64), 400).movie
    seen: list[Progress] = []
    first = extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "new" / "folder", progress=seen.append)
    second = extract_plane(movie, frame_rate=RATE, scratch=tmp_path)
    for name in (*ARRAYS, "footprint_neuron", "footprint_pixel", "footprint_weight"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name
    assert first.metrics == second.metrics
    assert [path for path in tmp_path.rglob("*") if path.name not in ("new", "folder")] == []
    assert {"motion", "binning", "cells", "traces"} <= {report.stage for report in seen}
    assert all(0 <= report.done <= report.total for report in seen)


def test_a_plane_without_cells_is_an_honest_empty_result(tmp_path: Path) -> None:
    plane = extract_plane(simulate_plane([], (60, 60), 400).movie, frame_rate=RATE, scratch=tmp_path)
    assert plane.kept.sum() == plane.metrics.kept_cells == 0
    assert plane.activity.shape == (plane.neurons, 400)
    assert "kept_cells" in [gate.name for gate in judge(plane.metrics) if not gate.passed]


@pytest.mark.parametrize("movie", [np.zeros((100, 40, 40), np.int16), np.full((100, 40, 40), np.nan, np.float32), np.zeros((1, 40, 40))])
def test_movies_that_show_nothing_are_refused(movie: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        extract_plane(ArrayMovie(movie), frame_rate=RATE, scratch=tmp_path)
    assert caught.value.advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e300, float("nan"), float("inf")])
def test_frame_rates_that_cannot_be_are_refused(rate: float, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        extract_plane(ArrayMovie(np.ones((100, 40, 40))), frame_rate=rate, scratch=tmp_path)
    assert caught.value.where == "frame_rate"


def test_an_error_half_way_leaves_nothing_behind(true_plane: TruePlane, tmp_path: Path) -> None:
    class Broken(ArrayMovie):
        def read(self, start: int, stop: int) -> np.ndarray:
            if stop > 1000 and stop - start > 1:
                raise InputError("the file ends early", where="frames", advice="Copy it again.")
            return super().read(start, stop)

    with pytest.raises(InputError, match="ends early"):
        extract_plane(Broken(true_plane.movie.array), frame_rate=RATE, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("darkest", [2, 12])  # photons; whether or not some pixels are dark
def test_photons_and_bleaching_are_read_from_the_noise(darkest: float) -> None:
    generator = np.random.default_rng(0)
    photons = np.linspace(darkest, 20, 40)[None, :, None] * np.linspace(1, 0.6, 300)[:, None, None] * np.ones((1, 1, 40))
    movie = ArrayMovie((generator.poisson(photons) * 30 + generator.normal(0, 5, photons.shape) + 100).astype(np.int16))
    light = measure_light(movie)
    assert light.photons == pytest.approx(photons.mean(), rel=0.2)
    assert light.gain == pytest.approx(30, rel=0.1)
    assert light.bleaching == pytest.approx(0.4, abs=0.08)
    assert light.saturated_fraction < 0.01


def test_photons_below_a_negative_offset_are_counted() -> None:
    generator = np.random.default_rng(0)
    photons = np.repeat(np.linspace(0.1, 4, 40)[None, :, None], 300, 0) * np.ones((1, 1, 40))
    light = measure_light(ArrayMovie((generator.poisson(photons) * 30 + generator.normal(0, 5, photons.shape) - 400).astype(np.int16)))
    assert light.photons == pytest.approx(photons.mean(), rel=0.2)


def test_motion_that_is_left_is_measured_where_and_when_it_is() -> None:
    generator = np.random.default_rng(0)
    still = 100 + 40 * gaussian_filter(generator.standard_normal((256, 128)), 3) / 0.1
    moved = still.copy()
    moved[128:] = shift(still, (0.3, -0.2), order=3, mode="nearest")[128:]
    frames = np.concatenate([np.repeat(still[None], 300, 0), np.repeat(moved[None], 300, 0)])
    movie = ArrayMovie((frames + generator.normal(0, 5, frames.shape)).astype(np.float32))
    residual = measure_residual_motion(movie, np.zeros(600, bool), np.ones((256, 128), bool))
    assert residual.residual_shifts.shape == (20, 2, 1, 2)
    jump = residual.residual_shifts[residual.residual_frame > 300].mean(0) - residual.residual_shifts[residual.residual_frame < 300].mean(0)
    np.testing.assert_allclose(jump[0, 0], 0, atol=0.02)
    np.testing.assert_allclose(jump[1, 0], (0.3, -0.2), atol=0.05)
    assert residual.residual_motion == pytest.approx(0.09, abs=0.03)
    rest = measure_residual_motion(ArrayMovie(movie.array[:300]), np.zeros(300, bool), np.ones((256, 128), bool))
    assert rest.residual_motion < 0.02


def test_parameters_survive_json() -> None:
    assert ImagingParameters.model_validate_json(ImagingParameters().model_dump_json()) == ImagingParameters()


def test_real_movie(test_data: Path, tmp_path: Path) -> None:
    movie = open_movie(test_data / "twophoton/movies/thunder_mouse_64x64x500.tif")
    plane = extract_plane(movie, frame_rate=8.0, scratch=tmp_path)
    assert plane.kept.sum() > 5
    assert np.isfinite(plane.dff[:, ~plane.flagged]).all()
    assert plane.flagged.mean() < 0.05
