"""The template of a recording: the mean of frames sampled all over it, moved to where most of them stand."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.alignment import Aligner, Alignments, lowest_plausible, share
from sensorium_pipeline.imaging.displaced_frames import PADDING, prepare_frame, warp_frame
from sensorium_pipeline.imaging.frame_sums import add_windows, bin_frame
from sensorium_pipeline.imaging.spectrum import Spectrum

Float32 = NDArray[np.float32]

_SEED_FRAMES = 20
_ROUNDS = 2
_RESIDUAL_FRAMES = 100
_BATCH = 16  # frames that are moved before they are added up


@dataclass(frozen=True)
class Template:
    """The template at the scale of estimation.

    Attributes:
        mean: (y, x), of the aligned sample.
        aligner: what frames are aligned with.
        sample: how the sampled frames themselves lie.
        lowest_correlation: below it, a frame does not show what the template shows.
    """

    mean: Float32
    aligner: Aligner
    sample: Alignments
    lowest_correlation: float

    @property
    def clear(self) -> bool:
        """Whether at least half of the sampled frames stand out of noise by more than their own part of the template can feign.

        Five times that part: frames were also laid where the noise of others, averaged before, was like their own.
        """
        own, least = self.aligner.own_certainty, self.aligner.least_certainty
        return not self.aligner.rests_on_few_pixels and bool(np.mean(self.sample.certainty >= 5 * own + least) >= 0.5)


def build_template(
    frames: Float32,
    nodes: tuple[int, int],
    largest_shift: tuple[int, int],
    smoothness: float,
    *,
    rigid: bool,
    pool: ThreadPoolExecutor,
    threads: int,
    start: Float32 | None = None,
) -> Template:
    """Template of sampled frames (n, y, x), all finite and none of them blank.

    It starts from the frames that are most alike, or from `start` (y, x). Then, in rounds, all frames are aligned with it and averaged,
    and what they differ by from it gives the spectrum of the noise for the next round; from the second round on, along displacement fields.
    """
    mean = _most_alike(frames) if start is None else start
    noise = Spectrum.white(frames[: min(len(frames), 50)], pool)
    averaged = int(np.clip(len(frames) // 15, 1, _SEED_FRAMES)) if start is None else len(frames)
    for k in range(_ROUNDS + 1):
        aligner = Aligner(mean, noise, averaged, nodes, largest_shift, smoothness)
        alignments = aligner.align(frames, pool, threads, variance=0.0 if rigid or k == 0 else None)
        lowest = lowest_plausible(alignments.correlation, mean.size)
        if k == _ROUNDS:
            break
        good = (alignments.correlation >= lowest) & ~alignments.at_bound
        if not good.any():
            good[:] = True
        mean, noise = _average(frames, alignments, good, pool, threads)
        averaged = int(good.sum())
    return Template(mean, aligner, alignments, lowest)


def _most_alike(frames: Float32) -> Float32:
    """Mean of the frames that correlate best with the frame that has the most good friends (shift included in the comparison)."""
    height, width = frames.shape[1] // 4, frames.shape[2] // 4
    small = np.empty((len(frames), height, width), np.float32)
    half = np.empty((frames.shape[1] // 2, frames.shape[2] // 2), np.float32)
    for frame, target in zip(frames, small, strict=True):
        bin_frame(frame, 0, 2, half)
        bin_frame(half, 0, 2, target)
    flat = small.reshape(len(frames), -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    alike = flat @ flat.T
    friends = int(np.clip(len(frames) // 15, 1, _SEED_FRAMES))
    best = np.sort(alike, axis=1)[:, -friends:].mean(1)
    chosen = np.argsort(-alike[int(np.argmax(best))], kind="stable")[:friends]
    return frames[np.sort(chosen)].mean(0)


def _average(
    frames: Float32, alignments: Alignments, good: NDArray[np.bool_], pool: ThreadPoolExecutor, threads: int
) -> tuple[Float32, Spectrum]:
    """Mean of the good frames moved back, over the pixels inside each, and the spectrum of what they differ by from it."""
    chosen = np.flatnonzero(good)
    height, width = frames.shape[1:]
    batch = np.empty((_BATCH, height, width), np.float32)
    residual = np.empty((min(len(chosen), _RESIDUAL_FRAMES), height, width), np.float32)
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for start in range(0, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]

        def move(span: range, part: NDArray[np.int64] = part) -> None:
            padded = np.empty((height + 2 * PADDING, width + 2 * PADDING), np.float32)
            for n in span:
                prepare_frame(frames[part[n]], 0.0, padded)
                warp_frame(padded, alignments.fields[part[n]], batch[n])

        share(move, len(part), pool, threads)
        moved, windows = batch[: len(part)], np.array([inside(field, height, width) for field in alignments.fields[part]])

        def add(rows: range, moved: Float32 = moved, windows: NDArray[np.int64] = windows) -> None:
            add_windows(moved, windows, rows.start, rows.stop, total, count)

        share(add, height, pool, threads)
        kept = residual[start : start + _BATCH]
        kept[:] = batch[: len(kept)]
    mean = np.where(count > 0, total / np.maximum(count, 1), total.sum() / max(count.sum(), 1)).astype(np.float32)
    centred = mean - mean.mean()
    for image, brightness in zip(residual, alignments.gain[chosen], strict=False):
        image -= image.mean() + centred * brightness
    return mean, Spectrum.of(residual, pool)


def inside(field: Float32, height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns, first and the one after the last, that a frame with this field covers wherever the field is within it."""

    def side(shift: Float32, length: int) -> tuple[int, int]:
        first = int(np.clip(np.ceil(-float(shift.min())), 0, length))
        last = int(np.clip(np.floor(length - 1 - float(shift.max())) + 1, 0, length))
        return first, max(last, first)

    return *side(field[..., 0], height), *side(field[..., 1], width)
