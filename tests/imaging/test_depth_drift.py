from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.ndimage import gaussian_filter

from sensorium_pipeline.imaging.depth_drift import DepthDrift, DepthDriftRecorder
from sensorium_pipeline.imaging.summary_images import SummaryImages

FRAMES, SIDE, CHUNK = 400, 160, 16


def planes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What is in focus in two depths, over shading that both share."""
    fine = [gaussian_filter(rng.standard_normal((SIDE, SIDE)), 2.0) for _ in range(2)]
    shading = gaussian_filter(rng.standard_normal((SIDE, SIDE)), 40)
    first, second = (300 + 60 * image / image.std() + 100 * shading / shading.std() for image in fine)
    return first, second


def watch(depth: np.ndarray, brightness: np.ndarray, noise: float = 80.0, *, known: bool = True) -> DepthDrift:
    """A recording whose depth goes from one plane (0) to the other (1)."""
    rng = np.random.default_rng(0)
    first, second = planes(rng)
    recorder = DepthDriftRecorder(len(depth), (SIDE, SIDE))
    with ThreadPoolExecutor(2) as pool:
        sums = SummaryImages((SIDE, SIDE), pool, 2)
        for start in range(0, len(depth), CHUNK):
            part = slice(start, start + CHUNK)
            clean = (1 - depth[part, None, None]) * first + depth[part, None, None] * second
            frames = clean * brightness[part, None, None] + rng.normal(0, noise, clean.shape)
            sums.add(frames.astype(np.float32), np.ones(len(frames), bool))
            recorder.note(sums, start + len(frames))
    return recorder.result(np.ones((SIDE, SIDE), bool), known=known)


def test_a_recording_that_sinks_loses_correlation() -> None:
    still, line = np.ones(FRAMES), np.linspace(0, 1, FRAMES)
    drift = watch(0.8 * line, still)
    assert drift.loss > 0.3
    assert drift.correlation[0, -1] < drift.correlation[0, 1] - 0.3
    assert 4 <= len(drift.first_frame) <= 20
    assert drift.first_frame[0] == 0
    assert watch(0.3 * line, still).loss < drift.loss


def test_bleaching_shading_and_noise_are_no_drift() -> None:
    fixed = np.zeros(FRAMES)
    assert abs(watch(fixed, np.ones(FRAMES)).loss) < 0.02
    assert abs(watch(fixed, np.exp(-np.linspace(0, 1.2, FRAMES))).loss) < 0.05
    assert abs(watch(fixed, np.ones(FRAMES), noise=300.0).loss) < 0.05


def test_says_that_it_cannot_tell() -> None:
    still = np.ones(FRAMES)
    assert np.isnan(watch(np.zeros(FRAMES), still, known=False).loss)
    assert np.isnan(watch(np.zeros(20), still[:20]).loss)
    assert np.isnan(watch(np.zeros(FRAMES), still, noise=20000.0).loss)
    nothing = DepthDriftRecorder(10, (SIDE, SIDE)).result(np.ones((SIDE, SIDE), bool), known=True)
    assert np.isnan(nothing.loss)
    assert nothing.correlation.shape == (0, 0)
