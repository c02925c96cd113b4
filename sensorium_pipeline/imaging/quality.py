"""The numbers that a microscopist would ask for about one plane, and the gates that decide whether it is good enough to publish."""

from pydantic import BaseModel, ConfigDict


class MotionMetrics(BaseModel):
    """Measurements of a plane's frames and their motion; every number is finite (zero where nothing could be measured).

    Attributes:
        frames: frames of the movie.
        flagged_fraction: share of frames whose motion could not be trusted; their samples are NaN in every trace.
        template_correlation: median correlation of the corrected frames with the template.
        motion_measured_fraction: share of frames whose motion stands out of noise; that of others is interpolated, or left as none.
        motion_pooled: frames averaged for one measurement of motion; 0 where no motion could be measured.
        shift_rms: root mean square of the rigid shifts about their mean, pixels (both axes together).
        largest_shift: largest shift of a frame that is not flagged, pixels.
        largest_shift_share: the same over the shorter side of the field.
        residual_motion: what correction left over, root mean square between stretches of time, pixels an axis.
        depth_drift: how much less the end of the recording looks like its beginning than neighbouring parts like each other (0 to 1): what
            a change of depth does, beside other lasting changes; zero where it cannot be told.
        raster_phase: shift of the odd lines against the even ones that was undone, pixels.
        crispness_before: norm of the gradient of the mean image before motion correction.
        crispness_after: the same after it.
        bleaching: brightness (above that without light) lost over the recording, a share of that at its start.
        photons: photons a pixel and frame, from the line through variance against mean.
        gain: counts a photon, its slope.
        saturated_fraction: share of the pixels that reach the brightest value of all, within the sampled frames.
    """

    model_config = ConfigDict(frozen=True)

    frames: int
    flagged_fraction: float
    template_correlation: float
    motion_measured_fraction: float = 1.0
    motion_pooled: int = 1
    shift_rms: float
    largest_shift: float
    largest_shift_share: float = 0.0
    residual_motion: float = 0.0
    depth_drift: float = 0.0
    raster_phase: float
    crispness_before: float
    crispness_after: float
    bleaching: float
    photons: float
    gain: float = 0.0
    saturated_fraction: float

    @property
    def crispness_gain(self) -> float:
        """Crispness after motion correction over that before; 1 where there was none before."""
        return self.crispness_after / self.crispness_before if self.crispness_before > 0 else 1.0


class PlaneMetrics(MotionMetrics):
    """Measurements of one extracted plane, likewise finite.

    Attributes:
        cells: cells found.
        kept_cells: cells kept.
        median_snr: median signal-to-noise of the kept cells (see `PlaneExtraction.snr`).
        median_noise: median noise of the kept cells' dF/F, a standard deviation within a frame.
        median_neuropil_coefficient: part of the neuropil that was subtracted from the kept cells, median.
    """

    cells: int
    kept_cells: int
    median_snr: float
    median_noise: float
    median_neuropil_coefficient: float = 0.0


class QualityGates(BaseModel):
    """Thresholds of the quality gates of a plane; see `PlaneMetrics` for what is measured.

    Attributes:
        flagged_fraction: at most; likewise `largest_shift_share`, `residual_motion` (px), `depth_drift`, `bleaching` and
            `saturated_fraction`.
        template_correlation: at least; likewise `crispness_gain`, `photons`, `kept_cells` and `median_snr`.
    """

    model_config = ConfigDict(frozen=True)

    flagged_fraction: float = 0.2
    template_correlation: float = 0.1
    largest_shift_share: float = 0.25
    residual_motion: float = 0.5
    depth_drift: float = 0.5
    crispness_gain: float = 0.9
    photons: float = 0.02
    bleaching: float = 0.6
    saturated_fraction: float = 0.05
    kept_cells: int = 1
    median_snr: float = 1.5


class GateResult(BaseModel):
    """One gate: what was measured, what was asked for, and whether that was met."""

    model_config = ConfigDict(frozen=True)

    name: str
    measured: float
    threshold: float
    at_most: bool

    @property
    def passed(self) -> bool:
        """Whether the measurement is on the right side of the threshold."""
        return self.measured <= self.threshold if self.at_most else self.measured >= self.threshold

    @property
    def asked(self) -> str:
        """ "at most 0.2"."""
        return f"at {'most' if self.at_most else 'least'} {self.threshold:.3g}"

    @property
    def verdict(self) -> str:
        """ "passed", or by how much it failed."""
        return "passed" if self.passed else f"**{abs(self.measured - self.threshold):.3g} {'too much' if self.at_most else 'too little'}**"

    def __str__(self) -> str:
        text = f"{self.name} is {self.measured:.3g}, must be {self.asked}"
        return text if self.passed else f"{text} ({self.verdict.strip('*')})"


AT_MOST = ("flagged_fraction", "largest_shift_share", "residual_motion", "depth_drift", "bleaching", "saturated_fraction")


def judge(metrics: PlaneMetrics, gates: QualityGates = QualityGates()) -> list[GateResult]:
    """Compare a plane's metrics with the gates, every gate in a fixed order."""
    return [
        GateResult(name=name, measured=getattr(metrics, name), threshold=getattr(gates, name), at_most=name in AT_MOST)
        for name in QualityGates.model_fields
    ]
