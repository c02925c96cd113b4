"""Where the content of a frame stands relative to a template: phase correlation, then a smooth field by weighted least squares.

The model of a frame is gain x template moved along a displacement field + noise, whose spectrum is measured. The rigid shift is first
found anywhere within the allowed range by correlation with the template, weighted by the inverse spectrum of the noise (generalised phase
correlation). Then the field at the nodes of a grid is refined by Gauss-Newton steps in the image (Lucas and Kanade 1981, in the inverse
compositional form of Baker and Matthews 2004), coarse to fine. The steps weigh the evidence of the pixels against a Gaussian prior: any
rigid shift is as likely as any other, and the deviations from it are smooth, with a variance that the frames themselves decide (empirical
Bayes). Where a movie moves rigidly that variance is zero, and so are the deviations.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from sensorium_pipeline.imaging.interpolation import bin_frame, gradient_sums

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_RIGID_VARIANCE = 100.0**2  # px^2: says nothing about the rigid shift
_COARSE_STEPS = 3
_FINE_STEPS = 2


@dataclass(frozen=True)
class Spectrum:
    """A power spectrum per pixel (units^2), averaged over directions: `power[i]` at `frequency[i]` cycles a pixel."""

    frequency: Float64
    power: Float64

    @classmethod
    def of(cls, images: Float32) -> "Spectrum":
        """Mean spectrum of images (n, y, x) of zero mean, tapered at the edges."""
        height, width = images.shape[1:]
        taper = taper_window(height, width)
        power = np.zeros((height, width // 2 + 1))
        for image in images:  # one at a time: the transform of all would be the largest array of the whole correction
            power += (torch.fft.rfft2(torch.from_numpy(image * taper)).abs() ** 2).numpy()
        power /= len(images) * float((taper.astype(np.float64) ** 2).sum())
        radius = radial_frequency(height, width)
        bins = max(min(height, width) // 4, 8)
        index = np.minimum((radius / 0.5 * bins).astype(int), bins - 1).ravel()
        index[0] = bins  # the mean is no part of it
        count = np.bincount(index, minlength=bins + 1)[:bins]
        total = np.bincount(index, power.ravel(), minlength=bins + 1)[:bins]
        frequency = (np.arange(bins) + 0.5) * 0.5 / bins
        return cls(frequency[count > 0], total[count > 0] / count[count > 0])

    def at(self, radius: Float64) -> Float64:
        """Power at these frequencies (cycles a pixel)."""
        return np.interp(radius, self.frequency, self.power)


def radial_frequency(height: int, width: int) -> Float64:
    """Distance from zero, cycles a pixel, of every entry of a real two-dimensional transform (y, x // 2 + 1)."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])


def taper_window(height: int, width: int) -> Float32:
    """Window (y, x) that falls to zero over the outer eighth on every side, as a raised cosine."""

    def side(length: int) -> Float64:
        edge = np.minimum(np.arange(length) + 0.5, length - np.arange(length) - 0.5)
        return 0.5 - 0.5 * np.cos(np.pi * np.minimum(edge / max(length / 8, 1.0), 1.0))

    return np.outer(side(height), side(width)).astype(np.float32)


def _hats(length: int, nodes: int) -> Float64:
    """Weights (length, nodes) of bilinear interpolation between nodes that span 0 .. length - 1."""
    place = np.arange(length) * (nodes - 1) / (length - 1)
    return np.clip(1 - np.abs(place[:, None] - np.arange(nodes)[None]), 0, None)


@dataclass(frozen=True)
class Level:
    """The template at one scale, with what a Gauss-Newton step needs."""

    template: Float32
    gradient_y: Float32
    gradient_x: Float32
    information: Float64  # (2 nodes, 2 nodes): inverse covariance of the field that the pixels alone give; y of all nodes, then x

    @classmethod
    def of(cls, template: Float32, noise: Callable[[Float64], Float64], nodes: tuple[int, int]) -> "Level":
        """The template (y, x) with its derivatives, filtered by the inverse of the noise's spectrum."""
        height, width = template.shape
        slope_y, slope_x = np.asarray(np.gradient(template), dtype=np.float32)
        weight = torch.from_numpy((1 / noise(radial_frequency(height, width))).astype(np.float32))
        weight[0, 0] = 0

        def filtered(slope: Float32) -> Float32:
            result = torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(slope)) * weight, s=(height, width)).numpy()
            # The transform takes the opposite edges for neighbours.
            result[:2], result[-2:], result[:, :2], result[:, -2:] = 0, 0, 0, 0
            return np.ascontiguousarray(result)

        gradient_y, gradient_x = filtered(slope_y), filtered(slope_x)
        rows, columns = _hats(height, nodes[0]), _hats(width, nodes[1])
        row_pairs = (rows[:, :, None] * rows[:, None, :]).reshape(height, -1)
        column_pairs = (columns[:, :, None] * columns[:, None, :]).reshape(width, -1)
        count = nodes[0] * nodes[1]

        def block(weighted: Float32, slope: Float32) -> Float64:
            pairs = row_pairs.T @ (weighted.astype(np.float64) * slope) @ column_pairs
            return pairs.reshape(nodes[0], nodes[0], nodes[1], nodes[1]).transpose(0, 2, 1, 3).reshape(count, count)

        information = np.block([[block(along, across) for across in (slope_y, slope_x)] for along in (gradient_y, gradient_x)])
        information = 0.5 * (information + information.T)
        values, vectors = np.linalg.eigh(information)
        values = np.maximum(values, 1e-9 * max(values[-1], 1e-30))
        return cls(template, gradient_y, gradient_x, (vectors * values) @ vectors.T)


