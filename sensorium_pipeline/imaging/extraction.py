"""One plane of a recording from raw frames to activity: motion, cells, traces, deconvolution, out of core."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.imaging.cell_block import CellParameters
from sensorium_pipeline.imaging.cells import Cells, segment
from sensorium_pipeline.imaging.deconvolution import Deconvolution, DeconvolutionParameters, deconvolve
from sensorium_pipeline.imaging.motion_parameters import MotionParameters
from sensorium_pipeline.imaging.quality import PlaneMetrics, measure_recording
from sensorium_pipeline.imaging.traces import TraceParameters, Traces, extract_traces
from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

# A pixel belongs to the plane if so large a part of the frames saw it.
LEAST_COVERAGE = 0.95

if TYPE_CHECKING:
    from sensorium_pipeline.imaging.motion import MotionResult


class ImagingParameters(BaseModel):
    """Parameters of every step of an extraction; what they leave out, the recording says."""

    model_config = ConfigDict(frozen=True)

    motion: MotionParameters = MotionParameters()
    cells: CellParameters = CellParameters()
    traces: TraceParameters = TraceParameters()
    deconvolution: DeconvolutionParameters = DeconvolutionParameters()


@dataclass(frozen=True)
class PlaneExtraction:
    """All that was extracted from one plane of a recording; neurons in a fixed order, those of the largest signal first.

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
        snr: (neurons,) float32, standard deviation of the denoised calcium over that of the noise within a second (the noise within a
            frame over the square root of the frame rate), so that recordings of different rates compare.
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


def extract_plane(
    movie: Movie,
    *,
    frame_rate: float,
    pixel_size: float | None = None,
    bidirectional: bool = False,
    parameters: ImagingParameters = ImagingParameters(),
    scratch: Path,
    progress: ProgressCallback = silent,
) -> PlaneExtraction:
    """Extract one plane.

    Args:
        movie: raw frames of the plane.
        frame_rate: of the plane (the volume rate), Hz.
        pixel_size: um; left out where it is not known, and then cells of any usual size in pixels are looked for.
        bidirectional: whether odd lines were scanned backwards.
        parameters: of every step.
        scratch: folder on a disk with room for twice the plane; all that is written there is removed at the end.
        progress: told after every chunk of every stage.

    Raises:
        InputError: the movie is too small, too short or shows nothing, or the frame rate is not a positive number.
        PlatformError: the scratch disk is full or cannot be written.
    """
    if not np.isfinite(frame_rate) or frame_rate <= 0:
        raise InputError(
            f"the frame rate is {frame_rate}", where="frame_rate", advice="Give frames of a plane per second, a positive number."
        )
    if pixel_size is not None and not (np.isfinite(pixel_size) and pixel_size > 0):
        raise InputError(
            f"the pixel size is {pixel_size}", where="pixel_size", advice="Give micrometres, a positive number, or leave it out."
        )
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="plane-", dir=scratch) as folder:
            return _extract(movie, frame_rate, bidirectional, parameters, Path(folder), progress)
    except OSError as error:
        raise PlatformError(
            f"scratch space failed ({error})", where=scratch, advice="Give a folder with room for the plane twice."
        ) from error


def _extract(
    movie: Movie, frame_rate: float, bidirectional: bool, parameters: ImagingParameters, folder: Path, progress: ProgressCallback
) -> PlaneExtraction:
    from sensorium_pipeline.imaging.motion import correct_motion  # loads torch, which reading an extraction does not need

    motion, corrected = correct_motion(movie, folder / "corrected", parameters.motion, bidirectional=bidirectional, progress=progress)
    cells = segment(
        corrected,
        frame_rate=frame_rate,
        flagged=motion.flagged,
        inside=motion.coverage >= LEAST_COVERAGE,
        parameters=parameters.cells,
        scratch=folder,
        progress=progress,
        threads=len(os.sched_getaffinity(0)),
    )
    traces = extract_traces(
        corrected, cells, frame_rate=frame_rate, flagged=motion.flagged, parameters=parameters.traces, progress=progress
    )
    activity = deconvolve(traces.dff, frame_rate, parameters.deconvolution)
    snr = _signal_to_noise(activity, frame_rate)
    return PlaneExtraction(
        frame_rate=frame_rate,
        mean_before=motion.mean_before,
        mean_after=motion.mean_after,
        max_before=motion.max_before,
        max_after=motion.max_after,
        raster_phase=float(motion.raster_phase),
        shifts=motion.shifts,
        template_correlation=motion.correlation,
        flagged=motion.flagged,
        footprint_neuron=cells.neuron,
        footprint_pixel=cells.pixel,
        footprint_weight=cells.weight,
        centroids=cells.centroids,
        fluorescence=traces.fluorescence,
        neuropil=traces.neuropil,
        neuropil_coefficient=traces.neuropil_coefficient,
        dff=traces.dff,
        activity=activity.activity,
        noise=activity.noise,
        time_constants=activity.time_constants,
        snr=snr,
        kept=cells.kept,
        reason=cells.reason,
        metrics=_metrics(movie, motion, cells, traces, activity, snr),
    )


def _signal_to_noise(activity: Deconvolution, frame_rate: float) -> NDArray[np.float32]:
    """See `PlaneExtraction.snr`; zero for a trace without a sample or without noise."""
    denoised = np.where(np.isnan(activity.denoised), 0, activity.denoised)
    known = np.maximum(np.count_nonzero(~np.isnan(activity.denoised), axis=1), 1)
    mean = denoised.sum(1, dtype=np.float64) / known
    signal = np.sqrt(np.maximum((denoised.astype(np.float64) ** 2).sum(1) / known - mean**2, 0))
    noise = activity.noise.astype(np.float64) / np.sqrt(frame_rate)
    return np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0).astype(np.float32)


def _metrics(
    movie: Movie, motion: "MotionResult", cells: Cells, traces: Traces, activity: Deconvolution, snr: NDArray[np.float32]
) -> PlaneMetrics:
    good = ~motion.flagged
    shifts = motion.shifts[good].astype(np.float64)
    bleaching, photons, saturated = measure_recording(movie)

    def median(values: NDArray[np.float32]) -> float:
        return float(np.nan_to_num(np.median(values))) if len(values) else 0.0

    return PlaneMetrics(
        frames=movie.frames,
        flagged_fraction=float(np.mean(motion.flagged)),
        template_correlation=median(motion.correlation[good]),
        motion_measured_fraction=float(np.mean(motion.measured)),
        motion_pooled=motion.pooled,
        shift_rms=float(np.sqrt(np.mean(np.sum((shifts - shifts.mean(0)) ** 2, axis=1)))) if len(shifts) else 0.0,
        largest_shift=float(np.sqrt(np.sum(shifts**2, axis=1)).max(initial=0.0)),
        raster_phase=float(motion.raster_phase),
        crispness_before=float(np.nan_to_num(motion.crispness_before)),
        crispness_after=float(np.nan_to_num(motion.crispness_after)),
        cells=len(cells),
        kept_cells=int(cells.kept.sum()),
        median_snr=median(snr[cells.kept]),
        median_noise=median(activity.noise[cells.kept]),
        median_neuropil_coefficient=median(traces.neuropil_coefficient[cells.kept]),
        bleaching=bleaching,
        photons=photons,
        saturated_fraction=saturated,
    )
