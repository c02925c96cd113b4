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
import scipy.fft
from numpy.typing import NDArray
from scipy.special import ndtri

from sensorium_pipeline.imaging.displaced_frames import gauss_newton
from sensorium_pipeline.imaging.displacement_smoothing import EvidenceModes
from sensorium_pipeline.imaging.frame_sums import bin_frame, pearson
from sensorium_pipeline.imaging.spectrum import Spectrum, radial_frequency, taper_window

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_RIGID_VARIANCE = 100.0**2  # px^2: says nothing about the rigid shift
_HALVED_FROM = 128
_COARSE_STEPS = 2
_FINE_STEPS = 1
_MODEL_ERROR = 0.01  # of the power of the template
_LEAST_DISTURBANCE = 1e-4  # of the largest: where nothing disturbs, a frequency must not outweigh all others
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
        weight = (1 / noise(radial_frequency(height, width))).astype(np.float32)
        weight[0, 0] = 0

        def filtered(slope: Float32) -> Float32:
            result = scipy.fft.irfft2(scipy.fft.rfft2(slope) * weight, s=(height, width))
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
        moments: Float64 = np.empty(0),
        margin: int = 0,
    ) -> None:
        """See `gauss_newton`."""
        own = (self.template, self.gradient_y, self.gradient_x, self.information)
        gauss_newton(frame, margin, offset, gain, field, *own, posterior, steps, evidence, moments)


@dataclass(frozen=True)
class Peak:
    """Where one frame correlates best with a template: shift y, x in px to about a tenth, and the rest as in `Alignments`."""

    shift: tuple[float, float]
    gain: np.float32
    at_bound: bool
    certainty: float


@dataclass(frozen=True)
class Alignment:
    """One frame, of mean `offset`, against a template, as in `Alignments`; the field falls back to the shift where it ran away."""

    peak: Peak
    offset: np.float32
    field: Float32
    correlation: np.float32


