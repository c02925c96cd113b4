"""What a microscopist measures on the frames themselves: light, bleaching, saturation, and the motion that correction left over."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sensorium_pipeline.recordings.movie import Movie

Float32 = NDArray[np.float32]

PAIRS = 100
GROUPS = 30
STRETCHES = 20
FRAMES_A_STRETCH = 25
RESIDUAL_BLOCK = 128  # px


@dataclass(frozen=True)
class LightMeasurement:
    """Light in a raw movie, from pairs of frames evenly over it; zero where nothing could be measured.

    Attributes:
        sampled_frame: (samples,) int64, the first frame of each pair.
        brightness: (samples,) float32, mean of the pair, counts.
        group_mean: (groups,) float32, mean of pixels alike in brightness, counts.
        group_variance: (groups,) float32, median variance of their noise, counts squared.
        gain: counts a photon, the slope of the variance against the mean.
        photons: photons a pixel and frame, mean over the field.
        bleaching: part of the brightness (above that without light) that a line through it loses from the first to the last frame.
        saturated_fraction: part of the pixels that reach the brightest value of all in one of the frames.
    """

    sampled_frame: NDArray[np.int64]
    brightness: Float32
    group_mean: Float32
    group_variance: Float32
    gain: float
    photons: float
    bleaching: float
    saturated_fraction: float


def measure_light(movie: Movie, pairs: int = PAIRS) -> LightMeasurement:
    """Photons, bleaching and saturation of a raw movie.

    The noise of a detector that counts photons grows with brightness: the slope of variance against mean over pixels is the gain
    (counts a photon; "photon transfer", Janesick 2001). Frames next to each other are compared, so that activity and motion add little.
    """
    starts = np.unique(np.linspace(0, max(movie.frames - 2, 0), min(pairs, max(movie.frames // 2, 1))).astype(int))
    shape = (movie.height, movie.width)
    total, squares, highest = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.full(shape, -np.inf, np.float32)
    sampled, brightness = [], []
    for start in starts.tolist():
        pair = movie.read(start, min(start + 2, movie.frames)).astype(np.float32)
        if len(pair) < 2 or not np.isfinite(pair).all():
            continue
        mean = 0.5 * (pair[0] + pair[1])
        difference = pair[1] - pair[0]
        difference -= difference.mean(dtype=np.float64)  # light from elsewhere that comes and goes is no noise of photons
        total += mean
        squares += difference * difference
        np.maximum(highest, pair.max(0), out=highest)
        sampled.append(start)
        brightness.append(float(mean.mean(dtype=np.float64)))
    if not sampled:
        nothing = np.empty(0, np.float32)
        return LightMeasurement(np.empty(0, np.int64), nothing, nothing, nothing, 0.0, 0.0, 0.0, 0.0)
    mean, variance = total / np.float32(len(sampled)), squares / np.float32(2 * len(sampled))
    group_mean, group_variance = _groups(mean.ravel(), variance.ravel())
    gain, dark = _gain_and_dark(group_mean, group_variance)
    return LightMeasurement(
        sampled_frame=np.array(sampled, np.int64),
        brightness=np.array(brightness, np.float32),
        group_mean=group_mean,
        group_variance=group_variance,
        gain=gain,
        photons=(float(np.mean(mean, dtype=np.float64)) - dark) / gain if gain > 0 else 0.0,
        bleaching=_bleaching(np.array(sampled, float), np.array(brightness) - dark, movie.frames),
        saturated_fraction=float(np.mean(highest >= highest.max())) if highest.max() > mean.min() else 1.0,
    )


def _groups(mean: Float32, variance: Float32) -> tuple[Float32, Float32]:
    """Mean and median variance of pixels alike in brightness."""
    groups = [group for group in np.array_split(np.argsort(mean, kind="stable"), GROUPS) if len(group)]
    return (
        np.array([mean[group].mean() for group in groups], np.float32),
        np.array([np.median(variance[group]) for group in groups], np.float32),
    )


def _gain_and_dark(mean: Float32, variance: Float32) -> tuple[float, float]:
    """Counts a photon and counts without light, from the line through variance against mean; gain zero where it does not rise."""
    darkest = float(mean.min())
    if len(mean) < 3 or np.ptp(mean) <= 0:
        return 0.0, darkest
    gain, intercept = np.polyfit(mean.astype(np.float64), variance.astype(np.float64), 1)
    if gain <= 0:
        return 0.0, darkest
    # No light falls where the variance would be zero. Electronic noise moves that point down, so below zero it says nothing more than
    # that the detector's offset is no higher than the darkest pixels.
    return float(gain), float(np.clip(-intercept / gain, min(darkest, 0.0), darkest))


def steady_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and value at zero of the line through points (n,) that a quarter of them cannot pull away (Theil 1950, Sen 1968)."""
    first, second = np.triu_indices(len(x), 1)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return slope, float(np.median(y - slope * x))


