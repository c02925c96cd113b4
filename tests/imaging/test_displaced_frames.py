"""Compiled loops over displaced frames, against the same thing pixel by pixel."""

import numpy as np
import pytest

from sensorium_pipeline.imaging.displaced_frames import PADDING, correct_frame, gradient_sums, prepare_frame, warp_frame
from sensorium_pipeline.imaging.frame_sums import bin_frame, pearson

SHAPES = [((40, 52), (2, 2)), ((33, 90), (3, 5)), ((70, 24), (6, 2))]
FIELDS = {
    "at rest": (0.0, 0.0),
    "rigid": (0.0, 2.6),
    "bent": (0.8, 1.4),
    "steep": (6.0, 0.0),
    "half outside": (3.0, 15.0),
    "gone": (0.0, 500.0),
}


def hats(length: int, nodes: int) -> np.ndarray:
    return np.clip(1 - np.abs(np.arange(length)[:, None] * (nodes - 1) / (length - 1) - np.arange(nodes)), 0, None)


def scene(shape: tuple[int, int], nodes: tuple[int, int], bend: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame (y, x), a field (rows, columns, 2), and where each pixel of the template stands in the frame (2, y, x)."""
    rng = np.random.default_rng(1)
    frame = rng.integers(-200, 2000, shape).astype(np.int16)
    field = (bend * rng.standard_normal((*nodes, 2)) + shift * np.array([1.0, -0.7])).astype(np.float32)
    dense = np.einsum("yi,xj,ijk->kyx", hats(shape[0], nodes[0]), hats(shape[1], nodes[1]), field.astype(np.float64))
    return frame, field, np.mgrid[: shape[0], : shape[1]] + dense


def taps(place: np.ndarray, length: int, offsets: range) -> list[np.ndarray]:
    whole = np.floor(place).astype(int)
    return [np.clip(whole + offset, 0, length - 1) for offset in offsets]


def cubic(place: np.ndarray) -> list[np.ndarray]:
    """Keys 1981, a = -1/2."""
    t = place - np.floor(place)
    near, far = (lambda d: 1.5 * d**3 - 2.5 * d**2 + 1), (lambda d: -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2)
    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def sampled(frame: np.ndarray, places: np.ndarray) -> np.ndarray:
    height, width = frame.shape
    rows, columns = taps(places[0], height, range(-1, 3)), taps(places[1], width, range(-1, 3))
    down, right = cubic(places[0]), cubic(places[1])
    return np.asarray(sum(down[a] * right[b] * frame[rows[a], columns[b]] for a in range(4) for b in range(4)))


@pytest.mark.parametrize(("shape", "nodes"), SHAPES)
@pytest.mark.parametrize("field", FIELDS)
def test_frames_are_moved_back_by_cubic_convolution_with_repeated_edges(shape: tuple[int, int], nodes: tuple[int, int], field: str) -> None:
    frame, displacement, places = scene(shape, nodes, *FIELDS[field])
    expected = sampled(frame.astype(np.float64), places)
    padded = np.empty((shape[0] + 2 * PADDING, shape[1] + 2 * PADDING), np.float32)
    prepare_frame(frame, 0.0, padded)
    moved, whole, sums = np.empty(shape, np.float32), np.empty(shape, np.int16), np.empty(6)
    warp_frame(padded, displacement, moved)
    np.testing.assert_allclose(moved, expected, atol=0.1)
    template = (expected - expected.mean()).astype(np.float32)
    correct_frame(padded, displacement, np.float32(900), template, True, whole, sums)
    correlation = pearson(sums)
    np.testing.assert_allclose(whole, expected, atol=0.6)
    assert correlation == pytest.approx(1.0 if field != "gone" else 0.0, abs=1e-4)


@pytest.mark.parametrize(("shape", "nodes"), SHAPES)
@pytest.mark.parametrize("field", FIELDS)
def test_gradient_sums_are_those_of_all_pixels_inside(shape: tuple[int, int], nodes: tuple[int, int], field: str) -> None:
    frame, displacement, places = scene(shape, nodes, *FIELDS[field])
    height, width = shape
    rng = np.random.default_rng(2)
    template, gradient_y, gradient_x = rng.standard_normal((3, *shape)).astype(np.float32)
    rows, columns = taps(places[0], height, range(2)), taps(places[1], width, range(2))
    v, u = places - np.floor(places)
    values = (1 - v) * ((1 - u) * frame[rows[0], columns[0]] + u * frame[rows[0], columns[1]])
    values += v * ((1 - u) * frame[rows[1], columns[0]] + u * frame[rows[1], columns[1]])
    values = (values - 900.0) / 500.0
    first = np.floor(places)
    inside = (first[0] >= 0) & (first[0] < height - 1) & (first[1] >= 0) & (first[1] < width - 1)
    error = np.where(inside, values - template, 0)
    weights = hats(height, nodes[0]), hats(width, nodes[1])
    expected = np.stack([np.einsum("yi,xj,yx->ij", *weights, error * gradient) for gradient in (gradient_y, gradient_x)], -1)
    known, seen = values[inside], template[inside].astype(np.float64)
    moments = [inside.sum(), known.sum(), (known**2).sum(), seen.sum(), (seen**2).sum(), (known * seen).sum()]
    padded = np.full((height + 4, width + 4), 1e6, np.float32)
    padded[2:-2, 2:-2] = frame
    for image, margin in ((frame.astype(np.float32), 0), (padded, 2)):
        sums, statistics = np.empty((*nodes, 2)), np.empty(6)
        gradient_sums(image, margin, np.float32(900), np.float32(500), displacement, template, gradient_y, gradient_x, sums, statistics)
        np.testing.assert_allclose(sums, expected, atol=0.02)
        np.testing.assert_allclose(statistics, moments, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("shape", [(20, 34), (21, 35)])
def test_binning_is_the_mean_of_four(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    height, width = (shape[0] - 4) // 2, (shape[1] - 4) // 2
    binned = np.empty((height, width), np.float32)
    bin_frame(image, 2, 2, binned)
    inner = image[2 : 2 + 2 * height, 2 : 2 + 2 * width]
    np.testing.assert_allclose(binned, inner.reshape(height, 2, width, 2).mean((1, 3)), atol=1e-6)
