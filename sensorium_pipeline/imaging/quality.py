"""What a microscopist would ask about one plane, in numbers, and the gates that decide whether it is good enough to publish."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class PlaneMetrics(BaseModel):
    """Measurements of one extracted plane; every number is finite (zero where nothing could be measured).

    Attributes:
        frames: frames of the movie.
        flagged_fraction: share of frames whose motion could not be trusted; their samples are NaN in every trace.
        template_correlation: median correlation of the corrected frames with the template.
        shift_rms: root mean square of the rigid shifts about their mean, pixels (both axes together).
        largest_shift: largest shift of a frame that is not flagged, pixels.
        raster_phase: shift of the odd lines against the even ones that was undone, pixels.
        crispness_before: root mean square gradient of the mean image before motion correction, over its mean brightness.
        crispness_after: the same after it.
        cells: cells found.
        kept_cells: cells kept.
        median_snr: median signal-to-noise of the kept cells (see `PlaneExtraction.snr`).
        median_noise: median noise of the kept cells' dF/F, a standard deviation within a frame.
        bleaching: brightness lost between the first and the last tenth of the recording, a share of the first.
        photons: photons a pixel and frame, from the ratio of the mean to the variance of the frame-to-frame noise.
        saturated_fraction: share of the pixels of the maximum image that stand at the brightest value any pixel has.
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


def crispness(image: NDArray[np.float32]) -> float:
    """Root mean square gradient of an image (y, x) over its mean brightness above its darkest percentile; 0 for a flat image."""
    image = np.nan_to_num(np.asarray(image, np.float64))
    brightness = float(np.mean(image) - np.percentile(image, 1))
    if brightness <= 0 or min(image.shape) < 2:
        return 0.0
    rows, columns = np.gradient(image)
    return float(np.sqrt(np.mean(rows**2 + columns**2)) / brightness)
