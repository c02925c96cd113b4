"""The inbox: submissions as sent, kept under their digest, and an event for each in its team's series."""

import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from sensorium_pipeline.errors import InputError, SubmissionError
from sensorium_pipeline.storage import Series, Workspace, download_files, write_files
from sensorium_pipeline.submissions.package import DESCRIPTION, TRACKS, Track, load_submission, submission_files

TEAM = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class SubmissionEvent(BaseModel):
    """What is stored when a submission is taken in.

    Attributes:
        digest: of the submission's files in the inbox store.
        has_code: whether it needs a sandbox; otherwise it is a predictions file.
        seeds: one evaluation each; a predictions file has one.
    """

    team: str
    track: Track
    name: str
    digest: str
    has_code: bool
    seeds: list[int]
    submitted_at: datetime


class SubmissionRecord(SubmissionEvent):
    """A submission in the inbox.

    Attributes:
        number: of the event in the series of the team and track.
        duplicate: the same content was there already, and this is the record of the first time.
    """

    number: int
    duplicate: bool = False

    @property
    def identifier(self) -> str:
        """Short and unique in a workspace: `team/track/number`."""
        return f"{self.team}/{self.track}/{self.number}"


def submit(workspace: Workspace, folder: Path, team: str, track: str) -> SubmissionRecord:
    """Check a submission and put it into the inbox; the same content again gives the record of the first time.

    Raises:
        InputError: the team's name or the track is not usable.
        SubmissionError: the submission is not valid, or is for the other track.
    """
    if not TEAM.fullmatch(team):
        raise InputError(
            f"{team[:60]!r} is no name for a team",
            where="team",
            advice="Use small letters, digits, - and _, beginning with a letter or digit, at most 40",
        )
    known = next((name for name in TRACKS if name == track), None)
    if known is None:
        raise InputError(f"unknown track {track[:40]!r}", where="track", advice=f"Choose one of {', '.join(TRACKS)}")
    submission = load_submission(folder)
    if submission.track not in (None, known):
        advice = f"Submit it to {submission.track}, or change the field"
        raise SubmissionError(f"it is for {submission.track}, not for {known}", where=f"{folder / DESCRIPTION}, track", advice=advice)
    digest = write_files(workspace.inbox, {name: folder / name for name in submission_files(folder)}).digest
    event = SubmissionEvent(
        team=team,
        track=known,
        name=submission.name,
        digest=digest,
        has_code=submission.entry_point is not None,
        seeds=submission.seeds if submission.entry_point is not None else [0],
        submitted_at=datetime.now(UTC),
    )
    events = Series(workspace.inbox, _series(team, known))
    earlier = [old for old in _numbered(events) if old.digest == digest]
    if earlier:
        return earlier[0].model_copy(update={"duplicate": True})
    return _record(events.append(event), event)


def list_submissions(workspace: Workspace) -> list[SubmissionRecord]:
    """All submissions, by team, track and number; of equal content of one team and track only the first."""
    found: list[SubmissionRecord] = []
    for team in workspace.inbox.list("submissions"):
        for track in TRACKS:
            seen: set[str] = set()
            for record in _numbered(Series(workspace.inbox, _series(team, track))):
                # Two uploads of the same content at the same moment both find nothing earlier.
                if record.digest not in seen:
                    seen.add(record.digest)
                    found.append(record)
    return found


def fetch_submission(workspace: Workspace, record: SubmissionRecord, folder: Path) -> None:
    """Copy a submission's files out of the inbox into a fresh folder."""
    download_files(workspace.inbox, record.digest, folder)


def _series(team: str, track: str) -> str:
    return f"submissions/{team}/{track}"


def _numbered(events: Series) -> list[SubmissionRecord]:
    return [_record(number, event) for number, event in events.all(SubmissionEvent)]


def _record(number: int, event: SubmissionEvent) -> SubmissionRecord:
    return SubmissionRecord(**event.model_dump(), number=number)
