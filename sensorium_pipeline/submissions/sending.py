"""The participant's side of the inbox: submit, withdraw, choose, and see what became of it.

Everything is checked here first, so that a mistake costs a sentence and not a day; what counts is what the organisers find when they
take it in, by the same rules.
"""

import hmac
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from sensorium_pipeline.errors import InputError, SubmissionError
from sensorium_pipeline.sessions.phases import Phase, dates_of, phase_at
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.storage import FileEntry, Manifest, Series, Workspace, digest_of, digest_of_file, write_files
from sensorium_pipeline.submissions.inbox import (
    REQUESTS,
    SUBMISSIONS,
    Request,
    SignedRequest,
    SignedStatement,
    Standing,
    Standings,
    Statement,
    read_event,
    standings_series,
)
from sensorium_pipeline.submissions.package import DESCRIPTION, TRACKS, Track, load_submission, submission_files
from sensorium_pipeline.submissions.teams import Token

Action = Literal["withdraw", "choose"]
UNCHARGED = ("refused", "platform failed")


class Sent(BaseModel):
    """A submission in the inbox, as its team sees it; `duplicate` where the same content was sent before, and this is that one."""

    team: str
    track: Track
    number: int
    name: str
    digest: str
    release: str
    phase: str
    at: datetime
    duplicate: bool = False

    @property
    def identifier(self) -> str:
        """Short and unique in a workspace: `team/track/number`."""
        return f"{self.team}/{self.track}/{self.number}"


def submit(workspace: Workspace, release: Release, folder: Path, token: Token, track: str, now: datetime | None = None) -> Sent:
    """Check a submission and put it into the inbox, signed; the same content again changes nothing and costs nothing.

    Args:
        workspace: needs its inbox store.
        release: the competition.
        folder: the submission.
        token: of the team.
        track: "sensorium" or "sensorium+".
        now: left out, this moment.

    Raises:
        InputError: the track is unknown, no phase takes submissions now, or today's quota is used.
        SubmissionError: the submission is not valid, or is for the other track.
    """
    moment = now or datetime.now(UTC)
    known = known_track(track)
    submission = load_submission(folder)
    if submission.track not in (None, known):
        advice = f"Submit it to {submission.track}, or change the field"
        raise SubmissionError(f"it is for {submission.track}, not for {known}", where=f"{folder / DESCRIPTION}, track", advice=advice)
    if submission.team not in (None, token.team):
        advice = f"Use the token of {submission.team}, or change the field"
        raise SubmissionError(f"it is team {submission.team}'s, not {token.team}'s", where=f"{folder / DESCRIPTION}, team", advice=advice)
    if known not in release.tracks:
        advice = f"It has {', '.join(release.tracks)}"
        raise InputError(f"the release has no track {known}", where=f"release {release.name}", advice=advice)
    files = {name: folder / name for name in submission_files(folder)}
    digest = _digest(files)
    sent = _sent_before(workspace, release, token, known)
    for before in sent:
        if before.digest == digest and before.state != "refused":
            return Sent(
                team=token.team, track=known, number=before.number, name=submission.name, digest=digest, release=release.name,
                phase="", at=before.at, duplicate=True,
            )  # fmt: skip
    phase = phase_at(release.phases, moment)
    if token.kind == "team":
        if phase is None:
            advice = f"Its phases: {dates_of(release.phases)}"
            raise InputError("no submissions are taken now", where=f"release {release.name}", advice=advice)
        _check_quota(sent, phase, moment, token.team, known)
    statement = Statement(release=release.name, team=token.team, track=known, digest=digest, at=moment)
    write_files(workspace.inbox, dict(files))
    series = Series(workspace.inbox, f"{SUBMISSIONS}/{token.team}/{known}")
    number = series.append(SignedStatement(statement=statement, token=token.number, signature=token.sign(statement)))
    if token.kind == "team" and phase is not None:
        # Two that were sent at the same moment both found room; the first in the series has it.
        earlier = [one for one in _sent_before(workspace, release, token, known) if one.number < number]
        _check_quota(earlier, phase, moment, token.team, known)
    return Sent(
        team=token.team, track=known, number=number, name=submission.name, digest=digest, release=release.name,
        phase=phase.name if phase else "", at=moment,
    )  # fmt: skip


