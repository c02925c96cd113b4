"""Motion correction of one plane: two passes over the raw movie, one sampled for the template, one over every frame.

Rigid and piecewise together: each frame gets a displacement field that is smooth in space (see `alignment`). The corrected movie is
streamed to scratch disk while the summary images before and after are added up, so memory is bounded by the chunk.

Displacement is (y, x) in pixels, positive where content was moved to larger y and x.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.alignment import Aligner, Alignments, share
from sensorium_pipeline.imaging.corrected_movie import CorrectedMovie, CorrectedMovieWriter
from sensorium_pipeline.imaging.displacement_fields import block_centres, bridge, node_weights
from sensorium_pipeline.imaging.interpolation import PADDING, bin_frame, prepare_frame, round_frame, warp_frame
from sensorium_pipeline.imaging.motion_parameters import MotionParameters
from sensorium_pipeline.imaging.pooled_motion import PooledMotion, measure_pooled
from sensorium_pipeline.imaging.raster_phase import estimate_raster_phase
from sensorium_pipeline.imaging.spectrum import Spectrum
from sensorium_pipeline.imaging.summary_images import SummaryImages, coverage, crispness
from sensorium_pipeline.imaging.template import Template, build_template
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.movie import Movie

Float32 = NDArray[np.float32]
Frames = NDArray[Any]

SMALLEST_SIDE = 16
_CHUNK_BYTES = 64 * 2**20
_SAMPLE_BYTES = 256 * 2**20
_BINNED_FROM = 256  # px: larger frames are aligned at half resolution, which holds all that optics let through

FINE = ""
NOT_FINITE = "not finite"
BLANK = "blank"
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
    frames_per_second: float


def correct_motion(
    movie: Movie, corrected: Path, parameters: MotionParameters, *, bidirectional: bool, progress: ProgressCallback = silent
) -> tuple[MotionResult, CorrectedMovie]:
    """Find and undo the motion of one plane.

    Args:
        movie: the raw plane.
        corrected: where the corrected movie goes; it appears there when it is complete. Its type is that of the raw movie where that is an
            integer and its noise is well above the rounding (half the disk and half the reading of everything after), else float32.
        parameters: see there.
        bidirectional: whether odd lines were scanned backwards, so that the raster phase is looked for.
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
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return _Correction(movie, parameters, bidirectional, pool, threads, progress).run(corrected, started)


