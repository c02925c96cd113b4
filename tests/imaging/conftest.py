"""A small plane with known cells, for everything that follows motion correction."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

RATE = 8.0


@dataclass(frozen=True)
class ArrayMovie:
    """A movie in memory."""

    array: NDArray[Any]

    @property
    def frames(self) -> int:
        return int(self.array.shape[0])

    @property
    def height(self) -> int:
        return int(self.array.shape[1])

    @property
    def width(self) -> int:
        return int(self.array.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self.array[start:stop].copy()


@dataclass(frozen=True)
class TruePlane:
    """What a simulated plane is made of: footprints (cells, y, x), added (cells, frames) counts at the peak, neuropil (frames,) counts."""

    movie: ArrayMovie
    footprints: NDArray[np.float64]
    added: NDArray[np.float64]
    neuropil: NDArray[np.float64]

    def matches(self, neuron: NDArray[np.int32], pixel: NDArray[np.int32], weight: NDArray[np.float32]) -> dict[int, int]:
        """Index of the extracted neuron whose mask agrees best with each cell, where intersection over union is above one half."""
        found = []
        for index in range(int(neuron.max(initial=-1)) + 1):
            mask = np.zeros(self.footprints[0].size, bool)
            mine = neuron == index
            mask[pixel[mine][weight[mine] > 0.2 * weight[mine].max()]] = True
            found.append(mask)
        result = {}
        for cell, footprint in enumerate(self.footprints):
            true = footprint.ravel() > 0.2 * footprint.max()
            overlap = [np.sum(true & mask) / np.sum(true | mask) for mask in found]
            if overlap and max(overlap) > 0.5:
                result[cell] = int(np.argmax(overlap))
        return result


def simulate_plane(
    centres: list[tuple[float, float]],
    shape: tuple[int, int],
    frames: int,
    *,
    seed: int = 0,
    strength: float = 250.0,
    neuropil: float = 15.0,
) -> TruePlane:
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    footprints = np.stack([np.exp(-((((rows - y) ** 2 + (columns - x) ** 2) / 14.0) ** 2)) for y, x in centres] or [np.zeros(shape)])
    spikes = generator.poisson(0.02, (len(footprints), frames))
    kernel = np.exp(-np.arange(60) / (0.7 * RATE))
    added = strength * np.stack([np.convolve(row, kernel)[:frames] for row in spikes]) * bool(centres)
    still = 300 + 60 * gaussian_filter(generator.standard_normal(shape), 2) / 0.14
    wave = neuropil * gaussian_filter1d(generator.standard_normal(frames), 6) / 0.22
    clean = still + np.einsum("nt,nyx->tyx", added, footprints) + wave[:, None, None]
    noisy = generator.poisson(np.clip(clean, 0, None) / 8.0) * 8.0 + generator.normal(0, 6, clean.shape)
    return TruePlane(ArrayMovie(noisy.astype(np.int16)), footprints, added, wave)


@pytest.fixture(scope="session")
def true_plane() -> TruePlane:
    """Eleven cells, two of which overlap, over neuropil that all pixels share."""
    centres = [(12, 12), (14, 40), (12, 66), (32, 22), (34, 52), (36.0, 57.5), (52, 12), (54, 36), (56, 64), (70, 24), (70, 52)]
    return simulate_plane(centres, (82, 80), 1600)
