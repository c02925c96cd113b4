"""Starters that need no training of a network, in the real sandbox: the floor of the ranking, and features with a fitted readout."""

from pathlib import Path

import numpy as np
import pytest
from submission_samples import small_session

from sensorium_pipeline.submissions.package import new_submission
from sensorium_pipeline.submissions.run import predict_images, run_submission
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits
from sensorium_pipeline.submissions.staging import stage_sessions

LIMITS = Limits(wall_seconds=200, memory_bytes=4 * 1024**3)


@pytest.mark.parametrize("template", ["mean", "features"])
def test_runs_and_serves_as_a_twin(tier: IsolationTier, tmp_path: Path, template: str) -> None:
    stage_sessions([small_session("static4-1-1", 4, seed=4, image_shape=(18, 24))], "sensorium", tmp_path / "staged")
    new_submission(tmp_path / "mine", template)
    outcome = run_submission(tmp_path / "mine", tmp_path / "staged", "sensorium", 0, tmp_path / "out", LIMITS)
    assert outcome.failure is None
    assert outcome.trained
    images = np.random.default_rng(0).uniform(0, 255, (3, 18, 24))
    state = tmp_path / "out" / "state.npz"
    responses = predict_images(tmp_path / "mine", state, tmp_path / "staged", "static4-1-1", images, limits=LIMITS)
    assert responses.shape == (3, 4)
    assert (np.ptp(responses, axis=0) == 0).all() == (template == "mean")


def test_bad_features_are_the_participants_mistake(tier: IsolationTier, tmp_path: Path) -> None:
    stage_sessions([small_session("static4-1-1", 4, seed=4)], "sensorium", tmp_path / "staged")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "submission.toml").write_text('name = "Half"\nentry_point = "model:build"\n')
    network = "class Half:\n    def features(self, images):\n        return images[::2].reshape(-1, 2)\n\n"
    (tmp_path / "mine" / "model.py").write_text(network + "def build(context):\n    return Half()\n")
    outcome = run_submission(tmp_path / "mine", tmp_path / "staged", "sensorium", 0, tmp_path / "out", LIMITS)
    assert outcome.failure is not None
    assert outcome.failure.error == "SubmissionError"
    assert "features" in outcome.failure.problem
    assert "images, channels, y, x" in outcome.failure.advice
