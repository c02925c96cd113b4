"""A population of neurons whose stimulus-response functions are known.

Three kinds: energy cells (a quadrature pair of Gabor filters, Adelson & Bergen 1985), nonlinear-subunit cells (summed squares of
rectified, shifted Gabor filters), and linear-nonlinear cells (a centre and a weaker surround, ON or OFF, rectified). The filters come
from a small shared set of orientations and wavelengths, and receptive fields go smoothly with cortical position, with some scatter:
what a model with a shared core and a readout position can learn. A linear-nonlinear model cannot describe the first two kinds.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.recordings.raw_session import IMAGE_HEIGHT, IMAGE_WIDTH

CellKind = Literal["energy", "subunit", "linear"]
KINDS: tuple[CellKind, ...] = ("energy", "subunit", "linear")

REDUCTION = 4
"""Receptive fields are computed on images reduced by this factor, by averaging."""

GRID = (IMAGE_HEIGHT // REDUCTION, IMAGE_WIDTH // REDUCTION)
_GREY_MEAN, _GREY_STD = 115.0, 55.0
_ELONGATION = 1.2
_SURROUND_SIZE, _SURROUND_WEIGHT = 2.0, 0.7  # of the centre's sigma, and of its integral
# A field of a few hundred micrometres sees a part of the screen; as a share of it, from the middle to the part's edge.
_PART_OF_SCREEN = 0.15
_SCATTER = 0.03  # of the screen's height


@dataclass(frozen=True)
class Population:
    """The neurons of a session.

    Shapes: kind (neurons,) index into `KINDS`; orientation (neurons,) radians; wavelength (neurons,) pixels of the image; center
    (neurons, 2) receptive field y, x in pixels of the image; mean_count (neurons,) spikes a presentation; sharpness (neurons,)
    steepness of the output nonlinearity; filters (neurons, filters, y, x) on the reduced grid.
    """

    kind: NDArray[np.int64]
    orientation: NDArray[np.float64]
    wavelength: NDArray[np.float64]
    center: NDArray[np.float64]
    mean_count: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    filters: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.kind)


def draw_population(
    positions: NDArray[np.float64],
    field: tuple[float, float],
    *,
    orientations: int,
    wavelengths: tuple[float, ...],
    fractions: tuple[float, float, float],
    spikes: float,
    generator: np.random.Generator,
) -> Population:
    """Draw neurons for cortical positions (neurons, 2) y, x within a field (y, x) of the same unit.

    Args:
        orientations: number of preferred orientations.
        wavelengths: of the filters, in pixels of the full image.
        fractions: of energy, subunit and linear-nonlinear cells.
        spikes: mean count of a presentation, over neurons.
    """
    neurons = len(positions)
    counts = np.floor(np.asarray(fractions) * neurons).astype(int)
    counts[0] += neurons - counts.sum()
    kind = generator.permutation(np.repeat(np.arange(3), counts))
    orientation = generator.integers(orientations, size=neurons) * np.pi / orientations
    wavelength = np.asarray(wavelengths)[generator.integers(len(wavelengths), size=neurons)]
    # The retinotopic map: the field's centre sees the middle of the screen, turned a little and sheared.
    turn = generator.uniform(-0.3, 0.3)
    relative = 2 * positions / np.asarray(field) - 1
    turned = relative @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    bent = turned + 0.1 * np.sin(np.pi * turned[:, ::-1])
    scatter = generator.normal(0, _SCATTER * IMAGE_HEIGHT, (neurons, 2))
    center = (0.5 + _PART_OF_SCREEN * bent) * np.array([IMAGE_HEIGHT, IMAGE_WIDTH]) + scatter
    phase = generator.choice([0.0, 0.5 * np.pi, np.pi, 1.5 * np.pi], size=neurons)
    filters = np.zeros((neurons, 4, *GRID), np.float32)
    for neuron in range(neurons):
        for index, gabor in enumerate(_filters(int(kind[neuron]), center[neuron], orientation[neuron], wavelength[neuron], phase[neuron])):
            filters[neuron, index] = gabor
    return Population(
        kind=kind,
        orientation=orientation,
        wavelength=wavelength,
        center=center,
        mean_count=spikes * np.exp(generator.normal(-0.06, 0.35, neurons)),
        sharpness=generator.uniform(1.6, 2.2, neurons),
        filters=filters,
    )


def expected_counts(population: Population, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Expected spikes of a presentation at mean gain (images, neurons) for images (images, 144, 256).

    Drives are standardised over these images, so pass all of a session's at once (chunks are made inside).
    """
    drive = np.concatenate([_drive(population, images[start : start + 200]) for start in range(0, len(images), 200)])
    score = (drive - drive.mean(axis=0)) / drive.std(axis=0)
    rate = np.logaddexp(0.0, population.sharpness * (score - 0.2))
    return population.mean_count * rate / rate.mean(axis=0)


