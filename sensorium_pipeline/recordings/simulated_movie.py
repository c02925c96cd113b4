"""A simulated plane: somata, neuropil, a moving brain, and the noise of counting photons."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sensorium_pipeline.recordings.simulated_schedule import wander
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters

MARGIN = 10
"""Pixels of brain around the field that motion brings into it."""

_COUNTS_PER_PHOTON, _READ_NOISE, _BLACK = 10.0, 1.5, 20.0
_SOMA_DIAMETER = 9.0  # um
_NEUROPIL_MODES = 5
_LARGEST_SHIFT = 7.0  # pixels; less than the margin

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Plane:
    """The scene of one plane.

    Shapes: centers (neurons, 2) y, x in pixels of the field; footprints (neurons, y, x) in the field, without motion, peak one;
    scene (components, canvas y * canvas x): photons of each somatic and neuropil component, then background, then what is seen
    out of focus; neuropil_mix (modes, neurons).
    """

    centers: NDArray[np.float64]
    footprints: Image
    scene: Image
    neuropil_mix: NDArray[np.float64]
    canvas: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Lines and pixels of the field."""
        return self.canvas[0] - 2 * MARGIN, self.canvas[1] - 2 * MARGIN


def draw_plane(parameters: SimulationParameters, shape: tuple[int, int], generator: np.random.Generator) -> Plane:
    """Place somata that hardly overlap in a field of this shape (y, x), and draw the background."""
    height, width = shape
    canvas = (height + 2 * MARGIN, width + 2 * MARGIN)
    centers = _place(parameters, shape, generator)
    neurons = len(centers)
    shapes = np.stack([_soma(center + MARGIN, canvas, parameters.pixel_size, generator) for center in centers])
    background = parameters.photons * (1.25 + 0.18 * _smooth(canvas, 5.0, generator) + 0.08 * _smooth(canvas, 1.2, generator))
    background = np.maximum(background, parameters.photons * 0.8)
    modes = np.stack([np.abs(_smooth(canvas, 14.0, generator)) for _ in range(_NEUROPIL_MODES)]) * background
    # Neuropil is brightest where somata are not, and follows the neurons nearby.
    modes *= 1 - 0.6 * np.minimum(shapes.sum(axis=0), 1)
    rows, columns = np.rint(centers + MARGIN).astype(int).T
    nearby = modes[:, rows, columns] / background[rows, columns]
    blurred = parameters.photons * (1.3 + 0.25 * _smooth(canvas, 6.0, generator)) + 8 * np.abs(_smooth(canvas, 2.5, generator))
    brightness = parameters.soma_photons * np.exp(generator.normal(0, 0.2, neurons))
    scene = np.concatenate([shapes * brightness[:, None, None], modes, background[None], blurred[None]])
    inner = (slice(None), slice(MARGIN, MARGIN + height), slice(MARGIN, MARGIN + width))
    return Plane(centers, shapes[inner].astype(np.float32), scene.reshape(len(scene), -1).astype(np.float32), nearby, canvas)


def draw_courses(
    plane: Plane, dff: NDArray[np.float32], out_of_focus: NDArray[np.float64], rate: float, generator: np.random.Generator
) -> Image:
    """How bright each component of the scene is in every frame (frames, components).

    Args:
        dff: of the neurons at the plane's frames (neurons, frames).
        out_of_focus: 0 in focus .. 1 (frames,).
    """
    frames = dff.shape[1]
    mix = plane.neuropil_mix / np.maximum(plane.neuropil_mix.sum(axis=1, keepdims=True), 1e-9)
    activity = mix @ (dff - dff.mean(axis=1, keepdims=True))
    slow = np.stack([wander(frames, 3.0, generator, rate) for _ in range(_NEUROPIL_MODES)])
    neuropil = 0.05 * slow + 0.10 * activity
    focus = 1 - out_of_focus
    return np.concatenate([(1 + dff) * focus, neuropil * focus, focus[None], out_of_focus[None]]).T.astype(np.float32)


