import numpy as np
import pytest
import scipy.fft
from scipy.ndimage import gaussian_filter

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.raster_phase import certain_raster_phase, estimate_raster_phase
from sensorium_pipeline.imaging.summary_images import coverage


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 300 + 600 * gaussian_filter(rng.standard_normal((height, width)), 1.5) / 0.2


def displace_odd_lines(image: np.ndarray, phase: float) -> np.ndarray:
    """Content of odd lines moved towards larger x by the shift theorem, exactly."""
    moved = image.copy()
    frequency = np.arange(image.shape[1] // 2 + 1) / image.shape[1]
    spectrum = scipy.fft.rfft(image[1::2], axis=1) * np.exp(-2j * np.pi * frequency * phase)
    moved[1::2] = scipy.fft.irfft(spectrum, n=image.shape[1], axis=1)
    return moved


@pytest.mark.parametrize("phase", [0.0, 0.3, -0.75, 1.5, -4.2])
@pytest.mark.parametrize("shape", [(128, 128), (101, 170), (64, 512)])
def test_finds_a_known_phase(phase: float, shape: tuple[int, int]) -> None:
    noisy = displace_odd_lines(scene(*shape), phase) + np.random.default_rng(1).normal(0, 10, shape)
    assert estimate_raster_phase(noisy) == pytest.approx(phase, abs=0.06)


@pytest.mark.parametrize("phase", [9.0, -12.3, 20.0, -41.0])
def test_a_scanner_that_is_far_out(phase: float) -> None:
    """Nearly half of the cells that were found in such movies were none, while the phase was taken for one within 8 px or for none."""
    noisy = displace_odd_lines(scene(128, 256), phase) + np.random.default_rng(1).normal(0, 10, (128, 256))
    assert estimate_raster_phase(noisy) == pytest.approx(phase, abs=0.06)
    assert certain_raster_phase(noisy) == pytest.approx(phase, abs=0.06)


def test_noise_is_no_large_phase() -> None:
    assert all(abs(estimate_raster_phase(np.random.default_rng(seed).standard_normal((64, 256)))) <= 8 for seed in range(50))


def test_pixels_that_only_some_lines_saw_are_not_covered() -> None:
    shifts = np.zeros((10, 2), np.float32)
    assert (coverage(shifts, 20, 30, 0.0) == 1).all()
    for phase, unseen in ((12.0, slice(18, None)), (-12.0, slice(0, 12)), (0.4, slice(0, 0))):
        covered = coverage(shifts, 20, 30, phase)
        assert (covered[:, unseen] == 0).all()
        assert covered.sum() == 20 * (30 - covered[:, unseen].shape[1])


def test_only_a_plain_phase_is_certain() -> None:
    """Of a scan of which nobody says whether it went both ways."""
    noise = np.random.default_rng(1).normal(0, 10, (128, 128))
    assert certain_raster_phase(displace_odd_lines(scene(128, 128), -4.2) + noise) == pytest.approx(-4.2, abs=0.06)
    assert certain_raster_phase(scene(128, 128) + noise) == 0.0
    assert not any(certain_raster_phase(np.random.default_rng(seed).standard_normal((64, 64))) for seed in range(50))


def test_says_nothing_where_there_is_nothing() -> None:
    assert estimate_raster_phase(np.full((64, 64), 7.0)) == 0.0


@pytest.mark.parametrize("image", [np.zeros((2, 64)), np.zeros((64, 4)), np.full((64, 64), np.nan)])
def test_refuses_what_has_no_phase(image: np.ndarray) -> None:
    with pytest.raises(InputError):
        estimate_raster_phase(image)
