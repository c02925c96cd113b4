import json
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.frame_condition import BLANK, NOT_FINITE
from sensorium_pipeline.imaging.motion import OUT_OF_RANGE, UNLIKE, MotionParameters, MotionResult, correct_motion
from sensorium_pipeline.recordings.movie import open_movie


@dataclass
class ArrayMovie:
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

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.pixels.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.pixels[start:stop].copy()


def scene(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A still image of 40 counts and more, with features of about the size of cells."""
    fine, broad = (gaussian_filter(rng.standard_normal((height, width)), sigma) for sigma in (2.0, 8.0))
    return 300 + 80 * fine / fine.std() + 60 * broad / broad.std()


def moving_movie(shape: tuple[int, int], frames: int, *, warp: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy movie (frames, y, x) int16, its rigid shifts (frames, 2) and its warp at the four corners (frames, 2, 2, 2)."""
    rng = np.random.default_rng(seed)
    height, width = shape
    margin = 24
    still = scene(height + 2 * margin, width + 2 * margin, rng)
    shifts = gaussian_filter1d(rng.standard_normal((frames, 2)), 3, axis=0)
    shifts *= 2.0 / shifts.std()
    corners = gaussian_filter1d(rng.standard_normal((frames, 2, 2, 2)), 5, axis=0)
    corners -= corners.mean((2, 3), keepdims=True)
    corners *= warp / max(corners.std(), 1e-12)
    rows, columns = np.mgrid[:height, :width].astype(float)
    v, u = rows / (height - 1), columns / (width - 1)
    movie = np.empty((frames, height, width), np.int16)
    for n in range(frames):
        field = [(1 - v) * ((1 - u) * c[0, 0] + u * c[0, 1]) + v * ((1 - u) * c[1, 0] + u * c[1, 1]) for c in corners[n]]
        places = (rows + margin - shifts[n, 0] - field[0], columns + margin - shifts[n, 1] - field[1])
        clean = map_coordinates(still, places, order=3)
        movie[n] = np.clip(rng.poisson(np.clip(clean, 0, None) / 8) * 8 + rng.normal(0, 6, clean.shape), -32768, 32767)
    return movie, shifts, corners


def correct(pixels: np.ndarray, folder: Path, **parameters: Any) -> tuple[MotionResult, np.ndarray]:
    result, movie = correct_motion(ArrayMovie(pixels), folder / "corrected.raw", MotionParameters(**parameters), bidirectional=False)
    assert (movie.frames, movie.height, movie.width) == pixels.shape
    assert not list(folder.glob("*.partial"))
    return result, movie.read(0, movie.frames)


def rms(found: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square error after removing the constant offset that the choice of a template leaves free."""
    error = found - truth
    return float(np.sqrt(((error - error.mean(0)) ** 2).mean()))


@pytest.mark.parametrize("shape", [(128, 128), (96, 161), (300, 260)])
def test_finds_rigid_shifts_to_a_fraction_of_a_pixel(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels, shifts, _ = moving_movie(shape, 120)
    result, corrected = correct(pixels, tmp_path)
    assert rms(result.shifts, shifts) < 0.05
    # A movie that moves rigidly is not bent.
    assert np.sqrt((result.block_shifts**2).mean()) < 0.02
    assert not result.flagged.any()
    assert (result.reason == "").all()
    assert result.crispness_after > 1.02 * result.crispness_before
    inner = (slice(None), slice(12, -12), slice(12, -12))
    assert corrected[inner].astype(float).mean(0).std() > pixels[inner].astype(float).mean(0).std()
    assert result.coverage.max() == 1.0
    assert result.coverage[0].max() < 1.0
    np.testing.assert_allclose(result.mean_before, pixels.mean(0), rtol=1e-4)
    np.testing.assert_allclose(result.mean_after, corrected.mean(0), rtol=1e-3)
    np.testing.assert_array_equal(result.max_after, corrected.max(0))


def test_finds_a_displacement_that_differs_over_the_field(tmp_path: Path) -> None:
    pixels, shifts, corners = moving_movie((160, 160), 150, warp=1.2)
    result, _ = correct(pixels, tmp_path, block_size=80)
    assert result.block_shifts.shape == (150, 3, 3, 2)
    found = result.block_shifts + result.shifts[:, None, None]
    truth = corners.transpose(0, 2, 3, 1) + shifts[:, None, None]
    rigid, _ = correct(pixels, tmp_path, non_rigid=False)
    error = rms(found[:, ::2, ::2], truth)
    assert error < 0.3  # the corners are the places least well known
    assert error < 0.3 * rms(np.broadcast_to(rigid.shifts[:, None, None], truth.shape), truth)
    assert (rigid.block_shifts == 0).all()
    assert result.correlation.mean() > rigid.correlation.mean()


def test_corrects_the_raster_phase_once(tmp_path: Path) -> None:
    pixels, shifts, _ = moving_movie((128, 128), 80)
    pixels[:, 1::2] = np.roll(pixels[:, 1::2], 2, axis=2)
    result, _ = correct_motion(ArrayMovie(pixels), tmp_path / "a.raw", MotionParameters(), bidirectional=True)
    assert result.raster_phase == pytest.approx(2.0, abs=0.1)
    assert rms(result.shifts, shifts) < 0.06
    untouched, _ = correct_motion(ArrayMovie(pixels), tmp_path / "a.raw", MotionParameters(), bidirectional=False)
    assert untouched.raster_phase == 0.0
    unknown, _ = correct_motion(ArrayMovie(pixels), tmp_path / "a.raw", MotionParameters(), bidirectional=None)
    assert unknown.raster_phase == result.raster_phase


def numbers(result: MotionResult) -> dict[str, Any]:
    """All that a result holds, by name, less the speed."""
    found = {field.name: getattr(result, field.name) for field in fields(MotionResult) if field.name != "frames_per_second"}
    drift = found.pop("depth_drift")
    return found | {field.name: getattr(drift, field.name) for field in fields(drift)}


def test_same_bytes_twice_and_on_other_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _, _ = moving_movie((96, 96), 160, warp=0.5)
    first, first_movie = correct(pixels, tmp_path)
    for processors in ({0}, {0, 1, 2}):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, found=processors: found)
        second, second_movie = correct(pixels, tmp_path)
        np.testing.assert_array_equal(first_movie, second_movie)
        for name, value in numbers(second).items():
            np.testing.assert_array_equal(value, numbers(first)[name], err_msg=name)


def test_flags_damaged_frames_and_bridges_them(tmp_path: Path) -> None:
    pixels, shifts, _ = moving_movie((128, 128), 100)
    damaged = pixels.astype(np.float32)
    damaged[20, 3, 4] = np.nan
    damaged[40] = 0
    damaged[60] = np.random.default_rng(3).normal(300, 80, damaged[60].shape)
    result, corrected = correct(damaged, tmp_path)
    assert result.reason[20] == NOT_FINITE
    assert result.reason[40] == BLANK
    assert result.reason[60] in (UNLIKE, OUT_OF_RANGE)
    assert np.flatnonzero(result.flagged).tolist() == [20, 40, 60]
    assert np.isfinite(corrected).all()
    assert rms(np.delete(result.shifts, [20, 40, 60], 0), np.delete(shifts, [20, 40, 60], 0)) < 0.05
    for n in (20, 40, 60):
        np.testing.assert_allclose(result.shifts[n], (result.shifts[n - 1] + result.shifts[n + 1]) / 2, atol=0.02)
    assert np.isfinite(result.mean_before).all()


def test_motion_beyond_half_the_field_is_flagged(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    still = scene(96, 300, rng)
    shift = np.where(np.arange(90) % 3 == 0, 150, 0)
    pixels = np.stack([still[:, 20 + s : 116 + s] for s in shift]) + rng.normal(0, 20, (90, 96, 96))
    result, _ = correct(pixels.astype(np.int16), tmp_path)
    assert result.flagged[shift == 150].mean() > 0.9
    assert not result.flagged[shift == 0].any()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((20, 64, 64), np.int16),
        np.full((20, 64, 64), 32767, np.int16),
        np.repeat(np.arange(20, dtype=np.int16), 64 * 64).reshape(20, 64, 64),
        np.full((20, 64, 64), np.nan, np.float32),
        np.ones((1, 64, 64), np.int16),
        np.ones((20, 8, 64), np.int16),
    ],
    ids=["zero", "saturated", "constant", "nan", "single-frame", "narrow"],
)
def test_refuses_movies_without_an_image(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        correct(pixels, tmp_path)
    assert caught.value.advice
    assert not list(tmp_path.iterdir())


def test_a_movie_that_is_partly_saturated_or_constant(tmp_path: Path) -> None:
    pixels, shifts, _ = moving_movie((128, 128), 90)
    clipped = np.minimum(pixels, int(np.quantile(pixels, 0.7)))
    result, _ = correct(clipped, tmp_path)
    assert rms(result.shifts, shifts) < 0.1
    stuck = pixels.copy()
    stuck[30:60] = 500
    result, _ = correct(stuck, tmp_path)
    assert np.flatnonzero(result.flagged).tolist() == list(range(30, 60))
    assert (result.reason[30:60] == BLANK).all()


def test_aligns_a_movie_without_noise(tmp_path: Path) -> None:
    still = scene(120, 120, np.random.default_rng(0)).astype(np.float32)
    shifts = np.random.default_rng(1).integers(-6, 7, (40, 2))
    pixels = np.stack([still[12 - y : 108 - y, 12 - x : 108 - x] for y, x in shifts])
    result, _ = correct(pixels, tmp_path)
    assert rms(result.shifts, shifts) < 0.1
    frozen, _ = correct(np.repeat(pixels[:1], 30, 0), tmp_path)
    assert np.ptp(frozen.shifts, axis=0).max() < 1e-3
    assert not frozen.flagged.any()


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (33, 200), (513, 40)])
@pytest.mark.parametrize("frames", [2, 17])
def test_survives_pure_noise_of_any_shape(tmp_path: Path, shape: tuple[int, int], frames: int) -> None:
    pixels = np.random.default_rng(0).poisson(3, (frames, *shape)).astype(np.uint8)
    result, corrected = correct(pixels, tmp_path)
    assert np.isfinite(result.shifts).all()
    assert np.isfinite(corrected).all()
    assert corrected.dtype == np.float32  # rounding would add to noise this small


def test_stores_integers_where_their_noise_hides_the_rounding(tmp_path: Path) -> None:
    pixels, _, _ = moving_movie((64, 64), 40)
    assert correct(pixels, tmp_path)[1].dtype == np.int16
    assert correct(pixels // 100, tmp_path)[1].dtype == np.float32


def test_nothing_is_left_when_reading_fails_half_way(tmp_path: Path) -> None:
    pixels, _, _ = moving_movie((64, 64), 600)

    class Cut(ArrayMovie):
        def read(self, start: int, stop: int) -> np.ndarray:
            if stop - start > 1 and stop > 400:
                raise InputError("cut off", where="movie")
            return super().read(start, stop)

    with pytest.raises(InputError, match="cut off"):
        correct_motion(Cut(pixels), tmp_path / "a.raw", MotionParameters(), bidirectional=False)
    assert not list(tmp_path.iterdir())


def test_real_recording_of_64_pixels(test_data: Path, tmp_path: Path) -> None:
    movie = open_movie(test_data / "twophoton/movies/thunder_mouse_64x64x500.tif")
    result, corrected = correct_motion(movie, tmp_path / "a.raw", MotionParameters(), bidirectional=False)
    assert corrected.frames == 500
    assert result.flagged.mean() < 0.05
    assert result.crispness_after >= 0.98 * result.crispness_before
    assert np.abs(result.shifts - np.median(result.shifts, 0)).max() < 16


MEMORY = """
import json, resource, sys, numpy as np
from pathlib import Path
from sensorium_pipeline.imaging.motion import MotionParameters, correct_motion
class Endless:
    height = width = 128
    dtype = np.dtype(np.int16)
    def __init__(self, frames):
        self.frames = frames
        self.base = np.random.default_rng(0).poisson(40, (8, 128, 128)).astype(np.int16) * 8
        self.base += np.hypot(*np.mgrid[-64:64, -64:64]).astype(np.int16) % 30 * 20
    def read(self, start, stop):
        return self.base[np.arange(start, stop) % 8]
peak = []
for frames in (800, 5000):
    correct_motion(Endless(frames), Path(sys.argv[1]) / "a.raw", MotionParameters(template_frames=30), bidirectional=False)
    peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(peak))
"""


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    short, long = json.loads(run.stdout.splitlines()[-1])
    # 4200 more frames are 138 MB raw and 275 MB as float32.
    assert long - short < 40