def draw_motion(parameters: SimulationParameters, speed: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Rigid displacement (frames, 2) y, x of the brain in pixels: slow drift, and faster motion while the mouse runs."""
    frames = len(speed)
    scale = parameters.motion / parameters.pixel_size
    slow = np.stack([wander(frames, 25.0, generator, parameters.volume_rate) for _ in range(2)], axis=1)
    fast = np.stack([wander(frames, 0.15, generator, parameters.volume_rate) for _ in range(2)], axis=1)
    running = np.tanh(speed / 10)[:, None]
    return np.clip(scale * (slow + fast * (0.1 + 0.5 * running)), -_LARGEST_SHIFT, _LARGEST_SHIFT)


def render(
    plane: Plane, courses: Image, shifts: NDArray[np.float64], parameters: SimulationParameters, generator: np.random.Generator
) -> NDArray[np.int16]:
    """Frames (frames, y, x) of the moving scene with photon and read noise, odd lines displaced by the line phase.

    Photon counts are drawn from the normal distribution of equal variance, which at 30 photons and more is close to Poisson's.
    """
    frames, (height, width) = len(courses), plane.shape
    scene = (courses @ plane.scene).reshape(frames, *plane.canvas)
    photons = np.empty((frames, height, width), np.float32)
    down = _sampling(height, plane.canvas[0], shifts[:, 0])
    moved = down @ scene
    for first, phase in ((0, 0.0), (1, parameters.line_phase)):
        across = _sampling(width, plane.canvas[1], shifts[:, 1] + phase)
        photons[:, first::2] = np.ascontiguousarray(moved[:, first::2]) @ across.transpose(0, 2, 1)
    np.maximum(photons, 0, out=photons)
    noise = generator.standard_normal(photons.shape, dtype=np.float32)
    noise *= np.sqrt(photons + np.float32(_READ_NOISE**2))
    photons += noise
    photons *= np.float32(_COUNTS_PER_PHOTON)
    photons += np.float32(_BLACK)
    np.rint(photons, out=photons)
    np.clip(photons, -32768, 32767, out=photons)
    return photons.astype(np.int16)


def _sampling(pixels: int, canvas: int, shift: NDArray[np.float64]) -> Image:
    """Matrices (frames, pixels, canvas) of cubic (Catmull-Rom) interpolation that move the canvas by `shift` (frames,) pixels."""
    position = np.arange(pixels)[None, :] + MARGIN - shift[:, None]
    base = np.floor(position).astype(int)
    t = (position - base).astype(np.float32)
    weights = (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    matrix = np.zeros((len(shift), pixels, canvas), np.float32)
    frame, pixel = np.arange(len(shift))[:, None], np.arange(pixels)[None, :]
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        matrix[frame, pixel, np.clip(base + offset, 0, canvas - 1)] += weight
    return matrix


def _place(parameters: SimulationParameters, shape: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float64]:
    """Centres (neurons, 2) y, x at least a soma apart where there is room for it."""
    diameter = _SOMA_DIAMETER / parameters.pixel_size
    low, high = diameter, np.array(shape) - 1 - diameter
    centers: list[NDArray[np.float64]] = []
    distance = 1.1 * diameter
    while len(centers) < parameters.neurons_per_plane:
        for _ in range(500):
            candidate = low + generator.random(2) * (high - low)
            if all(np.hypot(*(candidate - other)) >= distance for other in centers):
                centers.append(candidate)
                break
        else:
            distance *= 0.95
    return np.array(centers)


def _soma(center: NDArray[np.float64], canvas: tuple[int, int], pixel_size: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """A ring-like soma, as an indicator that stays out of the nucleus shows it; peak one."""
    radius = 0.5 * np.clip(generator.normal(_SOMA_DIAMETER, 0.6), 7.5, 10.5) / pixel_size
    stretch, turn = generator.uniform(0.85, 1.18), generator.uniform(0, np.pi)
    y, x = np.meshgrid(np.arange(canvas[0]) - center[0], np.arange(canvas[1]) - center[1], indexing="ij")
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance = np.hypot(along * stretch, across / stretch) / radius
    edge = 1 / (1 + np.exp((distance - 1) * radius / 0.45))
    ring = edge * (1 - 0.4 * np.exp(-((distance / 0.5) ** 2)))
    ring[ring < 0.02] = 0
    return np.asarray(ring / ring.max())


def _smooth(canvas: tuple[int, int], width: float, generator: np.random.Generator) -> NDArray[np.float64]:
    noise = gaussian_filter(generator.standard_normal(canvas), width, mode="wrap")
    return np.asarray(noise / noise.std())
