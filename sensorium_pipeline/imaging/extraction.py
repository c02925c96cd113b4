"""One plane of a recording from raw frames to activity: motion, cells, traces, deconvolution, out of core and stage by stage."""

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.imaging.cells import Cells
from sensorium_pipeline.imaging.corrected_movie import CorrectedMovie
from sensorium_pipeline.imaging.deconvolution import FASTEST, SLOWEST, Deconvolution, deconvolve
from sensorium_pipeline.imaging.measurements import measure_light, measure_residual_motion
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.imaging.plane_dataset import assemble, assemble_motion, stage_dataset
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction, PlaneMotion
from sensorium_pipeline.imaging.quality import MotionMetrics, PlaneMetrics
from sensorium_pipeline.imaging.scratch import held_folder
from sensorium_pipeline.imaging.segmenters import open_segmenter
from sensorium_pipeline.imaging.stage_results import StageResults
from sensorium_pipeline.imaging.traces import extract_traces
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

# A pixel belongs to the plane if so large a part of the frames saw it.
LEAST_COVERAGE = 0.99

FINEST, COARSEST = 0.1, 100.0  # um a pixel: beyond lies no image of cells but a mistaken unit

CORRECTED = "corrected"

UNITS = {"template": "frames", "motion": "frames", "binning": "frames", "cells": "blocks", "traces": "frames"}
"""What the reports of a stage count."""


def extract_plane(
    movie: Movie,
    *,
    frame_rate: float,
    pixel_size: float | None = None,
    bidirectional: bool | None = None,
    parameters: ImagingParameters = ImagingParameters(),
    scratch: Path,
    finished: StageResults | None = None,
    name: str = "movie",
    progress: ProgressCallback = silent,
    after_motion: Callable[[PlaneMotion], None] | None = None,
) -> PlaneExtraction:
    """Extract one plane; with `finished`, go on from the stages that are there and put away those that are not.

    Args:
        movie: raw frames of the plane.
        frame_rate: of the plane (the volume rate), Hz.
        pixel_size: um; left out where it is not known, and then cells of any usual size in pixels are looked for.
        bidirectional: whether odd lines were scanned backwards; None where that is not known.
        parameters: of every step.
        scratch: folder on a disk with room for twice the plane, for nothing but extractions. With `finished`, the corrected movie of a
            run that was killed or found the disk full stays there, for the next run; otherwise nothing does.
        finished: where the results of the stages are kept.
        name: of the movie, for errors.
        progress: told after every chunk of every stage.
        after_motion: called once, as soon as that much is known of the plane, on a thread beside that of the stages that follow.

    Raises:
        InputError: the movie is too small, too short or shows nothing, the frame rate is not a positive number, or the segmenter that
            was chosen cannot be run here.
        PlatformError: the scratch disk is full or cannot be written.
    """
    check_scale(frame_rate, pixel_size)
    folder_name = f"plane-{os.getpid()}-{id(movie)}" if finished is None else finished.keys.motion.rsplit("/", 1)[1][:32]
    try:
        with held_folder(scratch, folder_name, progress) as folder:
            for leftover in folder.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                elif leftover.name != CORRECTED:
                    leftover.unlink()
            with ThreadPoolExecutor(1) as beside:
                extraction = _Extraction(
                    movie, float(frame_rate), pixel_size, bidirectional, parameters, folder, finished, progress, after_motion, beside
                )
                return extraction.run()
    except InputError as error:
        if error.where != "movie":
            raise
        raise type(error)(error.problem, where=name, advice=error.advice) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PlatformError(
                "the scratch disk is full", where=scratch, advice="Free room for the plane twice, then repeat the command."
            ) from error
        raise PlatformError(
            f"scratch space failed ({error})", where=scratch, advice="Give a folder with room for the plane twice."
        ) from error


def check_scale(frame_rate: float, pixel_size: float | None) -> None:
    """Raise `InputError` for a frame rate or pixel size that no plane can have."""
    if not SLOWEST <= frame_rate <= FASTEST:
        advice = f"Give frames of a plane per second, a number from {SLOWEST:g} to {FASTEST:g}."
        raise InputError(f"the frame rate is {frame_rate}", where="frame_rate", advice=advice)
    if pixel_size is not None and not FINEST <= pixel_size <= COARSEST:
        advice = f"Give micrometres, a number from {FINEST:g} to {COARSEST:g}, or leave it out."
        raise InputError(f"the pixel size is {pixel_size}", where="pixel_size", advice=advice)


@dataclass(frozen=True)
class _Activity:
    """The result of the last stage; see `PlaneExtraction`."""

    activity: NDArray[np.float32]
    denoised: NDArray[np.float32]
    noise: NDArray[np.float32]
    time_constants: NDArray[np.float32]
    snr: NDArray[np.float32]


