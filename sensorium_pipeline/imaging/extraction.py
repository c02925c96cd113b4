"""One plane of a recording from raw frames to activity: motion, cells, traces, deconvolution, out of core."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.imaging.deconvolution import DeconvolutionParameters
from sensorium_pipeline.imaging.quality import PlaneMetrics


class ImagingParameters(BaseModel):
    """Parameters of every step of an extraction; what they leave out, the recording says."""

    model_config = ConfigDict(frozen=True)

    deconvolution: DeconvolutionParameters = DeconvolutionParameters()


@dataclass(frozen=True)
class PlaneExtraction:
    """All that was extracted from one plane of a recording. Neurons are in a fixed order: brightest signal first.

    Attributes:
        frame_rate: Hz.
        mean_before: (y, x) float32, mean image of the raw frames; likewise `max_before`.
        mean_after: (y, x) float32, mean image of the corrected frames that are not flagged; likewise `max_after`.
        raster_phase: shift of the odd lines against the even ones that was undone, pixels.
        shifts: (frames, 2) float32, rigid motion y, x of every frame in pixels: content was moved by +shift.
        template_correlation: (frames,) float32, correlation of every corrected frame with the template.
        flagged: (frames,) bool, frames whose motion could not be trusted.
        footprint_neuron: (entries,) int32, index of the neuron; the three arrays are sparse triples, sorted by neuron, then pixel.
        footprint_pixel: (entries,) int32, flat index y * width + x.
        footprint_weight: (entries,) float32, > 0, with Euclidean norm 1 within a neuron.
        centroids: (neurons, 2) float32, y, x in pixels, weighted by the footprint.
        fluorescence: (neurons, frames) float32, counts of a pixel of the footprint (weighted mean); NaN in flagged frames.
        neuropil: (neurons, frames) float32, counts of a pixel of the surrounding ring; NaN in flagged frames.
        neuropil_coefficient: (neurons,) float32, share of the neuropil that was subtracted.
        dff: (neurons, frames) float32, dF/F; NaN in flagged frames.
        activity: (neurons, frames) float32, >= 0, deconvolved dF/F of a frame; NaN in flagged frames.
        noise: (neurons,) float32, standard deviation of the dF/F's noise within a frame.
        time_constants: (neurons, order) float32, s: decay and rise of the deconvolution.
        snr: (neurons,) float32, standard deviation of the denoised calcium over the noise, times the square root of the frames it
            was measured in per second: what a second of the recording shows.
        kept: (neurons,) bool.
        reason: (neurons,) why a neuron was not kept, empty where it was.
        metrics: measurements of the plane.
    """

    frame_rate: float
    mean_before: NDArray[np.float32]
    mean_after: NDArray[np.float32]
    max_before: NDArray[np.float32]
    max_after: NDArray[np.float32]
    raster_phase: float
    shifts: NDArray[np.float32]
    template_correlation: NDArray[np.float32]
    flagged: NDArray[np.bool_]
    footprint_neuron: NDArray[np.int32]
    footprint_pixel: NDArray[np.int32]
    footprint_weight: NDArray[np.float32]
    centroids: NDArray[np.float32]
    fluorescence: NDArray[np.float32]
    neuropil: NDArray[np.float32]
    neuropil_coefficient: NDArray[np.float32]
    dff: NDArray[np.float32]
    activity: NDArray[np.float32]
    noise: NDArray[np.float32]
    time_constants: NDArray[np.float32]
    snr: NDArray[np.float32]
    kept: NDArray[np.bool_]
    reason: tuple[str, ...]
    metrics: PlaneMetrics

    @property
    def neurons(self) -> int:
        """Cells found, kept or not."""
        return len(self.kept)
