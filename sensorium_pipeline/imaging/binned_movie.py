"""A motion-corrected movie binned in time on scratch disk, and its neuropil at a coarser grid."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.block_memory import BlockMemory
from sensorium_pipeline.imaging.cell_kernels import bin_frames, high_pass_all, remove_background, weigh_rows
from sensorium_pipeline.progress import Progress, ProgressCallback
from sensorium_pipeline.recordings.movie import Movie

Float32 = NDArray[np.float32]

CHUNK_BYTES = 16 * 2**20  # small enough for the cache and for the allocator to use the same memory again
COARSENING = 8  # px of a square of the coarse grid
MOST_BINS = 1000  # more add little to the footprints and much to the work
LEAST_BINS = 100  # a short movie keeps so many, to tell noise from cells
MOST_SPREAD = 3.0  # standard deviations that a square may differ from smooth neuropil; more is the activity of cells
ROUNDS = 3  # of neuropil without what exceeds them
DEGREE = 2  # of the polynomial that neuropil is smooth to
NEUROPIL_FACTOR = (0.3, 1.5)  # how strongly neuropil can show in a pixel
DISTANCE = 3  # squares from a square to the middle of those that tell its neuropil, three by three
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
SHARE_SPREAD = 2.0  # standard deviation of the share of a direction in what smooth neuropil leaves
FEWEST = 8  # bins without which nothing is looked for
BINS_AT_ONCE = 16  # read: a line of the processor's cache


@dataclass(frozen=True)
class BinnedMovie:
    """A movie in bins of time.

    Attributes:
        path: of the scratch file, which holds (bins, y, x) float32, counts; read, not mapped, so that no page of it counts as memory.
        shape: y, x.
        coarse: (y / 8, x / 8, bins) float32, means over squares of 8 pixels, slow changes taken away.
        rate: bins a second.
    """

    path: Path
    shape: tuple[int, int]
    coarse: Float32
    rate: float

    def window(self, rows: slice, columns: slice, memory: BlockMemory) -> Float32:
        """A window of the plane as an array (y, x, bins) in `memory`."""
        bins, (height, width) = self.coarse.shape[2], self.shape
        result = memory.array(rows.stop - rows.start, columns.stop - columns.start, bins)
        lines = memory.array(BINS_AT_ONCE, len(result), width)
        with self.path.open("rb", buffering=0) as file:
            for start in range(0, bins, BINS_AT_ONCE):
                part = lines[: min(BINS_AT_ONCE, bins - start)]
                for number, target in enumerate(part, start):
                    file.seek((number * height + rows.start) * width * 4)
                    if file.readinto(target.data.cast("B")) != target.nbytes:
                        raise OSError("the binned movie is cut off")
                result[:, :, start : start + len(part)] = part[:, :, columns].transpose(1, 2, 0)
        return result


def bin_movie(
    movie: Movie,
    *,
    frame_rate: float,
    flagged: NDArray[np.bool_],
    bin_duration: float,
    high_pass: float,
    path: Path,
    threads: int,
    progress: ProgressCallback,
) -> BinnedMovie | None:
    """Bin the frames of a movie that are not flagged; None where hardly any is left.

    Args:
        movie: corrected frames.
        frame_rate: Hz.
        flagged: (frames,).
        bin_duration: s, at least; long movies get longer bins and very short ones shorter ones.
        high_pass: s, slower changes are taken from the coarse grid.
        path: of the scratch file, which the caller removes.
        threads: at work at a time; the result does not depend on it.
        progress: told after every chunk.

    Raises:
        OSError: the scratch file cannot be written.
    """
    size = max(round(bin_duration * frame_rate), int(np.ceil(movie.frames / MOST_BINS)), 1)
    size = max(min(size, movie.frames // LEAST_BINS), 1)
    count = movie.frames // size
    filled = (~flagged[: count * size]).reshape(count, size).any(1)
    first_bin = np.concatenate([[0], np.cumsum(filled)])
    bins = int(first_bin[-1])
    if bins < FEWEST:
        return None
    coarse = np.zeros((-(-movie.height // COARSENING), -(-movie.width // COARSENING), bins), np.float32)
    many = max(CHUNK_BYTES // (movie.dtype.itemsize * size * movie.height * movie.width), 1)

    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(max(threads, 1)) as pool:

        def work(start: int) -> int:
            stop = min(start + many, count)
            first, after = int(first_bin[start]), int(first_bin[stop])
            means = np.empty((after - first, movie.height, movie.width), np.float32)
            span = slice(start * size, stop * size)
            bin_frames(movie.read(span.start, span.stop), ~flagged[span], size, means, coarse, first, COARSENING)
            _write_at(file.fileno(), means.reshape(-1).view(np.uint8).data, first * means[:1].nbytes)
            return span.stop

        for done in pool.map(work, range(0, count, many)):
            progress(Progress("binning", done, movie.frames))
    high_pass_all(coarse, max(round(high_pass * frame_rate / size), 1))
    sides = zip(coarse.shape[:2], (movie.height, movie.width), strict=True)
    covered = [np.diff(np.minimum(np.arange(side + 1) * COARSENING, length)) for side, length in sides]
    coarse /= np.multiply.outer(covered[0], covered[1])[:, :, None].astype(np.float32)
    return BinnedMovie(path, (movie.height, movie.width), coarse, frame_rate / size)


def _write_at(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


@dataclass(frozen=True)
class Neuropil:
    """What neuropil a pixel is expected to show; see `remove_background`.

    Attributes:
        coarse: (squares y, squares x, bins) float32, brightness of the coarse grid.
        sums: (squares y + 1, squares x + 1, bins) float32, of all squares above and to the left.
        weights_y, weights_x: how smooth neuropil follows from it along each axis; see `local_weights`.
        damping: of the shares of what shines around a square, counts squared.
    """

    coarse: Float32
    sums: Float32
    weights_y: tuple[NDArray[np.int64], Float32]
    weights_x: tuple[NDArray[np.int64], Float32]
    damping: float

    def remove(self, stack: Float32, window: tuple[slice, slice], length: int, memory: BlockMemory) -> Float32:
        """Take slow changes (`length` bins) and neuropil from a window of the plane (y, x, bins) in place; returns the noise (y, x)."""
        (first_y, weights_y), (first_x, weights_x) = (
            (first[side], weights[side]) for (first, weights), side in zip((self.weights_y, self.weights_x), window, strict=True)
        )
        columns = slice(int(first_x[0]), int(first_x[-1]) + weights_x.shape[1])
        rows = memory.array(len(stack), columns.stop - columns.start, stack.shape[2])
        weigh_rows(np.ascontiguousarray(self.coarse[:, columns]), first_y, weights_y, rows)
        down, right = (slice(side.start // COARSENING, -(-side.stop // COARSENING)) for side in window)
        around = self._around(down, right, memory)
        products = np.einsum("yxkt,yxjt->yxkj", around, around, optimize=True).astype(np.float64)
        inverse = np.linalg.inv(products + self.damping * np.eye(len(DIRECTIONS))).astype(np.float32)
        corner = (window[0].start - down.start * COARSENING, window[1].start - right.start * COARSENING)
        high_pass_all(stack, length)
        return remove_background(stack, rows, first_x - columns.start, weights_x, around, inverse, COARSENING, corner, *NEUROPIL_FACTOR)

    def _around(self, down: slice, right: slice, memory: BlockMemory) -> Float32:
        """What shines around squares (y, x, directions, bins) at a distance that cells in them do not reach."""
        tall, wide, bins = self.coarse.shape
        rows, columns = np.arange(down.start, down.stop), np.arange(right.start, right.stop)
        around = memory.array(len(rows), len(columns), len(DIRECTIONS), bins)
        for k, (y, x) in enumerate(DIRECTIONS):
            top, bottom = (np.clip(rows + DISTANCE * y + side, 0, tall)[:, None] for side in (-1, 2))
            left, end = (np.clip(columns + DISTANCE * x + side, 0, wide)[None] for side in (-1, 2))
            total = self.sums[bottom, end] - self.sums[top, end] - self.sums[bottom, left] + self.sums[top, left]
            around[:, :, k] = total / np.maximum((bottom - top) * (end - left), 1)[:, :, None]
        return around


def measure_neuropil(binned: BinnedMovie, scale: float) -> Neuropil:
    """The neuropil of a plane: smooth over `scale` px (standard deviation), and around every square of the coarse grid."""
    coarse = _without_activity(binned, scale)
    sums = np.zeros((coarse.shape[0] + 1, coarse.shape[1] + 1, coarse.shape[2]), np.float32)
    sums[1:, 1:] = coarse.cumsum(0).cumsum(1)
    # Noise of a pixel, from the steps of the squares, which average over it.
    noise = float(np.median(np.mean(np.diff(coarse, axis=2) ** 2, axis=2))) / 2 * COARSENING**2
    height, width = binned.shape
    return Neuropil(coarse, sums, local_weights(height, scale), local_weights(width, scale), max(noise / SHARE_SPREAD**2, 1e-12))


def _without_activity(binned: BinnedMovie, scale: float) -> Float32:
    """The coarse grid with what stands out of smooth neuropil held at the usual spread of its square (Winsorised, as in Huber 1964).

    Or a large or very active cell, which makes up much of what is smooth around it, would be taken away as its own neuropil.
    """
    weights = [
        tuple(part[np.minimum(np.arange(squares) * COARSENING + COARSENING // 2, length - 1)] for part in local_weights(length, scale))
        for squares, length in zip(binned.coarse.shape, binned.shape, strict=False)
    ]
    held = binned.coarse
    for _ in range(ROUNDS):
        smooth = held
        for first, shares in weights:
            rows = np.empty((len(shares), *smooth.shape[1:]), np.float32)
            weigh_rows(smooth, first, shares, rows)
            smooth = np.ascontiguousarray(rows.transpose(1, 0, 2))
        rest = binned.coarse - smooth
        # Of the median, which bouts of activity hardly move.
        spread = 1.4826 * np.median(np.abs(rest), axis=2, keepdims=True)
        held = smooth + np.clip(rest, -MOST_SPREAD * spread, MOST_SPREAD * spread)
    return held


def local_weights(length: int, scale: float) -> tuple[NDArray[np.int64], Float32]:
    """How the smooth field at each of `length` pixels follows from the squares of the coarse grid along one axis.

    A parabola is fitted to the squares around, weighted by a Gaussian of standard deviation `scale` px (local polynomial regression,
    Fan and Gijbels 1996), so that slopes, also at the edge of the field, are not taken for structure.

    Returns:
        first: (length,) index of the first square used.
        weights: (length, squares used) float32.
    """
    squares = -(-length // COARSENING)
    edges = np.minimum(np.arange(squares + 1) * COARSENING, length)
    centres, sizes = (edges[:-1] + edges[1:] - 1) / 2, np.diff(edges)
    taps = min(2 * int(np.ceil(2.5 * scale / COARSENING)) + 1, squares)
    first = np.clip(np.arange(length) // COARSENING - taps // 2, 0, squares - taps)
    used = first[:, None] + np.arange(taps)
    offset = (centres[used] - np.arange(length)[:, None]) / scale
    kernel = np.exp(-0.5 * offset**2) * sizes[used]
    powers = np.stack([offset**power for power in range(min(DEGREE + 1, taps))], axis=2)
    moments = np.einsum("ptk,pt,ptl->pkl", powers, kernel, powers)
    constant = np.zeros((length, moments.shape[1], 1))
    constant[:, 0] = 1
    fit = np.linalg.solve(moments, constant)[:, :, 0]
    return first, (kernel * np.einsum("ptk,pk->pt", powers, fit)).astype(np.float32)