def _drive(population: Population, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    reduced = images.reshape(len(images), GRID[0], REDUCTION, GRID[1], REDUCTION).mean(axis=(2, 4), dtype=np.float32)
    flat = ((reduced - _GREY_MEAN) / _GREY_STD).reshape(len(images), -1)
    neurons = len(population)
    filtered = (flat @ population.filters.reshape(neurons * 4, -1).T).reshape(len(images), neurons, 4).astype(np.float64)
    energy = np.sqrt(filtered[:, :, 0] ** 2 + filtered[:, :, 1] ** 2)
    subunits = np.sqrt((np.maximum(filtered, 0) ** 2).sum(axis=2))
    linear = filtered[:, :, 0]
    return np.choose(population.kind[None, :], [energy, subunits, linear])


def _filters(kind: int, center: NDArray[np.float64], orientation: float, wavelength: float, phase: float) -> list[NDArray[np.float32]]:
    if kind == 0:
        return [_gabor(center, orientation, wavelength, shift) for shift in (0.0, 0.5 * np.pi)]
    if kind == 1:
        # Four subunits in a row along the stripes, one of each phase: a stimulus and its negative drive the cell about equally.
        along = np.array([np.cos(orientation), -np.sin(orientation)])  # y, x
        subunits = ((-0.3, 0.0), (-0.1, np.pi), (0.1, 0.5 * np.pi), (0.3, 1.5 * np.pi))
        return [_gabor(center + place * wavelength * along, orientation, wavelength, shift) for place, shift in subunits]
    return [_center_surround(center, wavelength, on=phase < np.pi)]


def _center_surround(center: NDArray[np.float64], wavelength: float, *, on: bool) -> NDArray[np.float32]:
    """A difference of Gaussians of unit norm on the reduced grid, negative for an OFF centre."""
    y, x = np.meshgrid(np.arange(GRID[0]), np.arange(GRID[1]), indexing="ij")
    distance = (y + 0.5 - center[0] / REDUCTION) ** 2 + (x + 0.5 - center[1] / REDUCTION) ** 2
    sigma = 0.25 * wavelength / REDUCTION
    middle, around = (np.exp(-distance / (2 * size**2)) / size**2 for size in (sigma, _SURROUND_SIZE * sigma))
    field = (middle - _SURROUND_WEIGHT * around) * (1 if on else -1)
    return (field / np.linalg.norm(field)).astype(np.float32)


def _gabor(center: NDArray[np.float64], orientation: float, wavelength: float, phase: float) -> NDArray[np.float32]:
    """A Gabor filter of zero mean and unit norm on the reduced grid; `orientation` is the direction across the stripes."""
    y, x = np.meshgrid(np.arange(GRID[0]), np.arange(GRID[1]), indexing="ij")
    dy, dx = y + 0.5 - center[0] / REDUCTION, x + 0.5 - center[1] / REDUCTION
    across = dx * np.cos(orientation) + dy * np.sin(orientation)
    along = dy * np.cos(orientation) - dx * np.sin(orientation)
    length = wavelength / REDUCTION
    sigma = 0.4 * length
    envelope = np.exp(-(across**2) / (2 * sigma**2) - along**2 / (2 * (_ELONGATION * sigma) ** 2))
    gabor = envelope * np.cos(2 * np.pi * across / length + phase)
    gabor -= envelope * gabor.sum() / envelope.sum()
    return (gabor / np.linalg.norm(gabor)).astype(np.float32)
