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
from scipy.special import ndtri

from sensorium_pipeline.imaging.interpolation import bin_frame, gauss_newton
from sensorium_pipeline.imaging.spectrum import Spectrum, radial_frequency, taper_window

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_RIGID_VARIANCE = 100.0**2  # px^2: says nothing about the rigid shift
_BATCH = 16
_HALVED_FROM = 128
_COARSE_STEPS = 3
_FINE_STEPS = 2
_MODEL_ERROR = 0.01  # of the power of the template
_FEW_PIXELS = 25  # fewer than a cell has
_FALSE_PEAKS = 1e-3  # part of frames of noise alone in which some peak counts as found


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
        return cls(np.ascontiguousarray(template), gradient_y, gradient_x, np.ascontiguousarray((vectors * values) @ vectors.T))

    def refine(
        self,
        frame: Float32,
        offset: np.float32,
        gain: np.float32,
        field: Float32,
        posterior: Float64,
        steps: int,
        evidence: Float64,
        statistics: Float64,
    ) -> None:
        """See `gauss_newton`."""
        gauss_newton(
            frame,
            offset,
            gain,
            field,
            self.template,
            self.gradient_y,
            self.gradient_x,
            self.information,
            posterior,
            steps,
            evidence,
            statistics,
        )


@dataclass(frozen=True)
class Alignments:
    """Frames against a template, in pixels of the images given.

    Attributes:
        fields: (frames, rows, columns, 2) displacement y, x at the nodes.
        correlation: (frames,) Pearson, of the moved frame with the template.
        gain: (frames,) brightness relative to the template.
        at_bound: (frames,) the best rigid shift lies at the end of the allowed range.
        certainty: (frames,) height of the correlation's peak, in standard deviations of what noise alone gives at any one place.
        deviation_variance: px^2, of the non-rigid part, as these frames decided it.
    """

    fields: Float32
    correlation: Float32
    gain: Float32
    at_bound: NDArray[np.bool_]
    certainty: Float32
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
        own = Spectrum.of(centred[None])
        power = own.at(radius)

        def disturbance(frequency: Float64) -> Float64:
            # However little the noise, interpolation and brightness leave errors in proportion to what is there.
            return noise.at(frequency) + _MODEL_ERROR * own.at(frequency)

        excess = noise.at(radius) / averaged
        wiener = np.maximum(power - excess, 0) / np.maximum(power, 1e-30)
        passed = torch.fft.rfft2(torch.from_numpy(centred)) * torch.from_numpy(wiener.astype(np.float32))
        smooth = torch.fft.irfft2(passed, s=(height, width)).numpy()
        # Near the edges the transform mixes opposite sides: keep the mean itself there.
        taper = taper_window(height, width)
        smooth = smooth * taper + centred * (1 - taper)
        smooth = np.ascontiguousarray(smooth - smooth.mean(), dtype=np.float32)
        self._largest = largest_shift
        self.fine = Level.of(smooth, disturbance, nodes)
        coarse = np.empty((height // 2, width // 2), np.float32)
        bin_frame(smooth, 0, 2, coarse)
        self.coarse = Level.of(coarse - coarse.mean(), lambda frequency: disturbance(frequency / 2) / 4, nodes)
        self.correlations = self._node_correlations(smoothness)
        self._evidence = self._evidence_basis()
        self._posteriors: dict[tuple[bool, float], Float64] = {}
        # The rigid shift needs no more than half the resolution where there are pixels enough.
        self._halving = 2 if min(height, width) >= _HALVED_FROM else 1
        whole = self.coarse.template if self._halving == 2 else self.fine.template
        self._taper = torch.from_numpy(taper_window(*whole.shape))
        spectrum = torch.fft.rfft2(torch.from_numpy(whole) * self._taper)
        weight = 1 / disturbance(radial_frequency(*whole.shape) / self._halving)
        weight[0, 0] = 0
        self._matched = spectrum.conj() * torch.from_numpy(weight.astype(np.float32))
        self._peak = float(torch.fft.irfft2(spectrum * self._matched, s=whole.shape)[0, 0])
        # What noise alone makes of the correlation: each term of the transform stands for itself and its mirror image.
        mirrored = np.full(weight.shape[1], 2.0)
        mirrored[0] = 1.0
        if whole.shape[1] % 2 == 0:
            mirrored[-1] = 1.0
        one_frame = noise.at(radial_frequency(*whole.shape) / self._halving) / self._halving**2 * float((self._taper**2).sum()) * mirrored
        matched = self._matched.abs().numpy().astype(np.float64)
        self._surface_noise = max(float(np.sqrt((matched**2 * one_frame).sum())) / whole.size, 1e-30)
        # A frame that is part of the template correlates with itself.
        self.own_certainty = float((weight * one_frame).sum()) / whole.size / averaged / self._surface_noise
        reach_y, reach_x = self._reach()
        self.least_certainty = float(-ndtri(_FALSE_PEAKS / ((2 * reach_y + 1) * (2 * reach_x + 1))))

    @property
    def rests_on_few_pixels(self) -> bool:
        """Whether the template is hardly more than a point: where photons are rare, one of each frame can always be laid on another."""
        energy = self.fine.template.astype(np.float64) ** 2
        return bool(energy.sum() ** 2 < _FEW_PIXELS * (energy**2).sum())

    def _reach(self) -> tuple[int, int]:
        """Largest shift, y and x, in pixels of the correlation."""
        return max(self._largest[0] // self._halving, 1), max(self._largest[1] // self._halving, 1)

    def _node_correlations(self, smoothness: float) -> Float64:
        sides = [np.linspace(0, length - 1, count) for length, count in zip(self.shape, self.nodes, strict=True)]
        rows, columns = np.meshgrid(*sides, indexing="ij")
        places = np.stack([rows.ravel(), columns.ravel()], 1)
        squared = ((places[:, None] - places[None]) ** 2).sum(-1)
        return np.asarray(np.exp(-0.5 * squared / smoothness**2))

    def _prior(self, variance: float) -> Float64:
        count = self.correlations.shape[0]
        return np.asarray(np.kron(np.eye(2), variance * self.correlations + _RIGID_VARIANCE * np.ones((count, count))))

    def _posterior(self, level: Level, variance: float) -> Float64:
        """Covariance of the field given the pixels of a level and the prior, px^2 of that level."""
        key = (level is self.coarse, variance)
        if key not in self._posteriors:
            prior = self._prior(variance)
            self._posteriors[key] = np.ascontiguousarray(prior @ np.linalg.inv(np.eye(len(prior)) + level.information @ prior))
        return self._posteriors[key]

    def rigid(self, frames: Float32) -> tuple[Float32, Float32, NDArray[np.bool_], Float32]:
        """Shifts (n, 2) px to about a tenth of a pixel by correlation; gain, whether at the end of the range and certainty (n,)."""
        # A few frames at a time stay in the processor's cache, and memory is used again rather than asked for anew.
        parts = [self._rigid(frames[start : start + _BATCH]) for start in range(0, len(frames), _BATCH)]
        shifts, gain, at_bound, certainty = (np.concatenate(each) for each in zip(*parts, strict=True))
        return shifts, gain, at_bound, certainty

    def _rigid(self, frames: Float32) -> tuple[Float32, Float32, NDArray[np.bool_], Float32]:
        height, width = self._taper.shape
        reach_y, reach_x = self._reach()
        if self._halving == 2:
            small = np.empty((len(frames), height, width), np.float32)
            for frame, half in zip(frames, small, strict=True):
                bin_frame(frame, 0, 2, half)
            frames = small
        stack = torch.from_numpy(frames)
        stack = (stack - stack.mean((1, 2), keepdim=True)) * self._taper
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
        shifts = torch.stack([row - reach_y + part_y, column - reach_x + part_x], 1) * self._halving
        gain = (top / max(self._peak, 1e-30)).clamp(0.2, 5.0)
        return shifts.float().numpy(), gain.float().numpy(), at_bound.numpy(), (top / self._surface_noise).float().numpy()

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
        shifts, gain, at_bound, certainty = self.rigid(frames)
        offset = frames.mean((1, 2))
        fields = np.repeat(shifts[:, None, None, :], self.nodes[0], 1).repeat(self.nodes[1], 2).astype(np.float32)
        measured = np.empty((count, 2 * self.nodes[0] * self.nodes[1]))
        first = start_variance if variance is None else variance
        coarse_gain, fine_gain = self._posterior(self.coarse, first / 4), self._posterior(self.fine, first)

        def refine(span: range) -> None:
            half, statistics = np.empty(self.coarse.template.shape, np.float32), np.empty(6)
            for n in span:
                bin_frame(frames[n], 0, 2, half)
                fields[n] /= 2
                self.coarse.refine(half, offset[n], gain[n], fields[n], coarse_gain, _COARSE_STEPS, measured[n], statistics)
                fields[n] *= 2
                self.fine.refine(frames[n], offset[n], gain[n], fields[n], fine_gain, _FINE_STEPS, measured[n], statistics)

        share(refine, count, pool, threads)
        # A field that ran away (a frame that shows something else) falls back to the rigid shift.
        away = ~(np.abs(fields - shifts[:, None, None]).max((1, 2, 3)) <= min(self._largest))
        if variance is None:
            telling = ~(at_bound | away) if use is None else ~(at_bound | away) & use
            variance = self.deviation_variance(measured[telling]) if telling.any() else 0.0
        final = self._posterior(self.fine, variance)
        start = (measured @ final.T).reshape(count, 2, *self.nodes).transpose(0, 2, 3, 1)
        start = np.where(away[:, None, None, None], shifts[:, None, None], start)
        correlation = np.empty(count, np.float32)

        def finish(span: range) -> None:
            unused, statistics = np.empty_like(measured[0]), np.empty(6)
            for n in span:
                fields[n] = start[n]
                self.fine.refine(frames[n], offset[n], gain[n], fields[n], final, 1, unused, statistics)
                correlation[n] = _pearson(statistics)

        share(finish, count, pool, threads)
        return Alignments(fields, correlation, gain, at_bound, certainty, variance)

    def polish(self, frame: Float32, gain: np.float32, field: Float32, variance: float) -> np.float32:
        """One more step, in place, for a frame (y, x) whose field came from an aligner at lower resolution; the correlation."""
        statistics, unused = np.empty(6), np.empty(2 * self.nodes[0] * self.nodes[1])
        self.fine.refine(frame, np.float32(frame.mean()), gain, field, self._posterior(self.fine, variance), 1, unused, statistics)
        return _pearson(statistics)

    def _evidence_basis(self) -> tuple[Float64, Float64]:
        """Directions (2 nodes, n) of the evidence without its rigid part, of unit noise, and how much of the prior each one sees.

        In this basis what the pixels ask for has variance 1 + variance x strength.
        """
        values, vectors = np.linalg.eigh(self.fine.information)
        whitening, root = (vectors / np.sqrt(values)) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T
        count = self.correlations.shape[0]
        # Project off the two directions in which all nodes move alike.
        rigid, _ = np.linalg.qr(root @ np.kron(np.eye(2), np.ones((count, 1))))
        others = np.eye(2 * count) - rigid @ rigid.T
        strength, directions = np.linalg.eigh(others @ root @ np.kron(np.eye(2), self.correlations) @ root @ others)
        use = strength > 1e-6 * strength[-1]
        return whitening @ directions[:, use], strength[use]

    def deviation_variance(self, evidence: Float64) -> float:
        """Variance (px^2) of the non-rigid part under which the evidence (n, 2 nodes) of some frames is most likely."""
        directions, strength = self._evidence
        power = ((evidence @ directions) ** 2).mean(0)
        candidates = np.concatenate([[0.0], np.geomspace(1e-5, 100.0, 141)])
        spread = 1 + candidates[:, None] * strength[None]
        cost = (np.log(spread) + power[None] / spread).sum(1)
        return float(candidates[int(np.argmin(cost))])


def lowest_plausible(correlation: Float32, pixels: int) -> float:
    """Correlation below which a frame does not show what the template shows, given those of frames from all over the recording.

    Six robust standard deviations and a fifth below the median; or, where many frames are bad and these say little, half of what good
    ones reach. Never so high that the noise of a correlation over so many pixels would bring a frame below it.
    """
    middle = float(np.median(correlation))
    spread = 1.4826 * float(np.median(np.abs(correlation - middle)))
    good = float(np.quantile(correlation, 0.9))
    return min(max(min(middle - 6 * spread, 0.8 * middle), 0.5 * good), good - 6 / float(np.sqrt(pixels)))


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
