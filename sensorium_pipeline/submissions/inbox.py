"""The inbox: what teams sent, as they signed it, and what the organisers decided about each.

A submission's files lie in the inbox store under their digest, and a signed statement names them in the series
`submissions/<team>/<track>`; requests (to withdraw, to choose) stand in `requests/<team>/<track>`. Anyone who may write there could write
anything, so nothing in the inbox counts until it was taken in: the decision, under the same number, is a generation of the sealed
store's `intake/`, made once and never changed. Evaluation and tables read decisions alone.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict

from sensorium_pipeline.errors import PlatformError, SubmissionError
from sensorium_pipeline.storage import MissingObjectError, Series, Store, Workspace, download_files, list_files
from sensorium_pipeline.storage.manifests import manifest_path
from sensorium_pipeline.storage.series import open_envelope
from sensorium_pipeline.submissions.package import MOST_BYTES, MOST_FILES, TRACKS, Track, is_plain_name
from sensorium_pipeline.submissions.teams import TEAM

SUBMISSIONS: Final = "submissions"
REQUESTS: Final = "requests"
Kind = Literal["submissions", "requests"]
State = Literal["waiting", "accepted", "refused", "scored", "failed", "platform failed", "withdrawn"]
Place = tuple[str, str]
"""A team and a track, which have a series of their own."""
LARGEST_EVENT = 64 * 1024
LARGEST_LIST = 2 * 1024**2
"""Of as many files as there may be, of the longest names; one of gigabytes would take the memory of everybody's evaluation."""
# What lies elsewhere in the inbox is nobody's submission.
_EVENT = re.compile(rf"(submissions|requests)/({TEAM.pattern})/([a-z+]{{1,20}})/(\d{{6}}|[1-9]\d{{6,60}})\.json")
T = TypeVar("T", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Statement(_Record):
    """What a team says when it submits, and signs.

    Attributes:
        release: the competition it is for.
        digest: of the submission's files in the inbox store.
        at: by the team's own clock; when it counts as received is the store's to say.
    """

    release: str
    team: str
    track: Track
    digest: str
    at: AwareDatetime

    @property
    def key(self) -> tuple[str, ...]:
        """(release, team, track, digest), under which a submission is known whatever its number."""
        return (self.release, self.team, self.track, self.digest)


class Request(Statement):
    """What a team says when it withdraws a submission, or chooses the one that counts on the final tier; the digest names it."""

    action: Literal["withdraw", "choose"]


class SignedStatement(_Record):
    """A statement with the number of the token and the signature, as it stands in the inbox."""

    statement: Statement
    token: int
    signature: str


class SignedRequest(_Record):
    """The same of a request."""

    statement: Request
    token: int
    signature: str


class SubmissionRecord(_Record):
    """A submission that was taken in.

    Attributes:
        name, has_code, seeds: as its submission.toml says; without code it is a predictions file, and has one seed.
        digest: of its files in the inbox store.
        submitted_at: when the inbox store received it.
        number: in the series of its team and track.
        release: the competition it was sent to; phase: in which of its phases.
    """

    team: str
    track: Track
    name: str
    digest: str
    has_code: bool
    seeds: list[int]
    submitted_at: AwareDatetime
    number: int
    release: str
    phase: str

    @property
    def identifier(self) -> str:
        """Short and unique in a workspace: `team/track/number`."""
        return f"{self.team}/{self.track}/{self.number}"

    @property
    def key(self) -> tuple[str, ...]:
        """(release, team, track, digest), under which a submission is known whatever its number."""
        return (self.release, self.team, self.track, self.digest)


class _Decided(_Record):
    """What every decision says: about whose, when the inbox store received it, and why it was refused (empty: it was taken in)."""

    team: str
    track: str
    number: int
    received: AwareDatetime
    reason: str = ""


class Decision(_Decided):
    """What the organisers decided about one submission: generation of `intake/submissions/<team>/<track>` in the sealed store.

    Attributes:
        number: of the submission in its series of the inbox.
        release, digest, at: as its statement says; empty where that is not the team's.
        submission: None where it was refused.
    """

    release: str = ""
    digest: str = ""
    at: AwareDatetime | None = None
    submission: SubmissionRecord | None = None

    @property
    def identifier(self) -> str:
        """`team/track/number`."""
        return f"{self.team}/{self.track}/{self.number}"


class RequestDecision(_Decided):
    """The same about a request: generation of `intake/requests/<team>/<track>`."""

    request: Request | None = None

    @property
    def identifier(self) -> str:
        """`team/track/request number`."""
        return f"{self.team}/{self.track}/request {self.number}"


class Standing(_Record):
    """One line of what a team may know of its submissions."""

    number: int
    digest: str
    state: State
    reason: str = ""


class Standings(_Record):
    """Series `standings/<release>/<team>/<track>` in the open store, written by the organisers."""

    entries: tuple[Standing, ...]


class Waiting(_Record):
    """Something in the inbox that is not decided yet: where it lies, how large it is, and when the store received it."""

    team: str
    track: str
    number: int
    path: str
    size: int
    received: datetime


def waiting(workspace: Workspace, kind: Kind) -> list[Waiting]:
    """Everything of a kind that was not decided yet, by team, track and number; two listings, whatever was decided before."""
    decided = {entry.path.removeprefix("intake/") for entry in workspace.sealed.walk(f"intake/{kind}")}
    found = []
    for entry in workspace.inbox.walk(kind):
        match = _EVENT.fullmatch(entry.path)
        if match and entry.path not in decided and int(match[4]) > 0:
            place = Waiting(team=match[2], track=match[3], number=int(match[4]), path=entry.path, size=entry.size, received=entry.modified)
            found.append(place)
    return sorted(found, key=lambda place: (place.team, place.track, place.number))


def read_event(inbox: Store, path: str, kind: type[T]) -> T | None:
    """What somebody wrote into the inbox; None where it is no such record, or larger than one can be."""
    try:
        payload = inbox.read_range(path, 0, LARGEST_EVENT + 1)
    except MissingObjectError:
        return None
    try:
        return open_envelope(payload, kind, path) if len(payload) <= LARGEST_EVENT else None
    except PlatformError:
        return None


def list_decisions(workspace: Workspace, of: Place | None = None) -> list[Decision]:
    """Every decision about a submission, by team, track and number; or those of one team and track."""
    return list(_decisions(workspace.sealed, SUBMISSIONS, Decision, of))


def list_requests(workspace: Workspace, of: Place | None = None) -> list[RequestDecision]:
    """Every decision about a request, by team, track and number; or those of one team and track."""
    return list(_decisions(workspace.sealed, REQUESTS, RequestDecision, of))


def list_submissions(
    workspace: Workspace, release: str | None = None, *, withdrawn: bool = False, of: Place | None = None
) -> list[SubmissionRecord]:
    """The submissions that were taken in, by team, track and number.

    Args:
        workspace: needs its sealed store.
        release: only those sent to it.
        withdrawn: also those that were withdrawn.
        of: only those of one team and track.
    """
    gone = {} if withdrawn else withdrawals(workspace, of)
    found: list[SubmissionRecord] = []
    seen: set[tuple[str, ...]] = set()
    for decision in list_decisions(workspace, of):
        record = decision.submission
        if record is None or release not in (None, record.release):
            continue
        key = record.key
        if key not in seen and key not in gone:
            seen.add(key)
            found.append(record)
    return found


def withdrawals(workspace: Workspace, of: Place | None = None) -> dict[tuple[str, ...], datetime]:
    """When what was withdrawn, by (release, team, track, digest)."""
    found: dict[tuple[str, ...], datetime] = {}
    for decision in list_requests(workspace, of):
        if decision.request is not None and decision.request.action == "withdraw":
            found.setdefault(decision.request.key, decision.received)
    return found


def choices(workspace: Workspace, release: str, track: str) -> dict[str, str]:
    """The submission that each team chose last, team -> digest; a copy of an earlier request changes nothing."""
    newest: dict[str, Request] = {}
    for decision in list_requests(workspace):
        request = decision.request
        if request is None or (request.action, request.release, request.track) != ("choose", release, track):
            continue
        if request.team not in newest or newest[request.team].at < request.at:
            newest[request.team] = request
    return {team: request.digest for team, request in newest.items()}


def decision_series(sealed: Store, kind: Kind, team: str, track: str) -> Series:
    """Where decisions stand, under the numbers of the inbox."""
    return Series(sealed, f"intake/{kind}/{team}/{track}")


def standings_series(store: Store, release: str, team: str, track: str) -> Series:
    """Where a team reads what became of its submissions, in the open store: reasons of failures stand in the tables, too."""
    return Series(store, f"standings/{release}/{team}/{track}")


def check_files(workspace: Workspace, digest: str) -> dict[str, int]:
    """The files of a submission in the inbox, name -> bytes; what a list of files says is its writer's, so nothing in it is believed.

    Raises:
        MissingObjectError: the inbox has no files of this digest.
        SubmissionError: too many, too large, or of names that would lead out of a folder.
    """
    if len(workspace.inbox.read_range(manifest_path(digest), 0, LARGEST_LIST + 1)) > LARGEST_LIST:
        raise SubmissionError("the list of its files is too long", where=digest[:12], advice=f"{MOST_FILES} files are the limit")
    files = list_files(workspace.inbox, digest)
    names = {entry.path for entry in files}
    for entry in files:
        above = {str(folder) for folder in PurePosixPath(entry.path).parents}
        if entry.size < 0 or not is_plain_name(entry.path) or above & names:
            raise SubmissionError(f"{entry.path[:80]!a} is no name of a file", where=digest[:12], advice="Use plain relative names")
    size = sum(entry.size for entry in files)
    if len(names) < len(files):
        raise SubmissionError("a file is listed twice", where=digest[:12], advice="List each once")
    if len(files) > MOST_FILES or size > MOST_BYTES:
        advice = f"{MOST_FILES} files and {MOST_BYTES // 1024**2} MB are the limits"
        raise SubmissionError(f"{len(files)} files of {size // 1024**2} MB are too much", where=digest[:12], advice=advice)
    return {entry.path: entry.size for entry in files}


def fetch_submission(workspace: Workspace, record: SubmissionRecord, folder: Path) -> None:
    """Copy a submission's files out of the inbox into a fresh folder."""
    check_files(workspace, record.digest)
    download_files(workspace.inbox, record.digest, folder)


def _decisions(sealed: Store, kind: Kind, model: type[T], of: Place | None) -> Iterator[T]:
    places = [of] if of else [(team, track) for team in sealed.list(f"intake/{kind}") for track in TRACKS]
    for team, track in places:
        for _, decision in decision_series(sealed, kind, team, track).all(model):
            yield decision