@dataclass(frozen=True)
class Alignments:
    """Frames against a template, in pixels of the images given.

    Attributes:
        shifts: (frames, 2) where the correlation has its peak, y, x.
        fields: (frames, rows, columns, 2) displacement y, x at the nodes.
        correlation: (frames,) Pearson, of the moved frame with the template.
        gain: (frames,) brightness relative to the template.
        at_bound: (frames,) the best rigid shift lies at the end of the allowed range.
        certainty: (frames,) height of the correlation's peak, in standard deviations of what noise alone gives at any one place.
        deviation_variance: px^2, of the non-rigid part, as these frames decided it.
    """

    shifts: Float32
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

        least = _LEAST_DISTURBANCE * float((noise.at(radius) + _MODEL_ERROR * power).max())

        def disturbance(frequency: Float64) -> Float64:
            # However little the noise, interpolation and brightness leave errors in proportion to what is there.
            return np.maximum(noise.at(frequency) + _MODEL_ERROR * own.at(frequency), least)

        excess = noise.at(radius) / averaged
        wiener = np.maximum(power - excess, 0) / np.maximum(power, 1e-30)
        smooth = scipy.fft.irfft2(scipy.fft.rfft2(centred) * wiener.astype(np.float32), s=(height, width))
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
        self.modes = EvidenceModes(self.fine.information, self.correlations)
        self._posteriors: dict[tuple[bool, float], Float64] = {}
        # The rigid shift needs no more than half the resolution where there are pixels enough.
        self._halving = 2 if min(height, width) >= _HALVED_FROM else 1
        whole = self.coarse.template if self._halving == 2 else self.fine.template
        self._taper = taper_window(*whole.shape)
        spectrum = scipy.fft.rfft2(whole * self._taper)
        weight = 1 / disturbance(radial_frequency(*whole.shape) / self._halving)
        weight[0, 0] = 0
        self._matched = spectrum.conj() * weight.astype(np.float32)
        self._peak = float(scipy.fft.irfft2(spectrum * self._matched, s=whole.shape)[0, 0])
        # What noise alone makes of the correlation: each term of the transform stands for itself and its mirror image.
        mirrored = np.full(weight.shape[1], 2.0)
        mirrored[0] = 1.0
        if whole.shape[1] % 2 == 0:
            mirrored[-1] = 1.0
        one_frame = noise.at(radial_frequency(*whole.shape) / self._halving) / self._halving**2 * float((self._taper**2).sum()) * mirrored
        matched = np.abs(self._matched).astype(np.float64)
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

    def peak(self, frame: Float32, half: Float32) -> Peak:
        """Rigid shift of a frame (y, x), which is given at half the resolution too."""
        height, width = self._taper.shape
        reach_y, reach_x = self._reach()
        small = half if self._halving == 2 else frame
        spectrum = scipy.fft.rfft2((small - small.mean()) * self._taper)
        spectrum *= self._matched
        surface = scipy.fft.irfft2(spectrum, s=(height, width), overwrite_x=True)
        near = np.empty((2 * reach_y + 1, 2 * reach_x + 1), np.float32)
        for rows, its_rows in ((slice(0, reach_y), slice(-reach_y, None)), (slice(reach_y, None), slice(0, reach_y + 1))):
            for columns, its_columns in ((slice(0, reach_x), slice(-reach_x, None)), (slice(reach_x, None), slice(0, reach_x + 1))):
                near[rows, columns] = surface[its_rows, its_columns]
        row, column = divmod(int(near.argmax()), near.shape[1])
        top = float(near[row, column])
        at_bound = row in (0, 2 * reach_y) or column in (0, 2 * reach_x)

        def vertex(before: np.float32, after: np.float32) -> float:
            bend = float(before) - 2 * top + float(after)
            return float(np.clip(0.5 * (float(before) - float(after)) / bend, -0.5, 0.5)) if bend < 0 else 0.0

        y, x = float(row - reach_y), float(column - reach_x)
        if not at_bound:
            y += vertex(near[row - 1, column], near[row + 1, column])
            x += vertex(near[row, column - 1], near[row, column + 1])
        gain = np.float32(np.clip(top / max(self._peak, 1e-30), 0.2, 5.0))
        return Peak((y * self._halving, x * self._halving), gain, at_bound, top / self._surface_noise)

    def locate(self, frame: Float32, half: Float32, variance: float, evidence: Float64) -> Alignment:
        """Shift and field of one frame (y, x) under a variance (px^2) of the non-rigid part.

        `half` (y // 2, x // 2) is room for the frame at half the resolution; `evidence` (2 nodes,) is overwritten.
        """
        bin_frame(frame, 0, 2, half)
        peak = self.peak(frame, half)
        offset = np.float32(frame.mean())
        field = np.empty((*self.nodes, 2), np.float32)
        field[:] = np.array(peak.shift) / 2
        self.coarse.refine(half, offset, peak.gain, field, self._posterior(self.coarse, variance / 4), _COARSE_STEPS, evidence)
        field *= 2
        moments = np.empty(6)
        self.fine.refine(frame, offset, peak.gain, field, self._posterior(self.fine, variance), _FINE_STEPS, evidence, moments)
        # A field that ran away (a frame that shows something else) falls back to the rigid shift.
        if not np.abs(field - np.array(peak.shift, np.float32)).max() <= min(self._largest):
            field[:] = peak.shift
        return Alignment(peak, offset, field, np.float32(pearson(moments)))

    def measure(self, frame: Float32, offset: np.float32, gain: np.float32, field: Float32, evidence: Float64, *, margin: int = 0) -> None:
        """Evidence (2 nodes,), overwritten, of a frame (y, x) whose field is nearly known.

        `offset` is its mean; around it there are `margin` pixels that do not count.
        """
        self.fine.refine(frame, offset, gain, field, np.empty((0, len(evidence))), 1, evidence, margin=margin)

    def align(
        self,
        frames: Float32,
        pool: ThreadPoolExecutor,
        threads: int,
        *,
        variance: float | None = None,
        start_variance: float = 2.0,
    ) -> Alignments:
        """Displacement fields of frames (n, y, x) float32, each by itself.

        `variance` (px^2) fixes that of the non-rigid part, 0 means rigid; else the frames decide it.
        """
        count = len(frames)
        first = start_variance if variance is None else variance
        found: list[Alignment | None] = [None] * count
        evidence = np.empty((count, 2 * self.nodes[0] * self.nodes[1]))

        def locate(span: range) -> None:
            half = np.empty(self.coarse.template.shape, np.float32)
            for n in span:
                found[n] = self.locate(frames[n], half, first, evidence[n])

        share(locate, count, pool, threads)
        located = [each for each in found if each is not None]
        peaks = [each.peak for each in located]
        fields = np.stack([each.field for each in located])
        at_bound = np.array([peak.at_bound for peak in peaks])
        shifts = np.array([peak.shift for peak in peaks], np.float32)
        away = (fields == shifts[:, None, None]).all((1, 2, 3))
        if variance is None:
            telling = ~(at_bound | away)
            variance = self.modes.variance(evidence[telling]) if telling.any() else 0.0
        final = self._posterior(self.fine, variance)
        start = (evidence @ final.T).reshape(count, 2, *self.nodes).transpose(0, 2, 3, 1)
        fields = np.where(away[:, None, None, None], fields, start).astype(np.float32)
        correlation = np.empty(count, np.float32)

        def finish(span: range) -> None:
            moments = np.empty(6)
            for n in span:
                self.fine.refine(frames[n], located[n].offset, peaks[n].gain, fields[n], final, 1, evidence[n], moments)
                correlation[n] = pearson(moments)

        share(finish, count, pool, threads)
        return Alignments(
            shifts=shifts,
            fields=fields,
            correlation=correlation,
            gain=np.array([peak.gain for peak in peaks], np.float32),
            at_bound=at_bound,
            certainty=np.array([peak.certainty for peak in peaks], np.float32),
            deviation_variance=variance,
        )


def lowest_plausible(correlation: Float32, pixels: int) -> float:
    """Correlation below which a frame does not show what the template shows, given those of frames from all over the recording.

    Six robust standard deviations and a fifth below the median; or, where many frames are bad and these say little, half of what good
    ones reach. Never so high that the noise of a correlation over so many pixels would bring a frame below it.
    """
    middle = float(np.median(correlation))
    spread = 1.4826 * float(np.median(np.abs(correlation - middle)))
    good = float(np.quantile(correlation, 0.9))
    return min(max(min(middle - 6 * spread, 0.8 * middle), 0.5 * good), good - 6 / float(np.sqrt(pixels)))


def begin(work: Callable[[range], None], count: int, pool: ThreadPoolExecutor, threads: int) -> Callable[[], None]:
    """Have the threads of the pool run `work` over ranges that make up 0 .. count - 1.

    What is returned waits for them; the first error is raised there.
    """
    edges: Sequence[int] = np.linspace(0, count, 4 * threads + 1).astype(int).tolist()
    results = pool.map(work, [range(a, b) for a, b in pairwise(edges) if b > a])

    def wait() -> None:
        for _ in results:
            pass

    return wait


def share(work: Callable[[range], None], count: int, pool: ThreadPoolExecutor, threads: int) -> None:
    """As `begin`, done when it returns."""
    begin(work, count, pool, threads)()
