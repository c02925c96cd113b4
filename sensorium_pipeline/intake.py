"""Taking in what teams sent: the one place where it is decided whether something in the inbox counts.

For each submission, in the order of its number: is it readable, signed by the team it names, whole and not too large; is it new; was a
phase taking submissions when the inbox store received it; and is there room in the day's quota. What is refused costs nobody's quota.
Places of a day are made by exclusive create, so two evaluations at once, or two submissions at once, never share one. Nothing here asks
the clock, so the same inbox is always decided in the same way.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from sensorium_pipeline.errors import InputError, PlatformError, SubmissionError
from sensorium_pipeline.evaluation import latest_evaluation
from sensorium_pipeline.jobs import Job
from sensorium_pipeline.sessions.phases import Phase, dates_of, phase_at
from sensorium_pipeline.sessions.release import Release, read_release
from sensorium_pipeline.storage import MissingObjectError, Series, Workspace, read_file
from sensorium_pipeline.submissions.inbox import (
    REQUESTS,
    SUBMISSIONS,
    Decision,
    Place,
    RequestDecision,
    SignedRequest,
    SignedStatement,
    Standing,
    Standings,
    State,
    Statement,
    SubmissionRecord,
    Waiting,
    check_files,
    decision_series,
    list_decisions,
    list_submissions,
    read_event,
    standings_series,
    waiting,
    withdrawals,
)
from sensorium_pipeline.submissions.package import DESCRIPTION, MOST_DESCRIPTION_BYTES, parse_description
from sensorium_pipeline.submissions.teams import read_team, why_not_signed

LONGEST_REASON = 400

S = TypeVar("S", SignedStatement, SignedRequest)


class _Holder(BaseModel):
    """Who has a place in a day's quota."""

    identifier: str


class _Fault(BaseModel):
    """The platform failed on a submission."""

    reason: str


class _Refused(Exception):
    """Why something does not count; never leaves this module."""


def take_in(workspace: Workspace) -> list[Decision | RequestDecision]:
    """Decide about everything in the inbox that was not decided yet, of every release; returns those decisions.

    Raises:
        PlatformError: a store failed; what was decided before is kept, and the next call goes on.
    """
    new: list[Decision | RequestDecision] = []
    for place in waiting(workspace, SUBMISSIONS):
        try:
            decision = _decide(workspace, place)
        except PlatformError as error:
            # One whose files are damaged must not stop the others; it stays undecided.
            new.append(_blank(place).model_copy(update={"reason": _undecided(error)}))
            continue
        series = decision_series(workspace.sealed, SUBMISSIONS, place.team, place.track)
        new.append(decision if series.create(place.number, decision) else series.read(place.number, Decision))
    for place in waiting(workspace, REQUESTS):
        try:
            about = _decide_request(workspace, place)
        except PlatformError as error:
            new.append(_blank_request(place).model_copy(update={"reason": _undecided(error)}))
            continue
        series = decision_series(workspace.sealed, REQUESTS, place.team, place.track)
        new.append(about if series.create(place.number, about) else series.read(place.number, RequestDecision))
    update_standings(workspace, {(each.team, each.track) for each in new})
    return new


def record_platform_failure(workspace: Workspace, record: SubmissionRecord, reason: str) -> None:
    """Note that the platform failed on a submission, so that it is charged to nobody."""
    Series(workspace.sealed, f"platform-failures/{record.identifier}").append(_Fault(reason=reason[:LONGEST_REASON]))


def state_of(workspace: Workspace, record: SubmissionRecord, release: Release) -> tuple[State, str]:
    """What became of a submission that was taken in, and why."""
    evaluation = latest_evaluation(workspace, Job(submission=record, release=release))
    if evaluation is not None and evaluation.runs:
        return ("failed", evaluation.failure) if evaluation.failure else ("scored", "")
    if evaluation is not None and evaluation.refusal:
        return "platform failed", evaluation.refusal
    fault = Series(workspace.sealed, f"platform-failures/{record.identifier}").latest(_Fault)
    return ("platform failed", fault[1].reason) if fault else ("accepted", "")


def update_standings(workspace: Workspace, places: Iterable[Place]) -> None:
    """Tell teams, for each team and track, what became of their submissions."""
    for place in sorted(set(places)):
        _update_standings(workspace, place)


def _update_standings(workspace: Workspace, place: Place) -> None:
    gone = withdrawals(workspace, place)
    known: dict[str, Release] = {}
    releases = set(workspace.open.list("releases"))
    entries: dict[str, list[Standing]] = {}
    for decision in list_decisions(workspace, place):
        record = decision.submission
        if record is None:
            # What it says may be no release at all.
            names = [decision.release] if decision.release in releases else []
            standing = Standing(number=decision.number, digest=decision.digest, state="refused", reason=decision.reason)
        else:
            names = [record.release]
            release = known.setdefault(record.release, read_release(workspace.open, record.release))
            state, reason = state_of(workspace, record, release)
            if record.key in gone:
                state, reason = "withdrawn", ""
            standing = Standing(number=decision.number, digest=record.digest, state=state, reason=reason)
        for name in names:
            entries.setdefault(name, []).append(standing)
    for name, found in entries.items():
        series, standings = standings_series(workspace.open, name, *place), Standings(entries=tuple(found))
        latest = series.latest(Standings)
        if latest is None or latest[1] != standings:
            series.append(standings)


def _blank(place: Waiting) -> Decision:
    return Decision(team=place.team, track=place.track, number=place.number, received=place.received)


def _blank_request(place: Waiting) -> RequestDecision:
    return RequestDecision(team=place.team, track=place.track, number=place.number, received=place.received)