@dataclass(frozen=True)
class _Extraction:
    """One run over one plane: the stages, each a dataset that is found or made."""

    movie: Movie
    frame_rate: float
    pixel_size: float | None
    bidirectional: bool | None
    parameters: ImagingParameters
    folder: Path
    finished: StageResults | None
    show: ProgressCallback
    after_motion: Callable[[PlaneMotion], None] | None
    beside: ThreadPoolExecutor
    """One thread for what no stage waits for, in the order in which it came: putting results away above all."""
    kept: list[Future[None]] = field(default_factory=list)

    def progress(self, step: Progress) -> None:
        """Pass a report on, and say what it counts."""
        self.show(replace(step, unit=UNITS.get(step.stage, step.unit)))

    def run(self) -> PlaneExtraction:
        motion, found, traces, activity = (self._find(stage) for stage in ("motion", "cells", "traces", "activity"))
        if found is None:
            open_segmenter(self.parameters.segmenter)  # what it lacks is said before hours of motion correction
        if motion is None or found is None or traces is None:
            corrected = None if motion is None else self._corrected(motion)
            if motion is None or corrected is None:
                motion, corrected = self._motion()
                known = self.beside.submit(self._finish_motion, motion, corrected)
            else:
                known = self.beside.submit(self._tell, motion)
            found = self._cells(corrected, motion) if found is None else found
            traces = self._traces(corrected, found, motion) if traces is None else traces
            # Behind everything that reads it: a large file takes a moment to remove.
            self.kept.append(self.beside.submit(corrected.path.unlink, missing_ok=True))
        else:
            known = self.beside.submit(self._tell, motion)
        if activity is None:
            activity = self._activity(traces)
        stages = (known.result(), found, traces, activity)
        self._check_kept(wait=True)
        return assemble(stages, metrics=_metrics(self.movie, *stages), frame_rate=self.frame_rate, pixel_size=self.pixel_size)

    def _find(self, stage: str) -> xr.Dataset | None:
        return None if self.finished is None else self.finished.find(stage)

    def _keep(self, stage: str, result: xr.Dataset) -> xr.Dataset:
        """Have the result of a stage put away while the next one begins."""
        self._check_kept(wait=False)
        if self.finished is not None:
            self.kept.append(self.beside.submit(self.finished.keep, stage, result))
        return result

    def _check_kept(self, *, wait: bool) -> None:
        """Raise what went wrong while results were put away."""
        for task in self.kept:
            if wait or task.done():
                task.result()

    def _corrected(self, motion: xr.Dataset) -> CorrectedMovie | None:
        """The corrected movie that an earlier run left here, if it did; under its name it is complete."""
        path, dtype = self.folder / CORRECTED, np.dtype(str(motion.attrs["corrected_type"]))
        size = self.movie.frames * self.movie.height * self.movie.width * dtype.itemsize
        if not path.is_file() or path.stat().st_size != size:
            return None
        return CorrectedMovie(path, self.movie.frames, self.movie.height, self.movie.width, dtype)

    def _motion(self) -> tuple[xr.Dataset, CorrectedMovie]:
        from sensorium_pipeline.imaging.motion import correct_motion  # loads compiled code, which the other stages do not need

        with ThreadPoolExecutor(1) as pool:
            light = pool.submit(measure_light, self.movie)  # meanwhile
            result, corrected = correct_motion(
                self.movie, self.folder / CORRECTED, self.parameters.motion, bidirectional=self.bidirectional, progress=self.progress
            )
            dataset = stage_dataset(
                result, rename={"correlation": "template_correlation", "reason": "flag_reason"}, leave_out=("frames_per_second",)
            )
            dataset = dataset.merge(stage_dataset(light.result()), combine_attrs="no_conflicts")
        dataset.attrs["corrected_type"] = corrected.dtype.str
        return dataset, corrected

    def _finish_motion(self, motion: xr.Dataset, corrected: CorrectedMovie) -> xr.Dataset:
        """The same with what is measured on the corrected movie, put away; cells can be looked for meanwhile."""
        residual = measure_residual_motion(corrected, motion["flagged"].values, motion["coverage"].values >= LEAST_COVERAGE)
        motion = motion.merge(stage_dataset(residual), combine_attrs="no_conflicts")
        if self.finished is not None:
            self.finished.keep("motion", motion)
        return self._tell(motion)

    def _tell(self, motion: xr.Dataset) -> xr.Dataset:
        if self.after_motion is not None:
            metrics = _motion_metrics(self.movie, motion)
            self.after_motion(assemble_motion(motion, metrics=metrics, frame_rate=self.frame_rate, pixel_size=self.pixel_size))
        return motion

    def _cells(self, corrected: CorrectedMovie, motion: xr.Dataset) -> xr.Dataset:
        segment = open_segmenter(self.parameters.segmenter)
        cells = segment(
            corrected,
            frame_rate=self.frame_rate,
            flagged=motion["flagged"].values,
            inside=motion["coverage"].values >= LEAST_COVERAGE,
            parameters=self.parameters.cells,
            scratch=self.folder,
            pixel_size=self.pixel_size,
            progress=self.progress,
            threads=len(os.sched_getaffinity(0)),
        )
        return self._keep("cells", stage_dataset(cells, rename=FOOTPRINTS))

    def _traces(self, corrected: CorrectedMovie, cells: xr.Dataset, motion: xr.Dataset) -> xr.Dataset:
        traces = extract_traces(
            corrected,
            _cells_of(cells),
            frame_rate=self.frame_rate,
            flagged=motion["flagged"].values,
            parameters=self.parameters.traces,
            progress=self.progress,
            threads=len(os.sched_getaffinity(0)),
        )
        return self._keep("traces", stage_dataset(traces))

    def _activity(self, traces: xr.Dataset) -> xr.Dataset:
        dff = traces["dff"].values
        self.progress(Progress("activity", 0, len(dff), unit="neurons"))
        found = deconvolve(dff, self.frame_rate, self.parameters.deconvolution)
        self.progress(Progress("activity", len(dff), len(dff), unit="neurons"))
        snr = _signal_to_noise(found, self.frame_rate)
        return self._keep("activity", stage_dataset(_Activity(found.activity, found.denoised, found.noise, found.time_constants, snr)))


