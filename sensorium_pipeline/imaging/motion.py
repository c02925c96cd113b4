"""Motion correction of one plane: two passes over the raw movie, one sampled for the template, one over every frame.

Rigid and piecewise together: each frame gets a displacement field whose non-rigid part is smooth in space (see `alignment`) and as smooth
in time as the recording shows it to be (see `displacement_smoothing`). Frames wait until those after them are measured too; then the
corrected ones are streamed to scratch disk while the summary images before and after are added up, so memory is bounded by the chunk.

Displacement is (y, x) in pixels, positive where content was moved to larger y and x.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.alignment import Aligner, begin, share
from sensorium_pipeline.imaging.corrected_movie import CorrectedMovie, CorrectedMovieWriter
from sensorium_pipeline.imaging.depth_drift import DepthDrift, DepthDriftRecorder
from sensorium_pipeline.imaging.displaced_frames import PADDING, correct_frame, prepare_frame, warp_frame
from sensorium_pipeline.imaging.displacement_fields import block_centres, mean_over_field
from sensorium_pipeline.imaging.displacement_smoothing import REACH, DisplacementSmoother
from sensorium_pipeline.imaging.frame_condition import FINE, NOT_FINITE, brightest, condition, light
from sensorium_pipeline.imaging.frame_sums import bin_frame, pearson
from sensorium_pipeline.imaging.motion_parameters import MotionParameters
from sensorium_pipeline.imaging.pooled_motion import PooledMotion, measure_pooled
from sensorium_pipeline.imaging.raster_phase import certain_raster_phase, estimate_raster_phase
from sensorium_pipeline.imaging.raw_frames import chunks, native, stored_type
from sensorium_pipeline.imaging.spectrum import Spectrum
from sensorium_pipeline.imaging.summary_images import SummaryImages, coverage, crispness
from sensorium_pipeline.imaging.template import Template, build_template
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

Float32 = NDArray[np.float32]
Frames = NDArray[Any]

SMALLEST_SIDE = 16
_CHUNK_BYTES = 32 * 2**20
_SAMPLE_BYTES = 256 * 2**20
_BINNED_FROM = 256  # px: larger frames are aligned at half resolution, which holds all that optics let through

_SEEN = 0.95  # part of the frames that saw a pixel

OUT_OF_RANGE = "shift at the end of the allowed range"
UNLIKE = "unlike the template"


@dataclass(frozen=True)
class MotionResult:
    """What motion correction found out.

    Attributes:
        raster_phase: px by which odd lines stood to the right of even ones; 0.0 in scans of one direction.
        template: (y, x) float32, mean of the sampled frames without motion.
        shifts: (frames, 2) float32 px, y and x: the mean displacement over the field.
        block_shifts: (frames, rows, columns, 2) float32 px: what is left of the displacement at the nodes, less the shift of the frame.
        block_centres: (rows, columns, 2) float32 px: where the nodes are.
        correlation: (frames,) float32, Pearson, of the corrected frame with the template.
        measured: (frames,) bool, frames whose content stands out of noise far enough to tell where it stands. The displacement of others is
            interpolated in time, and zero where no frame can be told; noise does not make a frame flagged.
        pooled: frames that were averaged to measure one displacement; 0 where even many of them together show too little.
        flagged: (frames,) bool; the displacement of such frames is interpolated from their neighbours, and where pixels are not finite the
            corrected frame is the template.
        reason: (frames,) str, why a frame is flagged, empty where it is not.
        mean_before, mean_after: (y, x) float32, over frames that are not flagged; likewise max_before, max_after.
        coverage: (y, x) float32, fraction of frames in which the pixel lay inside the field; elsewhere the edge is repeated.
        crispness_before, crispness_after: norm of the gradient of the mean image (Pnevmatikakis and Giovannucci 2017).
        depth_drift: whether the recording stays in its plane.
        frames_per_second: of the whole correction on this machine, reading and writing included.
    """

    raster_phase: float
    template: Float32
    shifts: Float32
    block_shifts: Float32
    block_centres: Float32
    correlation: Float32
    measured: NDArray[np.bool_]
    pooled: int
    flagged: NDArray[np.bool_]
    reason: NDArray[np.str_]
    mean_before: Float32
    mean_after: Float32
    max_before: Float32
    max_after: Float32
    coverage: Float32
    crispness_before: float
    crispness_after: float
    depth_drift: DepthDrift
    frames_per_second: float


def correct_motion(
    movie: Movie, corrected: Path, parameters: MotionParameters, *, bidirectional: bool | None, progress: ProgressCallback = silent
) -> tuple[MotionResult, CorrectedMovie]:
    """Find and undo the motion of one plane.

    Args:
        movie: the raw plane.
        corrected: where the corrected movie goes; it appears there when it is complete. Its type is that of the raw movie where that is an
            integer and its noise is well above the rounding (half the disk and half the reading of everything after), else float32.
        parameters: see there.
        bidirectional: whether odd lines were scanned backwards, so that the raster phase is looked for; None where that is not known.
        progress: told after every chunk.

    Returns:
        The findings and the corrected movie.

    Raises:
        InputError: a movie of one frame, of frames below 16 x 16, or without a single frame that is finite and not blank.
        PlatformError: the scratch disk is full.
    """
    started = time.perf_counter()
    if movie.height < SMALLEST_SIDE or movie.width < SMALLEST_SIDE:
        raise InputError(
            f"frames of {movie.height} x {movie.width} px are too small", where="movie", advice=f"At least {SMALLEST_SIDE} px a side."
        )
    if movie.frames < 2:
        raise InputError(f"a movie of {movie.frames} frame(s) has no motion to correct", where="movie", advice="Give the whole recording.")
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        return _Correction(movie, parameters, bidirectional, pool, threads, progress).run(corrected, started)


class _Correction:
    """One run over one movie: what the chunks share."""

    def __init__(
        self,
        movie: Movie,
        parameters: MotionParameters,
        bidirectional: bool | None,
        pool: ThreadPoolExecutor,
        threads: int,
        progress: ProgressCallback,
    ) -> None:
        self.movie, self.pool, self.threads, self.progress = movie, pool, threads, progress
        height, width = movie.height, movie.width
        self.factor = 2 if min(height, width) >= _BINNED_FROM else 1
        self.nodes = (max(round(height / parameters.block_size), 1) + 1, max(round(width / parameters.block_size), 1) + 1)
        self.chunk = min(int(np.clip(_CHUNK_BYTES // (height * width * 4), 8, 64)), movie.frames)
        self.brightest = np.inf
        sample = self._sample(parameters.template_frames)
        find_phase = certain_raster_phase if bidirectional is None else estimate_raster_phase
        self.raster_phase = 0.0 if bidirectional is False else find_phase(sample.mean(0, dtype=np.float64))
        reach = (
            max(int(parameters.largest_shift * (height // self.factor)), 1),
            max(int(parameters.largest_shift * (width // self.factor)), 1),
        )
        smoothness = max(height, width) / self.factor / 4
        self.rigid = not parameters.non_rigid
        self.template: Template = build_template(
            self._binned(sample),
            self.nodes,
            reach,
            smoothness,
            rigid=self.rigid,
            pool=pool,
            threads=threads,
        )
        fields = self.template.sample.fields * self.factor
        fine = self.template.sample.correlation >= self.template.lowest_correlation
        self.faint: PooledMotion | None = None
        if not self.template.clear:
            self.faint = measure_pooled(
                self._block, movie.frames, self.nodes, reach, smoothness, rigid=self.rigid, pool=pool, threads=threads
            )
            fields[:] = self.faint.fields[self.sampled] * self.factor
            fine[:] = True
        if not fine.any():
            fine[:] = True
        mean, moved = SummaryImages((height, width), pool, threads), np.empty((16, height, width), np.float32)
        for start in range(0, len(sample), 16):
            part = slice(start, start + 16)
            self._warp(sample[part], fields[part], moved)
            mean.add(moved[: len(sample[part])], fine[part])
        self.image = mean.images()[0]
        self.centred = self.image - self.image.mean()
        self.measurer = self.template.aligner
        if self.factor == 2 and self.faint is None:
            # Half the resolution finds the way; bilinear sampling there is off by up to a tenth of a pixel, so all pixels give evidence.
            few = np.flatnonzero(fine)[:: max(int(fine.sum()) // 32, 1)][:32]
            moved = np.empty((len(few), height, width), np.float32)
            self._warp(sample[few], fields[few], moved)
            moved -= moved.mean((1, 2), keepdims=True)
            moved -= self.centred * self.template.sample.gain[few][:, None, None]
            reach_full = (reach[0] * 2, reach[1] * 2)
            self.measurer = Aligner(self.image, Spectrum.of(moved, pool), int(fine.sum()), self.nodes, reach_full, smoothness * 2)
        self.dtype = stored_type(sample)
        self.smoother = DisplacementSmoother(self.measurer.modes, self.nodes, movie.frames, rigid=self.rigid)
        self.fields = np.zeros((movie.frames, *self.nodes, 2), np.float32)
        self.measured = np.zeros(movie.frames, bool)
        self.correlation = np.zeros(movie.frames, np.float32)
        self.reason = np.full(movie.frames, FINE, dtype="<U40")

    def _sample(self, count: int) -> Frames:
        """Frames evenly over the recording that are finite and not blank."""
        movie = self.movie
        count = min(count, movie.frames, max(32, _SAMPLE_BYTES // (movie.height * movie.width * 4)))
        numbers = np.linspace(0, movie.frames - 1, count).astype(int).tolist()
        sample = np.empty((count, movie.height, movie.width), native(movie.read(0, 1)).dtype)

        def read(n: int) -> str:
            sample[n] = movie.read(numbers[n], numbers[n] + 1)[0]
            return condition(sample[n])

        good = np.zeros(count, bool)
        for n, found in enumerate(self.pool.map(read, range(count))):
            good[n] = found == FINE
            self.progress(Progress("template", n + 1, count))
        if good.any():
            lights = np.array([light(frame) for frame in sample])
            self.brightest = brightest(lights[good], sample[good])
            good &= lights <= self.brightest
        self.sampled = np.array(numbers)[good].tolist()
        if not good.any():
            raise InputError(
                "every sampled frame is blank or has values that are not finite",
                where="movie",
                advice="Check the channel and the plane: a recording without an image cannot be corrected.",
            )
        return sample if good.all() else sample[good]

    def _block(self, start: int, stop: int) -> Float32 | None:
        """Mean of the usable frames of a span at the scale of alignment."""
        raw = native(self.movie.read(start, stop))
        usable = np.array([condition(frame, self.brightest) == FINE for frame in raw])
        return self._binned(raw[usable]).mean(0) if usable.any() else None

    def _binned(self, raw: Frames) -> Float32:
        """Frames (n, y, x) at the scale of alignment, raster phase corrected."""
        height, width = self.movie.height, self.movie.width
        binned = np.empty((len(raw), height // self.factor, width // self.factor), np.float32)

        def work(span: range) -> None:
            padded = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32)
            for n in span:
                prepare_frame(raw[n], self.raster_phase, padded)
                bin_frame(padded, PADDING, self.factor, binned[n])

        share(work, len(raw), self.pool, self.threads)
        return binned

    def _warp(self, raw: Frames, fields: Float32, moved: Float32) -> None:
        """Undo the displacement of frames (n, y, x), into `moved`."""
        height, width = self.movie.height, self.movie.width

        def work(span: range) -> None:
            padded = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32)
            for n in span:
                prepare_frame(raw[n], self.raster_phase, padded)
                warp_frame(padded, fields[n], moved[n])

        share(work, len(raw), self.pool, self.threads)

    def _measure(self, start: int, raw: Frames) -> Callable[[], None]:
        """Begin to measure raw frames and to say which of them show nothing; what is returned waits for it and takes the evidence in."""
        height, width, count = self.movie.height, self.movie.width, len(raw)
        reason = self.reason[start : start + count]
        aligner, variance = self.template.aligner, self.template.sample.deviation_variance
        evidence, known = np.zeros((count, 2 * self.nodes[0] * self.nodes[1])), np.zeros(count, bool)

        def work(span: range) -> None:
            padded = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32)
            small = np.empty((height // self.factor, width // self.factor), np.float32)
            half = np.empty((small.shape[0] // 2, small.shape[1] // 2), np.float32)
            for n in span:
                reason[n] = condition(raw[n], self.brightest)
                if reason[n] != FINE or self.faint is not None:
                    continue
                prepare_frame(raw[n], self.raster_phase, padded)
                bin_frame(padded, PADDING, self.factor, small)
                found = aligner.locate(small, half, variance, evidence[n])
                # A peak no higher than those of noise says neither where a frame stands nor that it stands too far away.
                certain = found.peak.certainty >= aligner.least_certainty
                if certain and found.peak.at_bound:
                    reason[n] = OUT_OF_RANGE
                elif found.correlation < self.template.lowest_correlation:
                    reason[n] = UNLIKE
                elif certain:
                    known[n] = True
                    field = found.field * np.float32(self.factor)
                    self.measurer.measure(padded, found.offset, found.peak.gain, field, evidence[n], margin=PADDING)

        wait = begin(work, count, self.pool, self.threads)

        def finish() -> None:
            wait()
            self.measured[start : start + count] = known
            self.smoother.add(evidence, known)

        return finish

    def _correct(self, start: int, raw: Frames, moved: Frames) -> Callable[[], None]:
        """Begin to undo the displacement of raw frames, into `moved`; what is returned waits for it."""
        height, width, stop = self.movie.height, self.movie.width, start + len(raw)
        if self.faint is None:
            self.fields[start:stop] = self.smoother.fields(start, stop)
        else:
            self.measured[start:stop] = self.faint.measured[start:stop] & (self.reason[start:stop] == FINE)
            self.fields[start:stop] = self.faint.fields[start:stop] * self.factor

        def work(span: range) -> None:
            padded, sums = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32), np.empty(6)
            for n in span:
                if self.reason[start + n] == NOT_FINITE:
                    moved[n] = np.rint(self.image) if self.dtype.kind == "i" else self.image
                    continue
                prepare_frame(raw[n], self.raster_phase, padded)
                offset = padded[::16, ::16].mean()
                correct_frame(padded, self.fields[start + n], offset, self.centred, self.dtype.kind == "i", moved[n], sums)
                self.correlation[start + n] = pearson(sums)

        return begin(work, len(raw), self.pool, self.threads)

    def run(self, path: Path, started: float) -> tuple[MotionResult, CorrectedMovie]:
        movie = self.movie
        shape = (movie.height, movie.width)
        before, after = SummaryImages(shape, self.pool, self.threads), SummaryImages(shape, self.pool, self.threads)
        drift = DepthDriftRecorder(movie.frames, shape)
        waiting: deque[tuple[int, Frames]] = deque()
        with CorrectedMovieWriter(path, movie.frames, *shape, self.dtype) as writer:

            def correct_next() -> Callable[[], None]:
                first, raw = waiting.popleft()
                moved, done = writer.buffer(len(raw)), first + len(raw)
                wait = self._correct(first, raw, moved)

                def finish() -> None:
                    wait()
                    good = self.reason[first:done] == FINE
                    before.add(raw, good)
                    after.add(moved, good)
                    drift.note(after, done)
                    writer.write(moved)
                    rate = done / max(time.perf_counter() - started, 1e-9)
                    self.progress(Progress("motion", done, movie.frames, f"{rate:.0f} frames/s"))

                return finish

            # While one chunk is corrected the next is measured, so that the threads need not wait for each other.
            for start, chunk in chunks(movie, self.chunk):
                known = waiting and waiting[0][0] + len(waiting[0][1]) + REACH <= start
                finish_correction = correct_next() if known else None
                finish_measuring = self._measure(start, chunk)
                if finish_correction:
                    finish_correction()
                finish_measuring()
                waiting.append((start, chunk))
            while waiting:
                correct_next()()
        shifts = mean_over_field(self.fields)
        flagged = self.reason != FINE
        (mean_before, max_before), (mean_after, max_after) = before.images(), after.images()
        covered = coverage(shifts[~flagged] if not flagged.all() else shifts, *shape, self.raster_phase)
        pooled = 1 if self.faint is None else self.faint.pooled
        result = MotionResult(
            raster_phase=self.raster_phase,
            template=self.image,
            shifts=shifts,
            block_shifts=self.fields - shifts[:, None, None],
            block_centres=block_centres(shape, self.nodes),
            correlation=self.correlation,
            measured=self.measured,
            pooled=pooled,
            flagged=flagged,
            reason=self.reason,
            mean_before=mean_before,
            mean_after=mean_after,
            max_before=max_before,
            max_after=max_after,
            coverage=covered,
            crispness_before=crispness(mean_before),
            crispness_after=crispness(mean_after),
            depth_drift=drift.result(covered >= _SEEN, known=pooled > 0),
            frames_per_second=movie.frames / max(time.perf_counter() - started, 1e-9),
        )
        return result, writer.movie
