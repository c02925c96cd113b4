"""Submissions to be held against a release: which there are, in which order they are run, and by what key each is known."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.environment import environment_digest
from sensorium_pipeline.errors import InputError
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.storage import Workspace, digest_of
from sensorium_pipeline.submissions.inbox import SubmissionRecord, list_submissions

DeviceClass = Literal["cpu", "cuda"]


class Job(BaseModel):
    """One submission to be held against one release."""

    model_config = ConfigDict(frozen=True)

    submission: SubmissionRecord
    release: Release
    device_class: DeviceClass = "cpu"

    @property
    def identifier(self) -> str:
        """The submission's `team/track/number`."""
        return self.submission.identifier

    @property
    def track(self) -> str:
        """Track of the submission."""
        return self.submission.track

    def data(self) -> dict[str, str]:
        """Sessions it trains on or is scored on, name -> digest of the open part."""
        return {session.name: session.open_digest for session in self.release.training_sessions(self.track)}

    def prediction_key(self, seed: int) -> str:
        """Key of the predictions with one seed."""
        inputs = {
            "submission": self.submission.digest,
            "track": self.track,
            "data": self.data(),
            "scored": [session.name for session in self.release.competition_sessions(self.track)],
            "seed": seed,
        }
        if self.submission.has_code:
            inputs |= {"environment": environment_digest(), "device": self.device_class}
        return f"predictions/{digest_of(inputs)}"


def list_jobs(workspace: Workspace, release: Release, device_class: DeviceClass = "cpu", only: Sequence[str] = ()) -> list[Job]:
    """Every submission to the release that was taken in and not withdrawn, or those that `only` names.

    Args:
        workspace: needs its sealed store.
        release: says which tracks there are.
        device_class: what they are to be computed on.
        only: identifiers, teams, or digests' beginnings.

    Raises:
        InputError: a name of `only` fits no submission.
    """
    records = [record for record in list_submissions(workspace, release.name) if record.track in release.tracks]
    for name in only:
        if not any(_is_named(record, name) for record in records):
            known = ", ".join(record.identifier for record in records) or "none"
            raise InputError("no submission of this name", where=name, advice=f"There are: {known}.")
    return [
        Job(submission=record, release=release, device_class=device_class)
        for record in records
        if not only or any(_is_named(record, name) for name in only)
    ]


def find_job(workspace: Workspace, release: Release, name: str) -> Job:
    """The one submission of this name.

    Raises:
        InputError: none, or several.
    """
    found = list_jobs(workspace, release, only=[name])
    if len(found) > 1:
        names = ", ".join(job.identifier for job in found)
        raise InputError("several submissions of this name", where=name, advice=f"Name one of {names}.")
    return found[0]


def in_fair_order(jobs: Sequence[Job]) -> list[tuple[int, Job]]:
    """Jobs with their turns, as they are to be run: the first of every team, then the second of every team, and so on.

    A team's own are in the order in which they arrived; teams are in the order in which their first arrived, in every turn.
    """
    of_team: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: (job.submission.submitted_at, job.identifier)):
        of_team.setdefault(job.submission.team, []).append(job)
    turns = max(map(len, of_team.values()), default=0)
    return [(turn, own[turn]) for turn in range(turns) for own in of_team.values() if turn < len(own)]


def _is_named(record: SubmissionRecord, name: str) -> bool:
    return bool(name) and (name in (record.identifier, record.team, f"{record.team}/{record.name}") or record.digest.startswith(name))