def _bleaching(frame: NDArray[np.float64], brightness: NDArray[np.float64], frames: int) -> float:
    if len(frame) < 3:
        return 0.0
    slope, start = steady_line(frame, brightness)
    return float(np.clip(-slope * (frames - 1) / start, -1, 1)) if start > 0 else 0.0


@dataclass(frozen=True)
class ResidualMotion:
    """Motion that is left in a corrected movie, between its parts in time.

    Attributes:
        residual_frame: (stretches,) int64, middle frame of each stretch of time.
        residual_shifts: (stretches, rows, columns, 2) float32, y and x, pixels, of blocks of its mean image against that of all.
        residual_motion: root mean square over stretches, blocks and axes, pixels.
    """

    residual_frame: NDArray[np.int64]
    residual_shifts: Float32
    residual_motion: float


def measure_residual_motion(corrected: Movie, flagged: NDArray[np.bool_], inside: NDArray[np.bool_]) -> ResidualMotion:
    """Compare mean images of stretches of a corrected movie, block by block.

    What is left is a small part of a pixel, so each block is fitted by the mean image, its two gradients and an offset: to first order,
    the weights of the gradients are the displacement (Lucas and Kanade 1981).

    Args:
        corrected: frames without motion.
        flagged: (frames,) frames to leave out.
        inside: (y, x) pixels that lay in the field in nearly every frame.
    """
    edges = np.linspace(0, corrected.frames, min(STRETCHES, max(corrected.frames // FRAMES_A_STRETCH, 2)) + 1).astype(int)
    images, middles = [], []
    for start, stop in pairwise(edges.tolist()):
        good = start + np.flatnonzero(~flagged[start:stop])
        if len(good) == 0:
            continue
        chosen = good[np.unique(np.linspace(0, len(good) - 1, FRAMES_A_STRETCH).astype(int))].tolist()
        total = np.zeros((corrected.height, corrected.width), np.float32)
        for frame in chosen:
            total += corrected.read(frame, frame + 1)[0]
        images.append(ndimage.gaussian_filter(total / np.float32(len(chosen)), 1.0))
        middles.append((start + stop) // 2)
    rows, columns = (max(round(side / RESIDUAL_BLOCK), 1) for side in (corrected.height, corrected.width))
    shifts = np.zeros((len(images), rows, columns, 2), np.float32)
    if len(images) > 1:
        mean = np.mean(images, axis=0)
        slope_y, slope_x = np.gradient(mean)
        for row, block_rows in enumerate(np.array_split(np.arange(corrected.height), rows)):
            for column, block_columns in enumerate(np.array_split(np.arange(corrected.width), columns)):
                block = np.ix_(block_rows, block_columns)
                used = inside[block]
                if np.count_nonzero(used) < 100:
                    continue
                model = np.stack([mean[block][used], slope_y[block][used], slope_x[block][used], np.ones(np.count_nonzero(used))], axis=1)
                seen = np.stack([image[block][used] for image in images], axis=1)
                weights = np.linalg.lstsq(model.astype(np.float64), seen, rcond=None)[0]
                gain = np.where(np.abs(weights[0]) > 0.1, weights[0], np.inf)
                shifts[:, row, column] = (-weights[1:3] / gain).T
    left = float(np.sqrt(np.mean(shifts.astype(np.float64) ** 2))) if shifts.size else 0.0
    return ResidualMotion(np.array(middles, np.int64), shifts, left)
