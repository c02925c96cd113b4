"""Motion of recordings whose single frames show too little: neighbouring frames are pooled, and what noise could feign is left alone.

A template made of noisy frames shows their noise, and each of them lies best where it was put: peaks are found where nothing is. Here the
blocks of pooled frames fall into two halves, even and odd. Each half makes a template of its own and is measured with that of the other,
so that only what both halves show can be found. As few frames are pooled as suffice; where no number does, there is no measurement.
Deviations from rigid motion follow from the evidence of the blocks as they do elsewhere from that of frames (see
`displacement_smoothing`): where noise hides them, their measured covariance is zero and motion stays rigid.

Displacement is (y, x) in pixels of the frames given.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.alignment import Aligner, share
from sensorium_pipeline.imaging.displacement_fields import mean_over_field
from sensorium_pipeline.imaging.displacement_smoothing import REACH, DisplacementSmoother, StationaryProcess, falling
from sensorium_pipeline.imaging.template import Template, build_template

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_POOLED = (1, 3, 9, 27, 81)
_LEAST_BLOCKS = 12
_MOST_SAMPLED = 300
_MEASURED = 0.8  # part of the blocks that must show where they stand
_REFINED_WITHIN = 2.0  # px of the correlation's peak
_BATCH = 64


@dataclass(frozen=True)
class PooledMotion:
    """Motion as far as it can be told from noise.

    Attributes:
        fields: (frames, rows, columns, 2) float32 px, zero in the middle of the motion, interpolated between blocks; all zero where nothing
            is measured.
        measured: (frames,) bool, frames of blocks whose place was found.
        pooled: frames of a block; 0 where no number of them sufficed.
    """

    fields: Float32
    measured: NDArray[np.bool_]
    pooled: int


def measure_pooled(
    block: Callable[[int, int], Float32 | None],
    frames: int,
    nodes: tuple[int, int],
    largest_shift: tuple[int, int],
    smoothness: float,
    *,
    rigid: bool,
    pool: ThreadPoolExecutor,
    threads: int,
) -> PooledMotion:
    """Measure the motion of a recording from blocks of its frames.

    Args:
        block: gives the mean (y, x) of frames start to stop, or nothing where none of them can be used.
        frames: of the recording.
        nodes, largest_shift, smoothness, rigid, pool, threads: see `build_template`.
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
        found = [_place(templates[1].aligner, even, pool, threads)[1], _place(templates[0].aligner, odd, pool, threads)[1]]
        if np.concatenate(found).mean() < _MEASURED:
            continue
        shifts, known = np.zeros((blocks, 2), np.float32), np.zeros(blocks, np.bool_)
        smoother = DisplacementSmoother(templates[0].aligner.modes, nodes, blocks, rigid=rigid)
        for start in range(0, blocks, _BATCH):
            stop = min(start + _BATCH, blocks)
            evidence = np.zeros((stop - start, 2 * nodes[0] * nodes[1]))
            for parity in range(2):
                numbers = [n for n in range(start, stop) if n % 2 == parity]
                images = [block(n * pooled, (n + 1) * pooled) for n in numbers]
                seen = [n for n, image in zip(numbers, images, strict=True) if image is not None]
                if seen:
                    stack = np.stack([image for image in images if image is not None])
                    aligner = templates[1 - parity].aligner
                    places, known[seen] = _place(aligner, stack, pool, threads)
                    shifts[seen] = places + offsets[parity]
                    evidence[np.array(seen) - start] = _evidence(
                        aligner, templates[0].aligner, stack, places, offsets[parity], pool, threads
                    )
            smoother.add(evidence, known[start:stop])
        fields = smoother.fields(0, blocks)
        return _spread(shifts, fields, known, pooled, frames)
    return PooledMotion(np.zeros((frames, *nodes, 2), np.float32), np.zeros(frames, bool), 0)