def _undecided(error: PlatformError) -> str:
    return f"it could not be read, and is tried again: {error.problem}"


def _decide(workspace: Workspace, place: Waiting) -> Decision:
    decision = _blank(place)
    try:
        signed = _verified(workspace, place, read_event(workspace.inbox, place.path, SignedStatement))
        statement = signed.statement
        # From here on it is the team's own, so the team is told.
        decision = decision.model_copy(update={"release": statement.release, "digest": statement.digest, "at": statement.at})
        return decision.model_copy(update={"submission": _submission(workspace, place, statement)})
    except _Refused as why:
        return decision.model_copy(update={"reason": str(why)[:LONGEST_REASON]})


def _decide_request(workspace: Workspace, place: Waiting) -> RequestDecision:
    decision = _blank_request(place)
    try:
        signed = _verified(workspace, place, read_event(workspace.inbox, place.path, SignedRequest))
        request = signed.statement
        release = _release(workspace, request)
        same = [
            record for record in list_submissions(workspace, release.name, of=(place.team, place.track)) if record.digest == request.digest
        ]
        if not same:
            raise _Refused("the team has no such submission that was taken in and not withdrawn")
        phase = release.phase(same[0].phase)
        if request.action == "choose" and phase and phase.final_opened is not None and phase.final_opened <= place.received:
            raise _Refused("it was chosen after the final scores were shown")
        return decision.model_copy(update={"request": request})
    except _Refused as why:
        return decision.model_copy(update={"reason": str(why)[:LONGEST_REASON]})


def _verified(workspace: Workspace, place: Waiting, signed: S | None) -> S:
    if signed is None:
        raise _Refused("it is not a readable record")
    statement = signed.statement
    if (statement.team, statement.track) != (place.team, place.track):
        raise _Refused(f"it stands among those of {place.team}/{place.track}, and is of {statement.team}/{statement.track}")
    reason = why_not_signed(workspace.sealed, read_team(workspace.sealed, place.team), signed.token, statement, signed.signature)
    if reason:
        raise _Refused(reason)
    return signed


def _release(workspace: Workspace, statement: Statement) -> Release:
    try:
        release = read_release(workspace.open, statement.release)
    except InputError as error:
        raise _Refused(f"there is no release {statement.release[:60]!r}") from error
    if statement.track not in release.tracks:
        raise _Refused(f"release {release.name} has no track {statement.track}")
    return release


def _submission(workspace: Workspace, place: Waiting, statement: Statement) -> SubmissionRecord:
    release = _release(workspace, statement)
    try:
        files = check_files(workspace, statement.digest)
        if files.get(DESCRIPTION, MOST_DESCRIPTION_BYTES + 1) > MOST_DESCRIPTION_BYTES:
            raise _Refused(f"its {DESCRIPTION} is missing or too large")
        description = parse_description(read_file(workspace.inbox, statement.digest, DESCRIPTION), Path(DESCRIPTION))
    except MissingObjectError as error:
        raise _Refused("its files are not in the inbox; submit it again") from error
    except (SubmissionError, InputError) as error:
        raise _Refused(str(error)) from error
    if description.track not in (None, statement.track):
        raise _Refused(f"it is for {description.track}, not for {statement.track}")
    if description.team not in (None, place.team):
        raise _Refused(f"it says that it is team {description.team[:40]!r}'s")
    before = list_submissions(workspace, release.name, withdrawn=True, of=(place.team, place.track))
    if same := [record for record in before if record.digest == statement.digest]:
        raise _Refused(f"it was submitted before as {same[0].identifier}")
    for earlier in list_decisions(workspace, (place.team, place.track)):
        # One that was refused for want of quota would, sent again by somebody else, take a place of another day.
        if (earlier.release, earlier.digest, earlier.at) == (release.name, statement.digest, statement.at):
            raise _Refused(f"it is a copy of {earlier.identifier}, which was refused")
    team = read_team(workspace.sealed, place.team)
    phase = phase_at(release.phases, place.received)
    identifier = f"{place.team}/{place.track}/{place.number}"
    if team is not None and team.kind == "team":
        if phase is None:
            raise _Refused(f"it was received at {place.received:%Y-%m-%d %H:%M} UTC, between phases: {dates_of(release.phases)}")
        _take_place(workspace, release, phase, place, identifier, before)
    return SubmissionRecord(
        team=place.team,
        track=statement.track,
        name=description.name,
        digest=statement.digest,
        has_code=description.entry_point is not None,
        seeds=description.seeds if description.entry_point is not None else [0],
        submitted_at=place.received,
        number=place.number,
        release=release.name,
        phase=phase.name if phase else release.phases[0].name,
    )


def _take_place(
    workspace: Workspace, release: Release, phase: Phase, place: Waiting, identifier: str, before: list[SubmissionRecord]
) -> None:
    """Take a place in the day's quota; a submission that was cut off while it was decided has its place already."""
    day = phase.day(place.received)
    places = Series(workspace.sealed, f"quota/{release.name}/{place.team}/{place.track}/{day}")
    taken = [holder.identifier for _, holder in places.all(_Holder)]
    states = [state_of(workspace, record, release)[0] for record in before if record.identifier in taken]
    allowed = phase.per_day + states.count("platform failed") + min(states.count("failed"), phase.failed_per_day)
    while identifier not in taken:
        if len(taken) >= allowed:
            used = f"the quota of {phase.per_day} a day was used on {day} ({phase.time_zone}) by {', '.join(taken)}"
            raise _Refused(f"{used}; submit it again another day")
        if not places.create(len(taken) + 1, _Holder(identifier=identifier)):
            taken = [holder.identifier for _, holder in places.all(_Holder)]
        else:
            return
