"""Releases: which sessions make up a competition, which tiers are opened when, and what submissions are measured against."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.recordings.raw_session import Role, Track
from sensorium_pipeline.sessions.catalogue import read_session
from sensorium_pipeline.sessions.phases import Phase, check_phases
from sensorium_pipeline.sessions.schema import TRACKS, known_track
from sensorium_pipeline.sessions.tiers import HIDDEN_TIERS, Tier
from sensorium_pipeline.storage import Series, Store, Workspace

if TYPE_CHECKING:
    from sensorium_pipeline.sessions.audit import AuditReport

State = Literal["open", "closed"]


class ReleasedSession(BaseModel):
    """A session of a release, by the digest of its open part."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Role
    track: Track | None
    open_digest: str


class Release(BaseModel):
    """A competition: the pointer `releases/<name>` of the open store.

    Attributes:
        name: of the release.
        sessions: by name, ascending.
        live: whether scores of the tier `test` are shown; those of `final_test` are opened phase by phase.
        phases: when submissions are taken, in the order of time.
        references: for a track, the reference submission "team/name" that improvements are measured against.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    sessions: tuple[ReleasedSession, ...]
    live: State = "open"
    phases: tuple[Phase, ...] = (Phase(),)
    references: dict[Track, str] = {}

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Tracks that have a competition session."""
        return tuple(track for track in TRACKS if self.competition_sessions(track))

    @property
    def opened_tiers(self) -> tuple[Tier, ...]:
        """Tiers whose scores are shown. Opening a tier reveals scores, never responses."""
        shown: tuple[tuple[Tier, bool], ...] = (("test", self.live == "open"), ("final_test", self.final == "open"))
        return tuple(tier for tier, is_shown in shown if is_shown)

    @property
    def final(self) -> State:
        """Whether the final tier of any phase is shown."""
        return "open" if any(phase.final_opened is not None for phase in self.phases) else "closed"

    def phase(self, name: str) -> Phase | None:
        """The phase of this name, or None."""
        return next((phase for phase in self.phases if phase.name == name), None)

    def competition_sessions(self, track: str) -> tuple[ReleasedSession, ...]:
        """Sessions that submissions to a track are scored on."""
        return tuple(session for session in self.sessions if session.track == known_track(track))

    def training_sessions(self, track: str) -> tuple[ReleasedSession, ...]:
        """Sessions that models of a track may train on: the open ones, and its own competition sessions."""
        return tuple(session for session in self.sessions if session.track in (None, known_track(track)))


def create_release(
    workspace: Workspace,
    name: str,
    sessions: Sequence[str],
    *,
    live: State | None = None,
    phases: Sequence[Phase] | None = None,
    references: Mapping[str, str] | None = None,
) -> tuple[Release, "list[AuditReport]"]:
    """Audit sessions and name them a release; the same release again appends nothing, and what is left out stays as it was.

    Args:
        workspace: needs its open store; with the sealed and lab stores the audit sees more.
        name: letters, digits, dots, dashes.
        sessions: names of published sessions; their current versions are taken.
        live: whether scores of the tier `test` are shown; at first they are.
        phases: when submissions are taken, see `sessions.phases`; at first one without dates.
        references: by track, "team/name" of the reference submission; at first there are none.

    Raises:
        InputError: no or unknown sessions, a session twice, an unknown track, a reference that is not "team/name".
        OrganiserError: the leak audit of a session failed, no session belongs to a track, or one that does lacks a hidden tier.
    """
    # Everybody reads releases, and the statistics of an audit take long to import.
    from sensorium_pipeline.sessions.audit import audit_session

    if not name or not all(character.isalnum() or character in ".-_" for character in name) or name.startswith("."):
        raise InputError(f'"{name}" cannot name a release', where="release", advice="Use letters, digits, dots and dashes.")
    if not sessions or len(set(sessions)) != len(sessions):
        raise InputError("sessions are missing or listed twice", where=f"release {name}", advice="List every session once.")
    baselines = None if references is None else {known_track(track): _reference(track, name) for track, name in references.items()}
    published = [read_session(workspace.open, session)[1] for session in sorted(sessions)]
    if all(session.track is None for session in published):
        raise OrganiserError("no session belongs to a track", where=f"release {name}", advice="Add a competition session.")
    for session in published:
        missing = [tier for tier in HIDDEN_TIERS if session.track is not None and not session.trials.get(tier)]
        if missing:
            problem = f"a competition session without trials of {' and '.join(missing)}: no submission could be scored"
            raise OrganiserError(problem, where=f"session {session.name}", advice="Release sessions that showed images of both sets.")
    reports = [audit_session(workspace, session.name) for session in published]
    for report in reports:
        report.refuse_leaks()
    latest = Series(workspace.open, f"releases/{name}").latest(Release)
    before = latest[1] if latest else None
    release = Release(
        name=name,
        sessions=tuple(ReleasedSession(name=s.name, role=s.role, track=s.track, open_digest=s.open_digest) for s in published),
        live=live or (before.live if before else "open"),
        phases=_phases(phases, before, f"release {name}"),
        references=baselines if baselines is not None else before.references if before else {},
    )
    _append(workspace.open, release)
    return release, reports


