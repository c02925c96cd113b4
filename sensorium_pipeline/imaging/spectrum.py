"""Power spectra of images: what noise and templates hold at every scale."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """A power spectrum per pixel (units^2), averaged over directions: `power[i]` at `frequency[i]` cycles a pixel."""

    frequency: Float64
    power: Float64

    @classmethod
    def of(cls, images: Float32, pool: ThreadPoolExecutor | None = None) -> "Spectrum":
        """Mean spectrum of images (n, y, x) of zero mean, tapered at the edges; threads of the pool share the images."""
        height, width = images.shape[1:]
        taper = taper_window(height, width)
        power = np.zeros((height, width // 2 + 1))

        def power_of(image: Float32) -> Float32:
            transform = scipy.fft.rfft2(image * taper)
            return np.asarray(transform.real**2 + transform.imag**2)

        for one in map(power_of, images) if pool is None else pool.map(power_of, images):
            power += one
        power /= len(images) * float((taper.astype(np.float64) ** 2).sum())
        radius = radial_frequency(height, width)
        bins = max(min(height, width) // 4, 8)
        index = np.minimum((radius / 0.5 * bins).astype(int), bins - 1).ravel()
        index[0] = bins  # the mean is no part of it
        count = np.bincount(index, minlength=bins + 1)[:bins]
        total = np.bincount(index, power.ravel(), minlength=bins + 1)[:bins]
        frequency = (np.arange(bins) + 0.5) * 0.5 / bins
        mean = total[count > 0] / count[count > 0]
        # Weights are its inverse: a movie without noise, or without any power at some frequency, must not make them infinite.
        return cls(frequency[count > 0], np.maximum(mean, max(1e-6 * float(mean.max()), 1e-12)))

    @classmethod
    def white(cls, images: Float32, pool: ThreadPoolExecutor | None = None) -> "Spectrum":
        """White noise as strong as images (n, y, x) are at the highest frequencies, which optics leave to noise."""
        whole = cls.of(images - images.mean((1, 2), keepdims=True), pool)
        return cls(whole.frequency, np.full_like(whole.power, np.median(whole.power[-max(len(whole.power) // 4, 1) :])))

    def at(self, radius: Float64) -> Float64:
        """Power at these frequencies (cycles a pixel)."""
        return np.interp(radius, self.frequency, self.power)


def radial_frequency(height: int, width: int) -> Float64:
    """Distance from zero, cycles a pixel, of every entry of a real two-dimensional transform (y, x // 2 + 1)."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])


def taper_window(height: int, width: int) -> Float32:
    """Window (y, x) that falls to zero over the outer eighth on every side, as a raised cosine."""

    def side(length: int) -> Float64:
        edge = np.minimum(np.arange(length) + 0.5, length - np.arange(length) - 0.5)
        return 0.5 - 0.5 * np.cos(np.pi * np.minimum(edge / max(length / 8, 1.0), 1.0))

    return np.outer(side(height), side(width)).astype(np.float32)
