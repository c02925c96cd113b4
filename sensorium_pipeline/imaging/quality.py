"""What a microscopist would ask about one plane, in numbers, and the gates that decide whether it is good enough to publish."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.recordings.movie import Movie


class PlaneMetrics(BaseModel):
    """Measurements of one extracted plane; every number is finite (zero where nothing could be measured).

    Attributes:
        frames: frames of the movie.
        flagged_fraction: share of frames whose motion could not be trusted; their samples are NaN in every trace.
        template_correlation: median correlation of the corrected frames with the template.
        motion_measured_fraction: share of frames whose motion stands out of noise; that of others is interpolated, or left as none.
        motion_pooled: frames averaged for one measurement of motion; 0 where no motion could be measured.
        shift_rms: root mean square of the rigid shifts about their mean, pixels (both axes together).
        largest_shift: largest shift of a frame that is not flagged, pixels.
        raster_phase: shift of the odd lines against the even ones that was undone, pixels.
        crispness_before: norm of the gradient of the mean image before motion correction.
        crispness_after: the same after it.
        cells: cells found.
        kept_cells: cells kept.
        median_snr: median signal-to-noise of the kept cells (see `PlaneExtraction.snr`).
        median_noise: median noise of the kept cells' dF/F, a standard deviation within a frame.
        median_neuropil_coefficient: part of the neuropil that was subtracted from the kept cells, median.
        bleaching: brightness (above the darkest pixels) lost from the first to the last tenth of the recording, a share of the first.
        photons: photons a pixel and frame, from the ratio of the mean to the variance of the frame-to-frame noise.
        saturated_fraction: share of the pixels that reach the brightest value of all, within the sampled frames.
    """

    model_config = ConfigDict(frozen=True)

    frames: int
    flagged_fraction: float
    template_correlation: float
    shift_rms: float
    largest_shift: float
    raster_phase: float
    crispness_before: float
    crispness_after: float
    cells: int
    kept_cells: int
    median_snr: float
    median_noise: float
    bleaching: float
    photons: float
    saturated_fraction: float
    median_neuropil_coefficient: float = 0.0
    motion_measured_fraction: float = 1.0
    motion_pooled: int = 1


class QualityGates(BaseModel):
    """Thresholds of the quality gates of a plane."""

    model_config = ConfigDict(frozen=True)

    flagged_fraction: float = 0.2
    template_correlation: float = 0.1
    kept_cells: int = 1
    median_snr: float = 1.5
    bleaching: float = 0.6


@dataclass(frozen=True)
class GateResult:
    """One gate: what was measured, the threshold, and whether the plane passed."""

    name: str
    measured: float
    threshold: float
    at_most: bool

    @property
    def passed(self) -> bool:
        """Whether the measurement is on the right side of the threshold."""
        return self.measured <= self.threshold if self.at_most else self.measured >= self.threshold

    def __str__(self) -> str:
        side = "at most" if self.at_most else "at least"
        return f"{self.name} is {self.measured:.3g}, must be {side} {self.threshold:.3g}"


def judge(metrics: PlaneMetrics, gates: QualityGates = QualityGates()) -> list[GateResult]:
    """Compare a plane's metrics with the gates, every gate in a fixed order."""
    return [
        GateResult("flagged_fraction", metrics.flagged_fraction, gates.flagged_fraction, at_most=True),
        GateResult("template_correlation", metrics.template_correlation, gates.template_correlation, at_most=False),
        GateResult("kept_cells", metrics.kept_cells, gates.kept_cells, at_most=False),
        GateResult("median_snr", metrics.median_snr, gates.median_snr, at_most=False),
        GateResult("bleaching", metrics.bleaching, gates.bleaching, at_most=True),
    ]


def measure_recording(movie: Movie, sample: int = 100) -> tuple[float, float, float]:
    """Bleaching, photons a pixel and frame, and saturated fraction of a raw movie, from frames evenly over it (see `PlaneMetrics`).

    The noise of a detector that counts photons grows with brightness: the slope of variance against mean over pixels is the gain
    (counts a photon). Frames next to each other are compared, so that activity and motion add little.
    """
    starts = np.unique(np.linspace(0, max(movie.frames - 2, 0), min(sample, max(movie.frames // 2, 1))).astype(int))
    pairs = np.stack([movie.read(int(start), int(start) + 2) for start in starts if start + 2 <= movie.frames]).astype(np.float64)
    pairs = pairs[np.isfinite(pairs).all((1, 2, 3))]
    if len(pairs) == 0:
        return 0.0, 0.0, 0.0
    mean, variance = pairs.mean((0, 1)), np.mean((pairs[:, 1] - pairs[:, 0]) ** 2, axis=0) / 2
    brightest = pairs.max()
    saturated = float(np.mean(pairs.max((0, 1)) >= brightest)) if brightest > pairs.min() else 1.0
    dark = float(np.percentile(mean, 1))
    tenth = max(len(pairs) // 10, 1)
    first, last = pairs[:tenth].mean() - dark, pairs[-tenth:].mean() - dark
    bleaching = float((first - last) / first) if first > 0 else 0.0
    return float(np.clip(bleaching, -1, 1)), _photons(mean.ravel(), variance.ravel()), saturated


def _photons(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> float:
    """Photons a pixel from the line through variance against mean, over twenty groups of pixels alike in brightness."""
    order = np.array_split(np.argsort(mean, kind="stable"), 20)
    groups = [group for group in order if len(group)]
    x, y = np.array([mean[group].mean() for group in groups]), np.array([np.median(variance[group]) for group in groups])
    if len(groups) < 3 or np.ptp(x) <= 0:
        return 0.0
    gain, intercept = np.polyfit(x, y, 1)
    if gain <= 0:
        return 0.0
    # Where the variance would be zero, no light falls; a gain from the line alone needs no black level.
    return float(max(np.mean(x) + min(intercept, 0.0) / gain, 0.0) / gain)