def change_phases(
    workspace: Workspace,
    name: str,
    *,
    live: State | None = None,
    final: State | None = None,
    phase: str | None = None,
    phases: Sequence[Phase] | None = None,
    at: datetime | None = None,
) -> Release:
    """Change what a release shows and when it takes submissions; its sessions stay as they are, and so does what is left out.

    Args:
        workspace: needs its open store.
        name: of the release.
        live: whether scores of the tier `test` are shown.
        final: open or close the final tier of all phases, or of `phase` alone. From then on no team of the phase can choose any more.
        phase: name of the one phase that `final` is about.
        phases: the phases from now on; those that keep their name keep their final tier open.
        at: the moment of opening; left out, now.

    Raises:
        InputError: there is no such release or phase, or the phases overlap.
    """
    release = read_release(workspace.open, name)
    current = _phases(phases, release, f"release {name}")
    if phase is not None and phase not in {one.name for one in current}:
        known = ", ".join(one.name for one in current)
        raise InputError(f"the release has no phase {phase!r}", where=f"release {name}", advice=f"Its phases: {known}.")
    if final is not None:
        moment = (at or datetime.now(UTC)) if final == "open" else None
        current = tuple(
            # What is open already stays open since then.
            one.model_copy(update={"final_opened": moment and (one.final_opened or moment)}) if phase in (None, one.name) else one
            for one in current
        )
    changed = release.model_copy(update={"live": live or release.live, "phases": current})
    _append(workspace.open, changed)
    return changed


def read_release(store: Store, name: str) -> Release:
    """Current version of a release; `InputError` naming those there are where it is not among them."""
    latest = Series(store, f"releases/{name}").latest(Release)
    if latest is None:
        known = ", ".join(store.list("releases")) or "none yet"
        raise InputError("there is no release of this name", where=name, advice=f"Known releases: {known}.")
    return latest[1]


def choose_release(store: Store, name: str | None = None) -> Release:
    """The release of this name, or the only one there is where none is named.

    Raises:
        InputError: there is none, or there are several and none is named.
    """
    names = [name] if name else store.list("releases")
    if len(names) != 1:
        problem = "there are several releases" if names else "there is no release yet"
        advice = f"Name one with --release: {', '.join(names)}." if names else "Make one with `sensorium release`."
        raise InputError(problem, where=store.url, advice=advice)
    return read_release(store, names[0])


def _reference(track: str, reference: str) -> str:
    team, slash, submission = reference.partition("/")
    if not (team and slash and submission) or "/" in submission:
        raise InputError(f'"{reference}" is not "team/name"', where=f"reference of {track}", advice='Write it like "organisers/cnn".')
    return reference


def _phases(given: Sequence[Phase] | None, before: Release | None, where: str) -> tuple[Phase, ...]:
    """The phases from now on; one that keeps its name keeps its final tier open."""
    if given is None:
        return before.phases if before else (Phase(),)
    opened = {one.name: one.final_opened for one in before.phases} if before else {}
    return check_phases([one.model_copy(update={"final_opened": one.final_opened or opened.get(one.name)}) for one in given], where)


def _append(store: Store, release: Release) -> None:
    series = Series(store, f"releases/{release.name}")
    latest = series.latest(Release)
    if latest is None or latest[1] != release:
        series.append(release)