FOOTPRINTS = {"neuron": "footprint_neuron", "pixel": "footprint_pixel", "weight": "footprint_weight"}


def _cells_of(dataset: xr.Dataset) -> Cells:
    """The cells that `stage_dataset` was given."""
    values: dict[str, Any] = {}
    for name in Cells.__dataclass_fields__:
        stored = FOOTPRINTS.get(name, name)
        values[name] = dataset[stored].values if stored in dataset.variables else dataset.attrs[stored]
    values["reason"] = tuple(values["reason"])
    return Cells(**values)


def _signal_to_noise(activity: Deconvolution, frame_rate: float) -> NDArray[np.float32]:
    """See `PlaneExtraction.snr`; zero for a trace without a sample or without noise."""
    signal = np.zeros(len(activity.denoised))
    for neuron, denoised in enumerate(activity.denoised):
        known = denoised[~np.isnan(denoised)]
        signal[neuron] = known.std(dtype=np.float64) if len(known) else 0
    noise = activity.noise.astype(np.float64) / np.sqrt(frame_rate)
    return np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0).astype(np.float32)


def _motion_metrics(movie: Movie, motion: xr.Dataset) -> MotionMetrics:
    flagged = motion["flagged"].values
    shifts = motion["shifts"].values[~flagged].astype(np.float64)
    largest = float(np.sqrt(np.sum(shifts**2, axis=1)).max(initial=0.0))
    return MotionMetrics(
        frames=movie.frames,
        flagged_fraction=float(np.mean(flagged)),
        template_correlation=_median(motion["template_correlation"].values[~flagged]),
        motion_measured_fraction=float(np.mean(motion["measured"].values)),
        motion_pooled=motion.attrs["pooled"],
        shift_rms=float(np.sqrt(np.mean(np.sum((shifts - shifts.mean(0)) ** 2, axis=1)))) if len(shifts) else 0.0,
        largest_shift=largest,
        largest_shift_share=largest / min(movie.height, movie.width),
        # Unknown where the recording is too short or too noisy to tell.
        depth_drift=float(np.clip(motion.attrs.get("depth_drift_loss", 0.0), 0, 1)),
        **{name: float(motion.attrs[name]) for name in MEASURED_WITH_MOTION},
    )


def _metrics(movie: Movie, motion: xr.Dataset, cells: xr.Dataset, traces: xr.Dataset, activity: xr.Dataset) -> PlaneMetrics:
    kept = cells["kept"].values
    return PlaneMetrics(
        **_motion_metrics(movie, motion).model_dump(),
        cells=len(kept),
        kept_cells=int(kept.sum()),
        median_snr=_median(activity["snr"].values[kept]),
        median_noise=_median(activity["noise"].values[kept]),
        median_neuropil_coefficient=_median(traces["neuropil_coefficient"].values[kept]),
    )


def _median(values: NDArray[np.float32]) -> float:
    return float(np.nan_to_num(np.median(values))) if len(values) else 0.0


MEASURED_WITH_MOTION = (
    "raster_phase",
    "crispness_before",
    "crispness_after",
    "residual_motion",
    "bleaching",
    "photons",
    "gain",
    "saturated_fraction",
)
