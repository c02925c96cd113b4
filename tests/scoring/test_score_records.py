"""A score record never holds a number that is not one, and never lacks what it was computed from."""

import pytest
from pydantic import ValidationError

from sensorium_pipeline.scoring import METRIC_VERSION, Metrics, ScoreRecord, primary_metric

KNOWN = {"submission_digest": "ab", "track": "sensorium", "session": "static1-1-1", "tier": "test", "open_digest": "cd"}


def test_undefined_numbers_survive_json_as_undefined():
    record = ScoreRecord(
        **KNOWN,
        predictions_digest="ef",
        metric_version=METRIC_VERSION,
        metrics=Metrics(single_trial_correlation=0.3, correlation_to_average=float("nan"), feve=float("inf")),
    )
    assert record.metrics == Metrics(single_trial_correlation=0.3)
    assert ScoreRecord.model_validate_json(record.model_dump_json()) == record


def test_a_score_without_provenance_or_a_failure_without_a_reason_is_no_record():
    with pytest.raises(ValidationError, match="metric version"):
        ScoreRecord(**KNOWN)
    with pytest.raises(ValidationError, match="needs a reason"):
        ScoreRecord(**KNOWN, status="failed")
    assert ScoreRecord(**KNOWN, status="failed", reason="It crashed.").metrics.single_trial_correlation is None


def test_each_track_has_its_metric():
    assert primary_metric("sensorium") == "correlation_to_average"
    assert primary_metric("sensorium+") == "single_trial_correlation"