class _Correction:
    """One run over one movie: what the chunks share."""

    def __init__(
        self,
        movie: Movie,
        parameters: MotionParameters,
        bidirectional: bool,
        pool: ThreadPoolExecutor,
        threads: int,
        progress: ProgressCallback,
    ) -> None:
        self.movie, self.pool, self.threads, self.progress = movie, pool, threads, progress
        height, width = movie.height, movie.width
        self.factor = 2 if min(height, width) >= _BINNED_FROM else 1
        self.nodes = (max(round(height / parameters.block_size), 1) + 1, max(round(width / parameters.block_size), 1) + 1)
        self.chunk = min(int(np.clip(_CHUNK_BYTES // (height * width * 4), 16, 256)), movie.frames)
        sample = self._sample(parameters.template_frames)
        self.raster_phase = estimate_raster_phase(sample.mean(0, dtype=np.float64)) if bidirectional else 0.0
        reach = (
            max(int(parameters.largest_shift * (height // self.factor)), 1),
            max(int(parameters.largest_shift * (width // self.factor)), 1),
        )
        smoothness = max(height, width) / self.factor / 4
        self.template: Template = build_template(
            self._binned(sample),
            self.nodes,
            reach,
            smoothness,
            rigid=not parameters.non_rigid,
            pool=pool,
            threads=threads,
        )
        self.variance = None if parameters.non_rigid else 0.0
        fields = self.template.sample.fields * self.factor
        fine = self.template.sample.correlation >= self.template.lowest_correlation
        self.faint: PooledMotion | None = None
        if not self.template.clear:
            self.faint = measure_pooled(self._block, movie.frames, self.nodes, reach, smoothness, pool=pool, threads=threads)
            fields[:] = self.faint.shifts[self.sampled][:, None, None] * self.factor
            fine[:] = True
        if not fine.any():
            fine[:] = True
        mean, moved = SummaryImages((height, width), pool, threads), np.empty((16, height, width), np.float32)
        for start in range(0, len(sample), 16):
            part = slice(start, start + 16)
            self._warp(sample[part], fields[part], moved)
            mean.add(moved[: len(sample[part])], fine[part])
        self.image = mean.images()[0]
        self.full: Aligner | None = None
        if self.factor == 2 and self.faint is None:
            # Half the resolution finds the way; bilinear sampling there is off by up to a tenth of a pixel, which the last step makes good.
            few = np.flatnonzero(fine)[:: max(int(fine.sum()) // 32, 1)][:32]
            moved = np.empty((len(few), height, width), np.float32)
            self._warp(sample[few], fields[few], moved)
            moved -= moved.mean((1, 2), keepdims=True)
            moved -= (self.image - self.image.mean()) * self.template.sample.gain[few][:, None, None]
            reach_full = (reach[0] * 2, reach[1] * 2)
            self.full = Aligner(self.image, Spectrum.of(moved), int(fine.sum()), self.nodes, reach_full, max(height, width) / 4)
        self.dtype = _stored_type(sample)

    def _sample(self, count: int) -> Frames:
        """Frames evenly over the recording that are finite and not blank."""
        movie = self.movie
        count = min(count, movie.frames, max(32, _SAMPLE_BYTES // (movie.height * movie.width * 4)))
        kept, self.sampled = [], []
        for k, n in enumerate(np.linspace(0, movie.frames - 1, count).astype(int).tolist()):
            frame = _native(movie.read(n, n + 1))
            if _condition(frame)[0] == FINE:
                kept.append(frame[0])
                self.sampled.append(n)
            self.progress(Progress("template", k + 1, count))
        if not kept:
            raise InputError(
                "every sampled frame is blank or has values that are not finite",
                where="movie",
                advice="Check the channel and the plane: a recording without an image cannot be corrected.",
            )
        return np.stack(kept)

    def _block(self, start: int, stop: int) -> Float32 | None:
        """Mean of the usable frames of a span at the scale of alignment."""
        raw = _native(self.movie.read(start, stop))
        usable = _condition(raw) == FINE
        return self._binned(raw[usable]).mean(0) if usable.any() else None

    def _binned(self, raw: Frames, binned: Float32 | None = None) -> Float32:
        """Frames (n, y, x) at the scale of alignment, raster phase corrected, in the first part of `binned` where that is given."""
        height, width = self.movie.height, self.movie.width
        if binned is None:
            binned = np.empty((len(raw), height // self.factor, width // self.factor), np.float32)

        def work(span: range) -> None:
            padded = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32)
            for n in span:
                prepare_frame(raw[n], self.raster_phase, padded)
                bin_frame(padded, PADDING, self.factor, binned[n])

        share(work, len(raw), self.pool, self.threads)
        return binned[: len(raw)]

    def _warp(self, raw: Frames, fields: Float32, moved: Frames) -> None:
        """Undo the displacement of frames (n, y, x), into `moved`, float32 or rounded to int16."""
        height, width = self.movie.height, self.movie.width

        def work(span: range) -> None:
            padded, exact = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32), np.empty((height, width), np.float32)
            for n in span:
                prepare_frame(raw[n], self.raster_phase, padded)
                if moved.dtype == np.float32:
                    warp_frame(padded, fields[n], moved[n])
                else:
                    warp_frame(padded, fields[n], exact)
                    round_frame(exact, moved[n])

        share(work, len(raw), self.pool, self.threads)

    def _polish(self, raw: Frames, found: Alignments, fields: Float32, correlation: Float32, usable: NDArray[np.bool_]) -> None:
        """The last step at full resolution: fields (n, rows, columns, 2) and correlation (n,) in place."""
        full, (height, width) = self.full, (self.movie.height, self.movie.width)
        if full is None:
            return
        variance = found.deviation_variance * self.factor**2

        def work(span: range) -> None:
            padded = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32)
            exact = np.empty((height, width), np.float32)
            for n in span:
                if usable[n] and not found.at_bound[n]:
                    prepare_frame(raw[n], self.raster_phase, padded)
                    bin_frame(padded, PADDING, 1, exact)
                    correlation[n] = full.polish(exact, found.gain[n], fields[n], variance)

        share(work, len(raw), self.pool, self.threads)

    def run(self, path: Path, started: float) -> tuple[MotionResult, CorrectedMovie]:
        movie = self.movie
        shape = (movie.height, movie.width)
        fields = np.zeros((movie.frames, *self.nodes, 2), np.float32)
        measured = np.zeros(movie.frames, bool)
        correlation, reason = np.zeros(movie.frames, np.float32), np.full(movie.frames, FINE, dtype="<U40")
        before, after = SummaryImages(shape, self.pool, self.threads), SummaryImages(shape, self.pool, self.threads)
        last_good: Float32 | None = None
        # Kept from chunk to chunk: asking the system for fresh memory costs more than the arithmetic done in it.
        binned = np.empty((self.chunk, movie.height // self.factor, movie.width // self.factor), np.float32)
        with CorrectedMovieWriter(path, movie.frames, *shape, self.dtype) as writer:
            for start, raw in self._chunks():
                stop = start + len(raw)
                reason[start:stop] = _condition(raw)
                usable = reason[start:stop] == FINE
                seen = raw if usable.all() else np.where((reason[start:stop] == NOT_FINITE)[:, None, None], 0, raw)
                moved = writer.buffer(len(raw))
                if self.faint is None:
                    images = self._binned(seen, binned)
                    found = self.template.aligner.align(images, self.pool, self.threads, variance=self.variance, use=usable)
                    fields[start:stop], correlation[start:stop] = found.fields * self.factor, np.where(usable, found.correlation, 0)
                    # A peak no higher than those of noise says neither where a frame stands nor that it stands too far away.
                    certain = found.certainty >= self.template.aligner.least_certainty
                    reason[start:stop][usable & (found.correlation < self.template.lowest_correlation)] = UNLIKE
                    reason[start:stop][usable & certain & found.at_bound] = OUT_OF_RANGE
                    good = reason[start:stop] == FINE
                    measured[start:stop] = good & certain
                    self._polish(seen, found, fields[start:stop], correlation[start:stop], usable)
                    last_good = bridge(fields[start:stop], measured[start:stop], last_good)
                else:
                    good = usable
                    measured[start:stop] = self.faint.measured[start:stop] & usable
                    fields[start:stop] = self.faint.shifts[start:stop, None, None] * self.factor
                self._warp(seen, fields[start:stop], moved)
                if self.faint is not None:
                    correlation[start:stop] = np.where(usable, _correlations(moved, self.image), 0)
                for n in np.flatnonzero(reason[start:stop] == NOT_FINITE):
                    moved[n] = np.rint(self.image) if self.dtype.kind == "i" else self.image
                before.add(raw, good)
                after.add(moved, good)
                writer.write(moved)
                rate = stop / max(time.perf_counter() - started, 1e-9)
                self.progress(Progress("motion", stop, movie.frames, f"{rate:.0f} frames/s"))
        weights = np.outer(*(node_weights(count) for count in self.nodes))
        shifts = np.einsum("nijk,ij->nk", fields, weights).astype(np.float32)
        flagged = reason != FINE
        mean_before, max_before = before.images()
        mean_after, max_after = after.images()
        result = MotionResult(
            raster_phase=self.raster_phase,
            template=self.image,
            shifts=shifts,
            block_shifts=fields - shifts[:, None, None],
            block_centres=block_centres(shape, self.nodes),
            correlation=correlation,
            measured=measured,
            pooled=1 if self.faint is None else self.faint.pooled,
            flagged=flagged,
            reason=reason,
            mean_before=mean_before,
            mean_after=mean_after,
            max_before=max_before,
            max_after=max_after,
            coverage=coverage(shifts[~flagged] if not flagged.all() else shifts, *shape),
            crispness_before=crispness(mean_before),
            crispness_after=crispness(mean_after),
            frames_per_second=movie.frames / max(time.perf_counter() - started, 1e-9),
        )
        return result, writer.movie

    def _chunks(self) -> Iterator[tuple[int, Frames]]:
        """Chunks of raw frames with their first frame's number; the next one is read while the last one is worked on."""
        movie = self.movie
        length = self.chunk
        with ThreadPoolExecutor(1) as reader:

            def read(start: int) -> Frames:
                return _native(movie.read(start, min(start + length, movie.frames)))

            ahead = reader.submit(read, 0)
            for start in range(0, movie.frames, length):
                raw = ahead.result()
                if start + length < movie.frames:
                    ahead = reader.submit(read, start + length)
                yield start, raw


def _native(frames: Frames) -> Frames:
    """Frames as int16 or float32, the two types that the compiled loops are made for."""
    if frames.dtype == np.int16 and frames.dtype.isnative:
        return np.ascontiguousarray(frames)
    return np.ascontiguousarray(frames, dtype=np.float32)


def _condition(frames: Frames) -> NDArray[np.str_]:
    """What is wrong with frames (n, y, x) before any comparison: not finite, blank or nothing."""
    reason = np.full(len(frames), FINE, dtype="<U40")
    flat = frames.reshape(len(frames), -1)
    low, high = flat.min(1), flat.max(1)
    reason[low == high] = BLANK
    reason[~(np.isfinite(low) & np.isfinite(high))] = NOT_FINITE
    return reason


def _correlations(frames: Frames, image: Float32) -> Float32:
    """Pearson correlation of frames (n, y, x) with an image, one at a time."""
    centred = image - image.mean()
    length = float(np.linalg.norm(centred))
    result = np.zeros(len(frames), np.float32)
    for n, frame in enumerate(frames):
        rest = frame - frame.mean(dtype=np.float32)
        result[n] = float(np.vdot(rest, centred)) / max(length * float(np.linalg.norm(rest)), 1e-30)
    return result


def _stored_type(sample: Frames) -> np.dtype[Any]:
    """int16 where the movie came as such and its noise hides the rounding (at most 2 % of the noise variance), else float32."""
    if sample.dtype != np.int16:
        return np.dtype("<f4")
    rough = np.diff(sample[: min(len(sample), 20)].astype(np.float32), axis=0) if len(sample) > 1 else np.zeros(1)
    return np.dtype("<i2") if rough.std() / np.sqrt(2) >= 2.0 else np.dtype("<f4")
