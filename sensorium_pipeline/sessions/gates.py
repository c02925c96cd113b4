"""Quality gates: what a session must measure up to before anything of it is published."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import QualityGateError
from sensorium_pipeline.imaging.extraction import PlaneExtraction
from sensorium_pipeline.imaging.quality import QualityGates, judge
from sensorium_pipeline.sessions.trials import AlignedTrials


class SessionGates(BaseModel):
    """Thresholds of the quality gates.

    Attributes:
        plane: of every plane.
        largest_shift: largest rigid shift of a plane, as a share of the shorter edge of its image.
        crispness_gain: crispness of a plane's mean image after motion correction over that before it.
        neurons: neurons released.
        kept_trials: share of the presentations that are released.
        training_trials: released trials for training; likewise `validation_trials`.
        test_repeats: fewest released repeats of a test image; with one alone its noise is unknown.
    """

    model_config = ConfigDict(frozen=True)

    plane: QualityGates = QualityGates()
    largest_shift: float = 0.25
    crispness_gain: float = 0.9
    neurons: int = 1
    kept_trials: float = 0.7
    training_trials: int = 10
    validation_trials: int = 2
    test_repeats: int = 2


class GateResult(BaseModel):
    """One gate: what was measured, what was asked for, and a sentence that says both."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: float
    threshold: float
    passed: bool
    message: str


def session_gates(planes: Sequence[PlaneExtraction], trials: AlignedTrials, gates: SessionGates) -> list[GateResult]:
    """Every gate of a session in a fixed order, planes first."""
    results = []
    for index, plane in enumerate(planes):
        where = f"plane {index}: "
        results += [_gate(where + gate.name, gate.measured, gate.threshold, gate.at_most) for gate in judge(plane.metrics, gates.plane)]
        edge = min(plane.mean_after.shape)
        results.append(_gate(where + "largest_shift", plane.metrics.largest_shift / edge, gates.largest_shift, True))
        before = plane.metrics.crispness_before
        gain = plane.metrics.crispness_after / before if before > 0 else 1.0
        results.append(_gate(where + "crispness_gain", gain, gates.crispness_gain, False))
    kept = trials.kept
    results.append(_gate("neurons", sum(int(plane.kept.sum()) for plane in planes), gates.neurons, False))
    results.append(_gate("kept_trials", float(kept.mean()) if len(kept) else 0.0, gates.kept_trials, False))
    for tier, least in (("train", gates.training_trials), ("validation", gates.validation_trials)):
        results.append(_gate(f"{tier} trials", int((kept & (trials.tier == tier)).sum()), least, False))
    for tier in ("test", "final_test"):
        shown = trials.tier == tier
        if shown.any():
            fewest = min(int((kept & (trials.image_id == image)).sum()) for image in np.unique(trials.image_id[shown]))
            results.append(_gate(f"{tier} repeats", fewest, gates.test_repeats, False))
    return results


def refuse_failed(session: str, results: Sequence[GateResult], report: str) -> None:
    """Raise `QualityGateError` naming every gate that failed and by how much; `report` says where the quality report lies."""
    failed = [result.message for result in results if not result.passed]
    if failed:
        raise QualityGateError(
            "; ".join(failed), where=f"session {session}", advice=f"Nothing of it was published; the quality report is {report}."
        )


def _gate(name: str, value: float, threshold: float, at_most: bool) -> GateResult:
    passed = bool(value <= threshold if at_most else value >= threshold)
    text = f"{name} is {value:.3g}, must be {'at most' if at_most else 'at least'} {threshold:.3g}"
    if not passed:
        text += f" ({abs(value - threshold):.3g} {'too much' if at_most else 'too little'})"
    return GateResult(name=name, value=float(value), threshold=float(threshold), passed=passed, message=text)