def request(workspace: Workspace, release: Release, identifier: str, action: Action, token: Token, now: datetime | None = None) -> Request:
    """Ask, signed, to withdraw a submission or to let it count on the final tier; it holds from the next evaluation on.

    Args:
        workspace: needs its inbox store.
        release: the competition.
        identifier: `team/track/number`, one of the team's own.
        action: "withdraw" or "choose".
        token: of the team.
        now: left out, this moment.

    Raises:
        InputError: it is not one of the team's submissions, was refused or withdrawn, or final scores are shown already.
    """
    team, _, rest = identifier.partition("/")
    track, _, number = rest.partition("/")
    if team != token.team:
        raise InputError(f"the token is team {token.team}'s", where=identifier, advice="A team can change its own submissions only")
    known = known_track(track)
    sent = _sent_before(workspace, release, token, known)
    found = next((one for one in sent if str(one.number) == number), None)
    if found is None:
        listed = ", ".join(f"{team}/{known}/{one.number}" for one in sent) or "none"
        raise InputError("the team sent no such submission", where=identifier, advice=f"It sent: {listed}")
    if found.state in ("refused", "withdrawn"):
        raise InputError(f"it was {found.state} before", where=identifier, advice=found.reason or "Name another one")
    if action == "choose" and all(phase.final_opened is not None for phase in release.phases):
        raise InputError("final scores are shown already", where=identifier, advice="What counts could be chosen until then")
    statement = Request(release=release.name, team=token.team, track=known, digest=found.digest, at=now or datetime.now(UTC), action=action)
    signed = SignedRequest(statement=statement, token=token.number, signature=token.sign(statement))
    Series(workspace.inbox, f"{REQUESTS}/{token.team}/{known}").append(signed)
    return statement


class SentBefore(Standing):
    """A submission of the team, and what it knows of it; `at` by its own clock."""

    track: Track
    at: datetime


def list_sent(workspace: Workspace, release: Release, token: Token) -> list[SentBefore]:
    """All submissions of the token's team to a release, by track and number, with what became of each."""
    return [sent for track in TRACKS for sent in _sent_before(workspace, release, token, track)]


def known_track(track: str) -> Track:
    """The track of this name; `InputError` naming those there are where it is not among them."""
    for known in TRACKS:
        if track == known:
            return known
    raise InputError(f"unknown track {track[:40]!r}", where="track", advice=f"Choose one of {', '.join(TRACKS)}")


def _check_quota(sent: list[SentBefore], phase: Phase, moment: datetime, team: str, track: str) -> None:
    today = [one for one in sent if one.state not in UNCHARGED and phase.day(one.at) == phase.day(moment)]
    failed = sum(one.state == "failed" for one in today)
    if len(today) >= phase.per_day + min(failed, phase.failed_per_day):
        names = ", ".join(f"{team}/{track}/{one.number}" for one in today)
        raise InputError(
            f"team {team} has used its {phase.per_day} submission{'s' if phase.per_day > 1 else ''} of {phase.day(moment)} to {track}",
            where=names,
            advice=f"The next day begins at {phase.next_day(moment):%Y-%m-%d %H:%M} {phase.time_zone}; a failure of the platform is "
            f"given back, and of your own failures {phase.failed_per_day} a day, once it was evaluated",
        )


def _sent_before(workspace: Workspace, release: Release, token: Token, track: Track) -> list[SentBefore]:
    """What this token's team sent; what others wrote in its name is left out, as the token's own signature tells."""
    latest = standings_series(workspace.open, release.name, token.team, track).latest(Standings)
    standings = {entry.number: entry for entry in latest[1].entries} if latest else {}
    series = Series(workspace.inbox, f"{SUBMISSIONS}/{token.team}/{track}")
    found = []
    for number in series.numbers():
        signed = read_event(workspace.inbox, f"{series.name}/{number:06d}.json", SignedStatement)
        if signed is None:
            continue
        statement = signed.statement
        # A former token of the team cannot be checked here; what it signed is known once it was taken in.
        own = number in standings or hmac.compare_digest(token.sign(statement).encode(), signed.signature.encode(errors="replace"))
        if not own or (statement.release, statement.team, statement.track) != (release.name, token.team, track):
            continue
        state = standings.get(number, Standing(number=number, digest=statement.digest, state="waiting"))
        found.append(SentBefore(**state.model_dump(), track=track, at=statement.at))
    return found


def _digest(files: dict[str, Path]) -> str:
    """The digest that the store will give to the files."""
    entries = [FileEntry(path=name, size=path.stat().st_size, sha256=digest_of_file(path)) for name, path in sorted(files.items())]
    return digest_of(Manifest(kind="files", files=tuple(entries)))
