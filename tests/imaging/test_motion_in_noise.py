"""Motion that noise hides must not be invented: pooled over frames where that suffices, else left at rest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from sensorium_pipeline.imaging.motion import MotionParameters, MotionResult, correct_motion
from sensorium_pipeline.recordings.movie import open_movie

SIDE, MARGIN = 80, 16


@dataclass
class Photons:
    """A movie in memory."""

    pixels: np.ndarray

    @property
    def frames(self) -> int:
        return self.pixels.shape[0]

    @property
    def height(self) -> int:
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        return self.pixels.shape[2]

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.pixels[start:stop].copy()


def photons(shifts: np.ndarray, each: float, rng: np.random.Generator, *, corners: np.ndarray | None = None, side: int = SIDE) -> Photons:
    """A moved still image (of mean one) at `each` photons a pixel and frame; `corners` (frames, 2, 2, 2) bend it, y and x last."""
    fine, broad = (gaussian_filter(rng.standard_normal((side + 2 * MARGIN,) * 2), sigma) for sigma in (2.0, 8.0))
    still = np.clip(1 + 0.27 * fine / fine.std() + 0.2 * broad / broad.std(), 0.02, None)
    rows, columns = np.mgrid[:side, :side].astype(float) + MARGIN
    part = np.linspace(0, 1, side)
    weights = np.stack([1 - part, part])
    bends = np.zeros((len(shifts), 2, 2, 2)) if corners is None else corners
    clean = []
    for (y, x), bend in zip(shifts, bends, strict=True):
        bend_y, bend_x = np.einsum("iy,jx,ijk->kyx", weights, weights, bend)
        clean.append(map_coordinates(still, (rows - y - bend_y, columns - x - bend_x), order=1))
    return Photons(rng.poisson(np.stack(clean) * each).astype(np.float32))


def drift(frames: int, smoothness: float, size: float, rng: np.random.Generator) -> np.ndarray:
    shifts = gaussian_filter1d(rng.standard_normal((frames, 2)), smoothness, axis=0)
    shifts -= shifts.mean(0)
    return np.asarray(np.clip(shifts * size / shifts.std(), -12, 12))


def correct(movie: Photons, folder: Path) -> MotionResult:
    return correct_motion(movie, folder / "a.raw", MotionParameters(), bidirectional=False)[0]


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(((values - values.mean(0)) ** 2).mean()))


@pytest.mark.parametrize("smoothness", [1.0, 20.0], ids=["fast", "slow"])
@pytest.mark.parametrize("size", [2.0, 0.3])
def test_never_worse_than_no_correction_as_light_fades(tmp_path: Path, smoothness: float, size: float) -> None:
    for each in (3.0, 0.1, 0.02, 0.002):
        rng = np.random.default_rng(1)
        shifts = drift(160, smoothness, size, rng)
        result = correct(photons(shifts, each, rng), tmp_path)
        assert rms(result.shifts - shifts) < 1.1 * size, each
        assert not result.flagged.any(), each
        if each == 3.0:
            assert result.measured.all()
            assert rms(result.shifts - shifts) < 0.1


def test_pooled_frames_show_a_slow_drift_that_single_ones_hide(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    shifts = drift(400, 40.0, 2.0, rng)
    result = correct(photons(shifts, 0.04, rng), tmp_path)
    assert result.pooled > 1
    assert result.measured.mean() > 0.7
    assert rms(result.shifts - shifts) < 0.35 * rms(shifts)


def test_parts_of_the_field_move_apart_in_the_dark(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shifts = drift(600, 40.0, 2.0, rng)
    corners = gaussian_filter1d(rng.standard_normal((600, 2, 2, 2)), 40, axis=0)
    corners -= corners.mean((1, 2), keepdims=True)
    corners *= 1.2 / corners.std()
    result = correct(photons(shifts, 0.04, rng, corners=corners, side=128), tmp_path)
    truth = corners + shifts[:, None, None]
    fields = (result.block_shifts + result.shifts[:, None, None])[:, ::2, ::2]
    rigid = np.broadcast_to(result.shifts[:, None, None], truth.shape)
    assert rms(fields - truth) < 0.97 * rms(rigid - truth) < 0.6 * rms(truth)
    assert rms(result.shifts - shifts) < 0.3


@pytest.mark.parametrize("each", [10.0, 0.3, 0.01])
def test_pure_noise_stays_at_rest(tmp_path: Path, each: float) -> None:
    pixels = np.random.default_rng(3).poisson(each, (120, 96, 96)).astype(np.float32)
    result = correct(Photons(pixels), tmp_path)
    assert result.pooled == 0
    assert not result.measured.any()
    assert not result.flagged.any()
    assert (result.shifts == 0).all()
    np.testing.assert_allclose(result.mean_after, result.mean_before, atol=1e-5)


def test_broken_frames_are_still_flagged_in_noise(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).poisson(1.0, (60, 64, 64)).astype(np.float32)
    pixels[10], pixels[20, 5, 5] = 0, np.nan
    result = correct(Photons(pixels), tmp_path)
    assert np.flatnonzero(result.flagged).tolist() == [10, 20]


def test_real_recording_that_is_nearly_noise(test_data: Path, tmp_path: Path) -> None:
    movie = open_movie(test_data / "twophoton/movies/792757260_test_data.h5", "input_frames")
    result, _ = correct_motion(movie, tmp_path / "a.raw", MotionParameters(), bidirectional=False)
    assert not result.flagged.any()
    assert np.abs(result.shifts).max() < 3
    assert np.corrcoef(result.mean_after.ravel(), result.mean_before.ravel())[0, 1] > 0.8
