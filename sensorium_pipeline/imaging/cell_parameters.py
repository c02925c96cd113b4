"""Parameters of the segmentation, apart from it: whoever only names them need not load compiled code."""

import math

from pydantic import BaseModel, ConfigDict, Field


class CellParameters(BaseModel):
    """Parameters of the segmentation. Lengths are micrometres where the pixel size is known, and pixels where it is not.

    Attributes:
        bin_duration: s of the recording in one frame of the binned movie.
        high_pass: s, slower changes are no sign of a cell.
        soma: um, the diameters of somata that are looked for, with room for blur and for what a section cuts off.
        soma_pixels: px, likewise, where the pixel size is not known.
        neuropil_scale: px, standard deviation of the window that tells what is neuropil; at least half the largest soma.
        false_seeds: places a plane that noise alone may make look like a cell, from which the threshold of the search follows.
        mask: part of its maximum from which a footprint's pixels count as its mask.
        least_compactness: area of the mask over that of the disc with the same spread; 1 for a disc.
        least_snr: of a footprint's trace in the binned movie, the square root of its energy beyond that of the noise, over the noise.
        least_skewness: of the signal, exceeded with 95 % confidence: cells fire in bouts, neuropil rises and falls alike.
        most_surround: of its signal that shows around a cell, over what shows in its footprint: neuropil does not end where a soma ends.
        same_overlap: share of the smaller mask from which two footprints whose traces are alike are of one cell.
        same_correlation: of their traces without noise, likewise.
        fragment_snr: part of a neighbour's signal-to-noise below which a footprint may be what that neighbour left over.
        fragment_correlation: of their traces, from which it is.
    """

    model_config = ConfigDict(frozen=True)

    bin_duration: float = Field(default=0.8, gt=0)
    high_pass: float = Field(default=60.0, gt=0)
    soma: tuple[float, float] = (5.0, 30.0)
    soma_pixels: tuple[float, float] = (2.5, 20.0)
    neuropil_scale: float = Field(default=18.0, gt=0)
    false_seeds: float = Field(default=0.1, gt=0)
    mask: float = 0.2
    least_compactness: float = 0.33
    least_snr: float = 12.0
    least_skewness: float = 0.5
    most_surround: float = 0.08
    same_overlap: float = 0.3
    same_correlation: float = 0.8
    fragment_snr: float = 0.35
    fragment_correlation: float = 0.5

    def diameters(self, pixel_size: float | None) -> tuple[float, float]:
        """Least and largest diameter of a cell in pixels of `pixel_size` um."""
        if pixel_size is None:
            return self.soma_pixels
        # Optics and motion blur any cell to about two pixels.
        return max(self.soma[0] / pixel_size, 2.0), max(self.soma[1] / pixel_size, 4.0)

    def areas(self, pixel_size: float | None) -> tuple[float, float]:
        """Least and largest area of a mask in pixels."""
        least, largest = self.diameters(pixel_size)
        return math.pi / 4 * least**2, math.pi / 4 * largest**2
