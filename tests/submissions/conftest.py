"""Staged sessions, a way to run a few lines of Python as a submission, and an inbox to send it to."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from small_inbox import NOON, SESSIONS, Post
from submission_samples import GOOD, SMALL, Attack, Run, small_session, write_submission

from sensorium_pipeline.sessions.phases import Phase
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Series, Workspace, open_workspace
from sensorium_pipeline.submissions.control_groups import MOUNT
from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.outcome import RunOutcome
from sensorium_pipeline.submissions.run import run_submission
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits
from sensorium_pipeline.submissions.staging import StagedSession, stage_sessions
from sensorium_pipeline.submissions.teams import Token, add_team, parse_token


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


@pytest.fixture
def attack(run: Run) -> Attack:
    """Run hostile code; afterwards a good submission must still finish, and nothing of the attack may be left running."""

    def attacker(code: str, limits: Limits = SMALL) -> RunOutcome:
        outcome = run(code, limits)
        assert run(GOOD).status == "finished"
        assert not [group for group in MOUNT.glob(f"**/sensorium-{os.getpid()}-*") if group.is_dir()]
        return outcome

    return attacker


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty one."""
    return open_workspace(Settings(root=str(tmp_path / "workspace")))


@pytest.fixture
def release(workspace: Workspace) -> Release:
    """One submission a day and two failures, by the clock of Berlin; open in March 2027."""
    phase = Phase(
        opens=datetime(2027, 3, 1, tzinfo=UTC), closes=datetime(2027, 4, 1, tzinfo=UTC), time_zone="Europe/Berlin", failed_per_day=2
    )
    made = Release(name="2027", sessions=SESSIONS, phases=(phase,))
    Series(workspace.open, "releases/2027").append(made)
    return made


@pytest.fixture
def token(workspace: Workspace) -> Token:
    return parse_token(add_team(workspace.sealed, "lobe-lab", NOON))


@pytest.fixture
def post(workspace: Workspace, release: Release, tmp_path: Path) -> Post:
    return Post(workspace, release, tmp_path / "sent")