def _place(aligner: Aligner, images: Float32, pool: ThreadPoolExecutor, threads: int) -> tuple[Float32, NDArray[np.bool_]]:
    """Shifts (n, 2) of images (n, y, x) and whether noise alone hardly gives such a peak (n,)."""
    found = aligner.align(images, pool, threads, variance=0.0)
    refined = found.fields.mean((1, 2))
    near = np.abs(refined - found.shifts).max(1) <= _REFINED_WITHIN
    return np.where(near[:, None], refined, found.shifts), (found.certainty >= aligner.least_certainty) & ~found.at_bound


def _evidence(
    aligner: Aligner, common: Aligner, images: Float32, places: Float32, offset: Float32, pool: ThreadPoolExecutor, threads: int
) -> Float64:
    """Evidence (n, 2 nodes) of images at these places (n, 2), as if `common`, whose template lies at `offset`, had been their template."""
    nodes = aligner.nodes[0] * aligner.nodes[1]
    evidence = np.empty((len(images), 2 * nodes))

    def work(span: range) -> None:
        for n in span:
            field = np.broadcast_to(places[n], (*aligner.nodes, 2)).astype(np.float32)
            aligner.measure(images[n], np.float32(images[n].mean()), np.float32(1), field, evidence[n])

    share(work, len(images), pool, threads)
    # Evidence is what the information makes of the field, less the gradient that remains: this alone was measured.
    gradient = np.repeat(places, nodes, axis=1) @ aligner.fine.information - evidence
    return np.repeat(places + offset, nodes, axis=1) @ common.fine.information - gradient


def _spread(shifts: Float32, fields: Float32, known: NDArray[np.bool_], pooled: int, frames: int) -> PooledMotion:
    """From the shifts of blocks (n, 2) and their fields, of which only the deviations count, to the fields of frames."""
    measured = np.zeros(frames, bool)
    measured[: len(known) * pooled] = np.repeat(known, pooled)
    measured[len(known) * pooled :] = known[-1]
    deviations = fields - mean_over_field(fields)[:, None, None]
    deviations -= np.median(deviations[known], axis=0)
    centred = (shifts - np.median(shifts[known], axis=0)).astype(np.float64)
    centred[~known] = 0
    moved = np.stack([_shared(centred[:, axis], known) for axis in range(2)], 1)
    blocks = deviations + moved[:, None, None].astype(np.float32)
    place, places = (np.arange(len(known)) + 0.5) * pooled - 0.5, np.arange(frames)
    result = np.empty((frames, *fields.shape[1:]), np.float32)
    for node in np.ndindex(fields.shape[1:]):
        result[:, *node] = np.interp(places, place, blocks[:, *node])
    return PooledMotion(result, measured, pooled)


def _shared(series: Float64, known: NDArray[np.bool_]) -> Float64:
    """The part of a series (n,) that its samples share with those near in time; the rest cannot be told from noise.

    Samples that are not known hold zero.
    """
    lags = int(np.clip(known.sum() // 3, 2, REACH))
    covariance = np.zeros(lags)
    for lag in range(lags):
        both = int((known[: len(known) - lag] & known[lag:]).sum())
        covariance[lag] = float(series[: len(series) - lag] @ series[lag:]) / max(both, 1)
    both = int((known[1:] & known[:-1]).sum())
    if covariance[0] <= 0 or covariance[1] <= 2 / np.sqrt(max(both, 1)) * covariance[0]:
        return np.zeros_like(series)
    noise = float(np.maximum(covariance[0] - covariance[1], 1e-3 * covariance[0]))
    covariance[0] = covariance[1]
    process, scale = StationaryProcess(covariance * falling(lags) / noise), np.sqrt(noise)
    result = np.empty_like(series)
    for start in range(0, len(series), _BATCH):
        first, stop = max(start - REACH, 0), start + _BATCH
        part = slice(first, stop + REACH)
        mean = process.mean(series[part, None] / scale, known[part], np.ones(1))[:, 0] * scale
        result[start:stop] = mean[start - first : stop - first]
    return result
