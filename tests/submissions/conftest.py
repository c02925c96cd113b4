"""Staged sessions, and a way to run a few lines of Python as a submission."""

from pathlib import Path

import pytest
from submission_samples import SMALL, Run, small_session, write_submission

from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.outcome import RunOutcome
from sensorium_pipeline.submissions.run import run_submission
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits
from sensorium_pipeline.submissions.staging import StagedSession, stage_sessions


@pytest.fixture(scope="session")
def sessions() -> list[StagedSession]:
    return [small_session("static1-1-1", 5, seed=1), small_session("static2-1-1", 3, seed=2)]


@pytest.fixture(scope="session")
def staged(sessions: list[StagedSession], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "sensorium"
    stage_sessions(sessions, "sensorium", folder)
    return folder


@pytest.fixture(scope="session")
def tier() -> IsolationTier:
    isolation = probe_isolation()
    if isolation.tier is IsolationTier.REFUSE:
        pytest.skip(f"no isolation here: {'; '.join(isolation.reasons)}")
    return isolation.tier


@pytest.fixture
def run(tmp_path: Path, staged: Path, tier: IsolationTier) -> Run:
    """Run Python as a submission: `run(code, limits=SMALL)`; what it leaves lies in tmp_path/out."""

    def runner(code: str, limits: Limits = SMALL, **options: object) -> RunOutcome:
        folder = write_submission(tmp_path / "submission", code)
        return run_submission(folder, staged, "sensorium", 0, tmp_path / "out", limits, **options)  # type: ignore[arg-type]

    return runner
