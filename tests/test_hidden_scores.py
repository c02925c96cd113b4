"""Scores on the hidden tiers are kept by what they were computed from; a new metric computes them again, and runs no model."""

from pathlib import Path

import pytest
from small_world import RELEASE, SENSORIUM, World, send, true_predictions, write_file_submission

from sensorium_pipeline import evaluation, hidden_scores
from sensorium_pipeline.evaluation import is_current
from sensorium_pipeline.hidden_scores import read_scores, score
from sensorium_pipeline.intake import take_in
from sensorium_pipeline.jobs import find_job
from sensorium_pipeline.prediction_runs import predict
from sensorium_pipeline.sessions.release import read_release


def test_a_new_metric_scores_stored_predictions_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = world.copy(tmp_path / "copy").workspace
    path = write_file_submission(tmp_path / "file", "File", SENSORIUM, true_predictions(workspace, SENSORIUM, 1.0))
    send(workspace, path, "team", "sensorium")
    take_in(workspace)
    job = find_job(workspace, read_release(workspace.open, RELEASE), "team/sensorium/1")
    runs = [predict(workspace, job, 0)]
    before = score(workspace, job, runs)
    assert is_current(workspace, job)
    assert score(workspace, job, runs) == before
    for module in (evaluation, hidden_scores):
        monkeypatch.setattr(module, "METRIC_VERSION", "next")
    assert not is_current(workspace, job)
    after = score(workspace, job, runs)
    assert is_current(workspace, job)
    assert after.runs == before.runs
    for tier in ("test", "final_test"):
        (old,), (new,) = read_scores(workspace, before, tier), read_scores(workspace, after, tier)
        assert new.record.metric_version == "next" != old.record.metric_version
        assert new.record.metrics == old.record.metrics
