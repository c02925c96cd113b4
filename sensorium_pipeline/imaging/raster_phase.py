"""Raster phase: how far the odd lines of a bidirectional scan lie to the right of the even ones, one number a recording."""

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError

USUAL_PHASE = 8.0
"""Pixels, beyond which a phase counts only where the image leaves no doubt; nothing is looked for beyond `LARGEST_PHASE`."""
LARGEST_PHASE = 64.0

_LEAST_GAIN = 0.8


def certain_raster_phase(image: NDArray[np.floating]) -> float:
    """The raster phase of a scan of which nobody says whether it went both ways: 0.0 unless the image leaves no doubt.

    Args:
        image: as of `estimate_raster_phase`, and errors likewise.

    Returns:
        Pixels; other than 0.0 only where a shift by the nearest whole number of them takes a fifth of the difference (mean square)
        between odd lines and the even ones around them away. Whole pixels, because interpolation would remove noise.
    """
    phase = estimate_raster_phase(image)
    return phase if _explains(image, phase, 0.0) else 0.0


def _explains(image: NDArray[np.floating], phase: float, other: float) -> bool:
    """Whether odd lines that are moved by a phase are far more like the even ones around them than moved by the other one."""
    shifts = round(phase), round(other)
    edge = max(abs(shift) for shift in shifts)
    inner = slice(edge, image.shape[1] - edge)
    even = 0.5 * (image[0:-2:2] + image[2::2])[:, inner]
    odd = image[1:-1:2]
    left, apart = (float(np.mean((np.roll(odd, -shift, axis=1)[:, inner] - even) ** 2)) for shift in shifts)
    return left < _LEAST_GAIN * apart


def estimate_raster_phase(image: NDArray[np.floating]) -> float:
    """Offset of the odd lines against the even ones in a mean image, by phase correlation along the lines.

    Every odd line is compared with the mean of the even lines above and below it, so that oblique edges pull to neither side. The
    cross-spectra of all lines are added, each frequency is weighted by how well it agrees (phase correlation, Kuglin and Hines 1975,
    damped where both spectra are weak), and the peak is refined by evaluating the inverse transform around it on ever finer grids.

    Args:
        image: (y, x) mean of many frames, any unit, finite.

    Returns:
        Pixels by which the content of odd lines (1, 3, ...) is displaced towards larger x; 0.0 where the image says nothing. Beyond +-8
        only where a shift by so many pixels takes a fifth of the difference (mean square) away that the best one within them leaves.

    Raises:
        InputError: the image is not two-dimensional, too small or not finite.
    """
    if image.ndim != 2 or image.shape[0] < 4 or image.shape[1] < 16:
        raise InputError(f"shape {image.shape} is too small to find the raster phase", where="mean image", advice="At least 4 x 16 px.")
    if not np.isfinite(image).all():
        raise InputError("the mean image has values that are not finite", where="image", advice="Leave damaged frames out of the mean.")
    pixels = image.astype(np.float64)
    odd = pixels[1:-1:2]
    even = 0.5 * (pixels[0:-2:2][: len(odd)] + pixels[2::2][: len(odd)])
    width = pixels.shape[1]
    taper = np.hanning(width + 2)[1:-1]

    def spectrum(lines: NDArray[np.float64]) -> NDArray[np.complex128]:
        return scipy.fft.rfft((lines - lines.mean(1, keepdims=True)) * taper, axis=1)

    odd_spectrum, even_spectrum = spectrum(odd), spectrum(even)
    cross = (odd_spectrum * even_spectrum.conj()).sum(0)
    power = np.sqrt((np.abs(odd_spectrum) ** 2).sum(0) * (np.abs(even_spectrum) ** 2).sum(0))
    if power.max() <= 0:
        return 0.0
    # Coherence in 0..1: whitens what agrees and leaves noise, above all the highest frequencies, without a say.
    coherent = cross / (power + 1e-3 * power.max())
    # An even number of samples has an unpaired highest frequency, which cannot tell left from right.
    frequency = np.arange(len(coherent)) / width
    coherent[0] = 0
    coherent *= np.abs(coherent) * np.cos(np.pi * np.minimum(frequency, 0.5)) ** 2

    def highest(reach: float) -> float:
        middle, span = 0.0, reach
        for step in (0.25, 0.01):
            candidates = middle + step * np.arange(-int(span / step), int(span / step) + 1)
            score = (np.exp(2j * np.pi * np.outer(candidates, frequency)) @ coherent).real
            if score.max() <= 0:
                return 0.0
            middle, span = float(candidates[int(np.argmax(score))]), 0.25
        return float(np.clip(round(middle, 2), -reach, reach))

    usual, far = (highest(min(largest, width / 4)) for largest in (USUAL_PHASE, LARGEST_PHASE))
    peak = usual if abs(usual) < USUAL_PHASE else 0.0  # at the end of the range it is the flank of one that lies beyond
    return far if abs(far) > USUAL_PHASE and _explains(pixels, far, peak) else usual
