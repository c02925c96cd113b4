"""A workspace with a release, and a way to send small submissions to it: for the tests of the inbox and of its rules."""

import os
from datetime import UTC, datetime
from pathlib import Path

from submission_samples import write_submission

from sensorium_pipeline.evaluation import EvaluationRecord
from sensorium_pipeline.prediction_runs import PredictionRecord
from sensorium_pipeline.sessions.release import Release, ReleasedSession
from sensorium_pipeline.storage import Series, Workspace
from sensorium_pipeline.submissions.inbox import SignedStatement, Statement, SubmissionRecord, list_decisions
from sensorium_pipeline.submissions.outcome import Failure, RunOutcome
from sensorium_pipeline.submissions.sending import Sent, submit
from sensorium_pipeline.submissions.teams import Token

BUILD = "def build(context):\n    pass\n"
NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)
SESSIONS = (
    ReleasedSession(name="1-1-1", role="competition", track="sensorium", open_digest="1"),
    ReleasedSession(name="2-1-1", role="competition", track="sensorium+", open_digest="2"),
)


class Post:
    """Sends small submissions, each with content of its own, and lets the store receive them at the moment they were sent."""

    def __init__(self, workspace: Workspace, release: Release, folder: Path) -> None:
        self.workspace, self.release, self.folder = workspace, release, folder
        self.count = 0

    def send(self, token: Token, at: datetime = NOON, track: str = "sensorium", text: str | None = None) -> Sent:
        self.count += 1
        folder = write_submission(self.folder / str(self.count), text or f"{BUILD}# {self.count}\n")
        sent = submit(self.workspace, self.release, folder, token, track, at)
        if not sent.duplicate:
            self.received(f"submissions/{sent.identifier}", at)
        return sent

    def received(self, event: str, at: datetime) -> None:
        head, _, number = event.rpartition("/")
        path = Path(self.workspace.inbox.url.removeprefix("file://")) / head / f"{int(number):06d}.json"
        os.utime(path, (at.timestamp(), at.timestamp()))

    def forge(self, team: str, statement: Statement, signature: str, number: int = 1) -> None:
        """What anybody with write access to the inbox could put there."""
        series = Series(self.workspace.inbox, f"submissions/{team}/{statement.track}")
        self.received(f"{series.name}/{series.append(SignedStatement(statement=statement, token=number, signature=signature))}", NOON)


def reasons(workspace: Workspace) -> dict[str, str]:
    return {decision.identifier: decision.reason for decision in list_decisions(workspace)}


def finish(workspace: Workspace, release: Release, record: SubmissionRecord, failed: bool) -> None:
    """An evaluation that ended, as rankings and quotas see it."""
    failure = Failure(error="SubmissionError", fault="participant", problem="it broke", where="", advice="") if failed else None
    outcome = RunOutcome(status="failed" if failed else "finished", failure=failure, seed=0, tier="none needed")
    run = PredictionRecord(outcome=outcome, device_class="cpu")
    evaluation = EvaluationRecord(identifier=record.identifier, submission_digest=record.digest, inputs_digest="", runs=(run,))
    Series(workspace.sealed, f"evaluations/{release.name}/{record.identifier}").append(evaluation)
