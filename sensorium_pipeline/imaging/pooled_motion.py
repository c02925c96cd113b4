"""Motion of recordings whose single frames show too little: neighbouring frames are pooled, and what noise could feign is left alone.

A template made of noisy frames shows their noise, and each of them lies best where it was put: peaks are found where nothing is. Here the
blocks of pooled frames fall into two halves, even and odd. Each half makes a template of its own and is measured with that of the other,
so that only what both halves show can be found. As few frames are pooled as suffice; where no number does, there is no measurement.

Displacement is (y, x) in pixels of the frames given.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.template import Template, build_template

Float32 = NDArray[np.float32]

_POOLED = (1, 3, 9, 27, 81)
_LEAST_BLOCKS = 12
_MOST_SAMPLED = 300
_MEASURED = 0.8  # part of the blocks that must show where they stand
_REFINED_WITHIN = 2.0  # px of the correlation's peak
_BATCH = 64


@dataclass(frozen=True)
class PooledMotion:
    """Rigid motion as far as it can be told from noise.

    Attributes:
        shifts: (frames, 2) float32 px, zero in the middle of the motion, interpolated between blocks; all zero where nothing is measured.
        measured: (frames,) bool, frames of blocks whose place was found.
        pooled: frames of a block; 0 where no number of them sufficed.
    """

    shifts: Float32
    measured: NDArray[np.bool_]
    pooled: int


def measure_pooled(
    block: Callable[[int, int], Float32 | None],
    frames: int,
    nodes: tuple[int, int],
    largest_shift: tuple[int, int],
    smoothness: float,
    *,
    pool: ThreadPoolExecutor,
    threads: int,
) -> PooledMotion:
    """Measure the motion of a recording from blocks of its frames.

    Args:
        block: gives the mean (y, x) of frames start to stop, or nothing where none of them can be used.
        frames: of the recording.
        nodes, largest_shift, smoothness, pool, threads: see `build_template`.
    """

    def make(images: Float32) -> Template:
        return build_template(images, nodes, largest_shift, smoothness, rigid=True, pool=pool, threads=threads, start=images.mean(0))

    for pooled in _POOLED:
        blocks = frames // pooled
        if blocks < _LEAST_BLOCKS:
            break
        pairs = np.unique(np.linspace(0, blocks // 2 - 1, min(_MOST_SAMPLED, blocks) // 2).astype(int)) * 2
        halves: list[Float32 | None] = []
        for parity in range(2):
            images = [block(n * pooled, (n + 1) * pooled) for n in (pairs + parity).tolist()]
            halves.append(np.stack(usable) if (usable := [image for image in images if image is not None]) else None)
        even, odd = halves
        if even is None or odd is None or min(len(even), len(odd)) < _LEAST_BLOCKS // 2:
            continue
        templates = make(even), make(odd)
        if any(template.aligner.rests_on_few_pixels for template in templates):
            continue
        # Both were made alone; where one shows what the other does, it says how they stand to each other.
        between = templates[0].aligner.align(templates[1].mean[None], pool, threads, variance=0.0)
        if between.certainty[0] * np.sqrt(len(odd)) < templates[0].aligner.least_certainty or between.at_bound[0]:
            continue
        offsets = np.stack([between.fields[0].mean((0, 1)), np.zeros(2, np.float32)])  # of the template that even and odd are held against
        found = [_place(templates[1], even, pool, threads)[1], _place(templates[0], odd, pool, threads)[1]]
        if np.concatenate(found).mean() < _MEASURED:
            continue
        shifts, known = np.zeros((blocks, 2), np.float32), np.zeros(blocks, np.bool_)
        for start in range(0, blocks, _BATCH):
            for parity in range(2):
                numbers = [n for n in range(start, min(start + _BATCH, blocks)) if n % 2 == parity]
                images = [block(n * pooled, (n + 1) * pooled) for n in numbers]
                seen = [n for n, image in zip(numbers, images, strict=True) if image is not None]
                if seen:
                    stack = np.stack([image for image in images if image is not None])
                    places, known[seen] = _place(templates[1 - parity], stack, pool, threads)
                    shifts[seen] = places + offsets[parity]
        return _spread(shifts, known, pooled, frames)
    return PooledMotion(np.zeros((frames, 2), np.float32), np.zeros(frames, bool), 0)


def _place(template: Template, images: Float32, pool: ThreadPoolExecutor, threads: int) -> tuple[Float32, NDArray[np.bool_]]:
    """Shifts (n, 2) of images (n, y, x) and whether noise alone hardly gives such a peak (n,)."""
    found = template.aligner.align(images, pool, threads, variance=0.0)
    refined = found.fields.mean((1, 2))
    near = np.abs(refined - found.shifts).max(1) <= _REFINED_WITHIN
    return np.where(near[:, None], refined, found.shifts), (found.certainty >= template.aligner.least_certainty) & ~found.at_bound


def _spread(shifts: Float32, known: NDArray[np.bool_], pooled: int, frames: int) -> PooledMotion:
    """From blocks (n, 2) to frames: what neighbouring blocks share is motion, and what they do not cannot be told from noise."""
    measured = np.zeros(frames, bool)
    measured[: len(known) * pooled] = np.repeat(known, pooled)
    measured[len(known) * pooled :] = known[-1]
    centred = (shifts - np.median(shifts[known], axis=0)).astype(np.float64)
    both = known[1:] & known[:-1]
    place = (np.flatnonzero(known) + 0.5) * pooled - 0.5
    result = np.zeros((frames, 2), np.float32)
    for axis in range(2):
        series = centred[:, axis]
        power = float(np.mean(series[known] ** 2))
        shared = float(np.mean(series[1:][both] * series[:-1][both])) / power if power > 0 and both.any() else 0.0
        if shared > 2 / np.sqrt(max(int(both.sum()), 1)):
            result[:, axis] = min(shared, 1.0) * np.interp(np.arange(frames), place, series[known])
    return PooledMotion(result, measured, pooled)
