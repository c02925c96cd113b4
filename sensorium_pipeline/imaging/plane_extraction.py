"""What is known of one plane of a recording once it is extracted."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.quality import MotionMetrics, PlaneMetrics


@dataclass(frozen=True)
class PlaneMotion:
    """What is known of a plane as soon as its motion is corrected.

    Attributes:
        frame_rate: Hz.
        pixel_size: um; None where it is not known.
        mean_before: (y, x) float32, mean image of the raw frames; likewise `max_before`.
        mean_after: (y, x) float32, mean image of the corrected frames that are not flagged; likewise `max_after`.
        raster_phase: shift of the odd lines against the even ones that was undone, pixels.
        shifts: (frames, 2) float32, rigid motion y, x of every frame in pixels: content was moved by +shift.
        template_correlation: (frames,) float32, correlation of every corrected frame with the template.
        block_shifts: (frames, rows, columns, 2) float32, what is left of the motion at nodes spread over the field, pixels.
        block_centres: (rows, columns, 2) float32, where the nodes are, pixels.
        measured: (frames,) bool, frames whose motion stands out of noise.
        flagged: (frames,) bool, frames whose motion could not be trusted.
        flag_reason: (frames,) str, why a frame is flagged, empty where it is not.
        depth_drift_first_frame: (parts,) int64, first frames of parts of the recording.
        depth_drift_template_correlation: (parts,) float32, correlation of their mean images with that of all.
        depth_drift_correlation: (parts, parts) float32, of them with each other.
        sampled_frame: (samples,) int64, raw frames of which brightness was measured.
        brightness: (samples,) float32, their mean, counts.
        group_mean: (groups,) float32, mean of pixels alike in brightness, counts.
        group_variance: (groups,) float32, median variance of their noise, counts squared.
        residual_frame: (stretches,) int64, middle frames of stretches of time.
        residual_shifts: (stretches, rows, columns, 2) float32, motion of blocks that correction left over in each, y and x, pixels.
        metrics: measurements of the plane.
    """

    frame_rate: float
    pixel_size: float | None
    mean_before: NDArray[np.float32]
    mean_after: NDArray[np.float32]
    max_before: NDArray[np.float32]
    max_after: NDArray[np.float32]
    raster_phase: float
    shifts: NDArray[np.float32]
    template_correlation: NDArray[np.float32]
    block_shifts: NDArray[np.float32]
    block_centres: NDArray[np.float32]
    measured: NDArray[np.bool_]
    flagged: NDArray[np.bool_]
    flag_reason: NDArray[np.str_]
    depth_drift_first_frame: NDArray[np.int64]
    depth_drift_template_correlation: NDArray[np.float32]
    depth_drift_correlation: NDArray[np.float32]
    sampled_frame: NDArray[np.int64]
    brightness: NDArray[np.float32]
    group_mean: NDArray[np.float32]
    group_variance: NDArray[np.float32]
    residual_frame: NDArray[np.int64]
    residual_shifts: NDArray[np.float32]
    metrics: MotionMetrics


@dataclass(frozen=True)
class PlaneExtraction(PlaneMotion):
    """All that was extracted from one plane of a recording; neurons in a fixed order, those of the largest signal first.

    Attributes, beside those of `PlaneMotion`:
        footprint_neuron: (entries,) int32, index of the neuron; the three arrays are sparse triples, sorted by neuron, then pixel.
        footprint_pixel: (entries,) int32, flat index y * width + x.
        footprint_weight: (entries,) float32, > 0, with Euclidean norm 1 within a neuron.
        centroids: (neurons, 2) float32, y, x in pixels, weighted by the footprint.
        detection_snr: (neurons,) float32, signal-to-noise in the binned movie that cells were found in.
        fluorescence: (neurons, frames) float32, counts of a pixel of the footprint (weighted mean); NaN in flagged frames.
        neuropil: (neurons, frames) float32, counts of a pixel around it where no cell is; NaN in flagged frames.
        neuropil_coefficient: (neurons,) float32, share of the neuropil that was subtracted.
        dff: (neurons, frames) float32, dF/F; NaN in flagged frames.
        activity: (neurons, frames) float32, >= 0, deconvolved dF/F of a frame; NaN in flagged frames.
        denoised: (neurons, frames) float32, >= 0, the dF/F that the activity makes, without noise and baseline; NaN in flagged frames.
        noise: (neurons,) float32, standard deviation of the dF/F's noise within a frame.
        time_constants: (neurons, order) float32, s: decay and rise of the deconvolution.
        snr: (neurons,) float32, standard deviation of the denoised calcium over that of the noise within a second (the noise within a
            frame over the square root of the frame rate), so that recordings of different rates compare.
        kept: (neurons,) bool.
        reason: (neurons,) why a neuron was not kept, empty where it was.
        metrics: measurements of the plane.
    """

    footprint_neuron: NDArray[np.int32]
    footprint_pixel: NDArray[np.int32]
    footprint_weight: NDArray[np.float32]
    centroids: NDArray[np.float32]
    detection_snr: NDArray[np.float32]
    fluorescence: NDArray[np.float32]
    neuropil: NDArray[np.float32]
    neuropil_coefficient: NDArray[np.float32]
    dff: NDArray[np.float32]
    activity: NDArray[np.float32]
    denoised: NDArray[np.float32]
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
