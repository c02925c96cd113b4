"""Raster phase: how far the odd lines of a bidirectional scan lie to the right of the even ones, one number a recording."""

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError

LARGEST_PHASE = 8.0
"""Pixels; a scanner that is further out needs its alignment corrected at the microscope."""

_LEAST_GAIN = 0.8
_STEPS = 100  # a hundredth of a pixel


def certain_raster_phase(image: NDArray[np.floating]) -> float:
    """The raster phase of a scan of which nobody says whether it went both ways: 0.0 unless the image leaves no doubt.

    Args:
        image: as of `estimate_raster_phase`, and errors likewise.

    Returns:
        Pixels; other than 0.0 only where a shift by the nearest whole number of them takes a fifth of the difference (mean square)
        between odd lines and the even ones around them away. Whole pixels, because interpolation would remove noise.
    """
    phase = estimate_raster_phase(image)
    if (whole := round(phase)) == 0:
        return 0.0
    inner = slice(int(LARGEST_PHASE), -int(LARGEST_PHASE))
    even = 0.5 * (image[0:-2:2] + image[2::2])[:, inner]
    odd = image[1:-1:2]
    apart, left = (float(np.mean((np.roll(odd, -shift, axis=1)[:, inner] - even) ** 2)) for shift in (0, whole))
    return phase if left < _LEAST_GAIN * apart else 0.0


def estimate_raster_phase(image: NDArray[np.floating]) -> float:
    """Offset of the odd lines against the even ones in a mean image, by phase correlation along the lines.

    Every odd line is compared with the mean of the even lines above and below it, so that oblique edges pull to neither side. The
    cross-spectra of all lines are added, each frequency is weighted by how well it agrees (phase correlation, Kuglin and Hines 1975,
    damped where both spectra are weak), and the peak is refined by evaluating the inverse transform around it on a fine grid.

    Args:
        image: (y, x) mean of many frames, any unit, finite.

    Returns:
        Pixels by which the content of odd lines (1, 3, ...) is displaced towards larger x; within +-8, 0.0 where the image says nothing.

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
    reach = min(LARGEST_PHASE, width / 4)
    candidates = np.arange(-int(reach * _STEPS), int(reach * _STEPS) + 1) / _STEPS
    score = (np.exp(2j * np.pi * np.outer(candidates, frequency)) @ coherent).real
    return float(candidates[int(np.argmax(score))]) if score.max() > 0 else 0.0
