"""Quality gates: what a session must measure up to before anything of it is published."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import QualityGateError
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.imaging.quality import GateResult, QualityGates, judge
from sensorium_pipeline.sessions.trials import AlignedTrials


class SessionGates(BaseModel):
    """Thresholds of the quality gates.

    Attributes:
        plane: of every plane.
        neurons: neurons released.
        kept_trials: share of the presentations that are released.
        training_trials: released trials for training; likewise `validation_trials`.
        test_repeats: fewest released repeats of a test image; with one alone its noise is unknown.
    """

    model_config = ConfigDict(frozen=True)

    plane: QualityGates = QualityGates()
    neurons: int = 1
    kept_trials: float = 0.7
    training_trials: int = 10
    validation_trials: int = 2
    test_repeats: int = 2


def session_gates(planes: Sequence[PlaneExtraction], trials: AlignedTrials, gates: SessionGates) -> list[GateResult]:
    """Every gate of a session in a fixed order, planes first."""
    results = []
    for index, plane in enumerate(planes):
        results += [gate.model_copy(update={"name": f"plane {index}: {gate.name}"}) for gate in judge(plane.metrics, gates.plane)]
    kept = trials.kept
    results.append(_gate("neurons", sum(int(plane.kept.sum()) for plane in planes), gates.neurons))
    results.append(_gate("kept_trials", float(kept.mean()) if len(kept) else 0.0, gates.kept_trials))
    for tier, least in (("train", gates.training_trials), ("validation", gates.validation_trials)):
        results.append(_gate(f"{tier} trials", int((kept & (trials.tier == tier)).sum()), least))
    for tier in ("test", "final_test"):
        shown = trials.tier == tier
        if shown.any():
            fewest = min(int((kept & (trials.image_id == image)).sum()) for image in np.unique(trials.image_id[shown]))
            results.append(_gate(f"{tier} repeats", fewest, gates.test_repeats))
    return results


def refuse_failed(session: str, results: Sequence[GateResult], report: str) -> None:
    """Raise `QualityGateError` naming every gate that failed and by how much; `report` says where the quality report lies."""
    failed = [str(result) for result in results if not result.passed]
    if failed:
        raise QualityGateError(
            "; ".join(failed), where=f"session {session}", advice=f"Nothing of it was published; the quality report is {report}."
        )


def _gate(name: str, measured: float, threshold: float) -> GateResult:
    return GateResult(name=name, measured=float(measured), threshold=float(threshold), at_most=False)