@dataclass(frozen=True)
class Alignments:
    """Frames against a template, in pixels of the images given.

    Attributes:
        fields: (frames, rows, columns, 2) displacement y, x at the nodes.
        correlation: (frames,) Pearson, of the moved frame with the template.
        gain: (frames,) brightness relative to the template.
        at_bound: (frames,) the best rigid shift lies at the end of the allowed range.
        deviation_variance: px^2, of the non-rigid part, as these frames decided it.
    """

    fields: Float32
    correlation: Float32
    gain: Float32
    at_bound: NDArray[np.bool_]
    deviation_variance: float


class Aligner:
    """Aligns frames with one template.

    Args:
        template: (y, x) float32, the mean of `averaged` aligned frames.
        noise: spectrum of what frames add to the template.
        averaged: how many frames the template is the mean of; its own noise is filtered out accordingly.
        nodes: rows and columns of the displacement field.
        largest_shift: (y, x) px.
        smoothness: px, distance over which the non-rigid part stays correlated.
    """

    def __init__(
        self, template: Float32, noise: Spectrum, averaged: int, nodes: tuple[int, int], largest_shift: tuple[int, int], smoothness: float
    ) -> None:
        height, width = template.shape
        self.shape = (height, width)
        self.nodes = nodes
        centred = (template - template.mean()).astype(np.float32)
        radius = radial_frequency(height, width)
        power = Spectrum.of(centred[None]).at(radius)
        excess = noise.at(radius) / averaged
        wiener = np.maximum(power - excess, 0) / np.maximum(power, 1e-30)
        passed = torch.fft.rfft2(torch.from_numpy(centred)) * torch.from_numpy(wiener.astype(np.float32))
        smooth = torch.fft.irfft2(passed, s=(height, width)).numpy()
        # Near the edges the transform mixes opposite sides: keep the mean itself there.
        taper = taper_window(height, width)
        smooth = smooth * taper + centred * (1 - taper)
        smooth = np.ascontiguousarray(smooth - smooth.mean(), dtype=np.float32)
        self.taper = torch.from_numpy(taper)
        spectrum = torch.fft.rfft2(torch.from_numpy(smooth) * self.taper)
        weight = torch.from_numpy((1 / noise.at(radius)).astype(np.float32))
        weight[0, 0] = 0
        self._matched = spectrum.conj() * weight
        self._peak = float(torch.fft.irfft2(spectrum * self._matched, s=(height, width))[0, 0])
        self._largest = largest_shift
        self.fine = Level.of(smooth, noise.at, nodes)
        coarse = np.empty((height // 2, width // 2), np.float32)
        bin_frame(smooth, 0, 2, coarse)
        self.coarse = Level.of(coarse - coarse.mean(), lambda r: noise.at(r / 2) / 4, nodes)
        self.correlations = self._node_correlations(smoothness)

    def _node_correlations(self, smoothness: float) -> Float64:
        sides = [np.linspace(0, length - 1, count) for length, count in zip(self.shape, self.nodes, strict=True)]
        rows, columns = np.meshgrid(*sides, indexing="ij")
        places = np.stack([rows.ravel(), columns.ravel()], 1)
        squared = ((places[:, None] - places[None]) ** 2).sum(-1)
        return np.asarray(np.exp(-0.5 * squared / smoothness**2))

    def _prior(self, variance: float) -> Float64:
        count = self.correlations.shape[0]
        return np.kron(np.eye(2), variance * self.correlations + _RIGID_VARIANCE * np.ones((count, count)))

    def _posterior(self, information: Float64, variance: float) -> Float64:
        prior = self._prior(variance)
        return prior @ np.linalg.inv(np.eye(len(prior)) + information @ prior)

    def rigid(self, frames: Float32) -> tuple[Float32, Float32, NDArray[np.bool_]]:
        """Shifts (n, 2) px to about a tenth of a pixel, gains (n,) and whether the peak lies at the end of the range, by correlation."""
        height, width = self.shape
        reach_y, reach_x = self._largest
        stack = torch.from_numpy(frames)
        stack = (stack - stack.mean((1, 2), keepdim=True)) * self.taper
        surface = torch.fft.irfft2(torch.fft.rfft2(stack) * self._matched, s=(height, width))
        near = torch.cat([surface[:, -reach_y:], surface[:, : reach_y + 1]], 1)
        near = torch.cat([near[:, :, -reach_x:], near[:, :, : reach_x + 1]], 2)
        flat = near.flatten(1).argmax(1)
        row, column = flat // near.shape[2], flat % near.shape[2]
        each = torch.arange(len(frames))
        top = near[each, row, column]
        at_bound = (row == 0) | (row == 2 * reach_y) | (column == 0) | (column == 2 * reach_x)

        def vertex(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
            bend = before - 2 * top + after
            return torch.where(bend < 0, 0.5 * (before - after) / bend, torch.zeros_like(bend)).clamp(-0.5, 0.5)

        last_row, last_column = 2 * reach_y, 2 * reach_x
        part_y = vertex(near[each, (row - 1).clamp(0), column], near[each, (row + 1).clamp(max=last_row), column])
        part_x = vertex(near[each, row, (column - 1).clamp(0)], near[each, row, (column + 1).clamp(max=last_column)])
        part_y, part_x = part_y * ~at_bound, part_x * ~at_bound
        shifts = torch.stack([row - reach_y + part_y, column - reach_x + part_x], 1)
        gain = (top / self._peak).clamp(0.2, 5.0)
        return shifts.float().numpy(), gain.float().numpy(), at_bound.numpy()

    def align(
        self,
        frames: Float32,
        pool: ThreadPoolExecutor,
        threads: int,
        *,
        variance: float | None = None,
        use: NDArray[np.bool_] | None = None,
        start_variance: float = 2.0,
    ) -> Alignments:
        """Displacement fields of frames (n, y, x) float32.

        `variance` (px^2) fixes that of the non-rigid part, 0 means rigid; frames without `use` have no say in it.
        """
        count = len(frames)
        shifts, gain, at_bound = self.rigid(frames)
        offset = frames.mean((1, 2))
        fields = np.repeat(shifts[:, None, None, :], self.nodes[0], 1).repeat(self.nodes[1], 2).astype(np.float32)
        measured = np.empty((count, 2 * self.nodes[0] * self.nodes[1]))
        first = start_variance if variance is None else variance
        coarse_gain, fine_gain = self._posterior(self.coarse.information, first / 4), self._posterior(self.fine.information, first)

        def refine(span: range) -> None:
            half = np.empty(self.coarse.template.shape, np.float32)
            for n in span:
                bin_frame(frames[n], 0, 2, half)
                field = fields[n] / 2
                for _ in range(_COARSE_STEPS):
                    field = self._step(self.coarse, half, offset[n], gain[n], field, coarse_gain)[0]
                field = field * 2
                for _ in range(_FINE_STEPS):
                    field, measured[n], _ = self._step(self.fine, frames[n], offset[n], gain[n], field, fine_gain)
                fields[n] = field

        share(refine, count, pool, threads)
        if variance is None:
            telling = ~at_bound if use is None else ~at_bound & use
            variance = self.deviation_variance(measured[telling]) if telling.any() else 0.0
        final = self._posterior(self.fine.information, variance)
        correlation = np.empty(count, np.float32)

        def finish(span: range) -> None:
            for n in span:
                field = self._as_field(final @ measured[n])
                fields[n], _, correlation[n] = self._step(self.fine, frames[n], offset[n], gain[n], field, final)

        share(finish, count, pool, threads)
        return Alignments(fields, correlation, gain, at_bound, variance)

    def _as_field(self, vector: Float64) -> Float32:
        return np.ascontiguousarray(vector.reshape(2, *self.nodes).transpose(1, 2, 0), dtype=np.float32)

    def _step(
        self, level: Level, frame: Float32, offset: np.float32, gain: np.float32, field: Float32, posterior: Float64
    ) -> tuple[Float32, Float64, np.float32]:
        """One Gauss-Newton step: the new field, the evidence (information x field that the pixels alone ask for) and the correlation."""
        sums, statistics = np.empty((*self.nodes, 2)), np.empty(6)
        gradient_sums(frame, offset, gain, field, level.template, level.gradient_y, level.gradient_x, sums, statistics)
        evidence = level.information @ field.transpose(2, 0, 1).ravel().astype(np.float64) - sums.transpose(2, 0, 1).ravel()
        return self._as_field(posterior @ evidence), evidence, _pearson(statistics)

    def deviation_variance(self, evidence: Float64) -> float:
        """Variance (px^2) of the non-rigid part under which the evidence (n, 2 nodes) of some frames is most likely.

        In the eigenbasis of the prior seen through the pixels, what the pixels ask for has variance 1 + variance x eigenvalue.
        """
        information = self.fine.information
        values, vectors = np.linalg.eigh(information)
        half = (vectors / np.sqrt(values)) @ vectors.T
        white = evidence @ half  # unit noise
        root = (vectors * np.sqrt(values)) @ vectors.T
        count = self.correlations.shape[0]
        # Take the rigid part out of data and prior: project off the two directions in which all nodes move alike.
        rigid, _ = np.linalg.qr(root @ np.kron(np.eye(2), np.ones((count, 1))))
        others = np.eye(2 * count) - rigid @ rigid.T
        expected = others @ root @ np.kron(np.eye(2), self.correlations) @ root @ others
        strength, directions = np.linalg.eigh(expected)
        use = strength > 1e-6 * strength[-1]
        power = ((white @ directions[:, use]) ** 2).mean(0)
        candidates = np.concatenate([[0.0], np.geomspace(1e-5, 100.0, 141)])
        spread = 1 + candidates[:, None] * strength[use][None]
        cost = (np.log(spread) + power[None] / spread).sum(1)
        return float(candidates[int(np.argmin(cost))])


def lowest_plausible(correlation: Float32) -> float:
    """Correlation below which a frame does not show what the template shows, given those of frames from all over the recording.

    Six robust standard deviations below the median; and where many frames are bad, so that these say nothing, half of what good ones reach.
    """
    middle = float(np.median(correlation))
    spread = 1.4826 * float(np.median(np.abs(correlation - middle)))
    return max(middle - 6 * max(spread, 0.01), 0.5 * float(np.quantile(correlation, 0.9)))


def _pearson(statistics: Float64) -> np.float32:
    count, f, ff, t, tt, ft = statistics
    if count < 2:
        return np.float32(0)
    covariance, spread = ft - f * t / count, (ff - f * f / count) * (tt - t * t / count)
    return np.float32(covariance / np.sqrt(spread)) if spread > 0 else np.float32(0)


def share(work: Callable[[range], None], count: int, pool: ThreadPoolExecutor, threads: int) -> None:
    """Run `work` over ranges that make up 0 .. count - 1 on the threads of the pool; the first error is raised."""
    edges: Sequence[int] = np.linspace(0, count, 4 * threads + 1).astype(int).tolist()
    spans = [range(a, b) for a, b in pairwise(edges) if b > a]
    for _ in pool.map(work, spans):
        pass
