"""One submission against one release: predictions of every seed, then scores, each computed once and never again.

Everything is keyed by content. Predictions: submission, released data, seed, environment and device class. Scores: predictions,
data and metric version, so a new metric scores stored predictions again and runs no model. What an evaluation consists of is an
event in the sealed store, appended when all of it is stored; rankings read nothing else.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.environment import environment_digest
from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.rankings.resampling import RESAMPLING_VERSION
from sensorium_pipeline.scoring import METRIC_VERSION
from sensorium_pipeline.sessions.catalogue import load_session_data
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.sessions.tiers import Tier
from sensorium_pipeline.storage import Series, Workspace, digest_of, open_dataset, read_result, record_result, write_files
from sensorium_pipeline.submissions.checkpoints import KeptCheckpoints
from sensorium_pipeline.submissions.inbox import SubmissionRecord, fetch_submission, list_submissions
from sensorium_pipeline.submissions.release import stage_release
from sensorium_pipeline.submissions.run import (
    CONSOLE,
    CPU,
    PREDICTIONS,
    STATE,
    Device,
    Failure,
    RunOutcome,
    run_submission,
)
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits, never
from sensorium_pipeline.submissions.staging import DESCRIPTION, SCHEMA_VERSION, StagedSession, stage_sessions
from sensorium_pipeline.training.data import SessionData

HIDDEN_TIERS: tuple[Tier, ...] = ("test", "final_test")
DeviceClass = Literal["cpu", "cuda"]
SMOKE_TRIALS = 64
"""Trials of each visible tier and session in the slice that smoke runs use."""
SMOKE_SECONDS = 30.0
"""A smoke run is given up after this long; the real run then tells whether the submission works."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Job(_Record):
    """One submission to be held against one release."""

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

    def inputs_digest(self) -> str:
        """Digest of everything that decides its scores."""
        inputs = {
            "predictions": [self.prediction_key(seed) for seed in self.submission.seeds],
            "metric": METRIC_VERSION,
            "resampling": RESAMPLING_VERSION,
        }
        if len(self.submission.seeds) > 1:
            inputs["several seeds"] = "ensemble"
        return digest_of(inputs)

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


@dataclass(frozen=True)
class RunSettings:
    """What submissions run with: limits of each sandbox, the device, and the lowest tier of isolation that strangers' code may run in."""

    limits: Limits = field(default_factory=Limits)
    device: Device = CPU
    lowest_tier: IsolationTier = IsolationTier.NO_USER_NAMESPACE


DEFAULT = RunSettings()


class PredictionRecord(_Record):
    """How the run with one seed ended, and what it left in the sealed store.

    Attributes:
        outcome: "finished" or "failed" with the reason.
        predictions_digest: one .npz a session; None where it failed.
        state_digest: `state.npz`, what training changed; None where nothing was trained.
        console_digest: what it printed, for organisers only.
        environment_digest, device_class: what it ran in; None and "predictions file" where nothing ran here.
    """

    outcome: RunOutcome
    predictions_digest: str | None = None
    state_digest: str | None = None
    console_digest: str | None = None
    environment_digest: str | None = None
    device_class: str


class EvaluationRecord(_Record):
    """An evaluation that is complete: event of the series `evaluations/<release>/<team>/<track>/<number>` in the sealed store.

    Attributes:
        inputs_digest: see `Job.inputs_digest`.
        runs: one a seed, in the order of the submission's seeds; where one failed, that one alone.
        ensemble_digest: predictions that are the mean over all seeds; None where there is one seed.
        scores: keys of the `TierScore`s.
        curve_digest: picture of the learning curves, for organisers; None where nothing reported one.
        refusal: why no machine has run it yet; such an event has no runs and is never current.
    """

    identifier: str
    submission_digest: str
    inputs_digest: str
    runs: tuple[PredictionRecord, ...]
    ensemble_digest: str | None = None
    scores: tuple[str, ...] = ()
    curve_digest: str | None = None
    refusal: str = ""

    @property
    def failure(self) -> str:
        """Why there are no scores, in words for the team; empty where there are."""
        if self.refusal:
            return f"refused: {self.refusal}"
        for run in self.runs:
            if run.outcome.failure is not None:
                reason = run.outcome.failure
                return f"{reason.where}: {reason.problem}" if reason.where else reason.problem
        return ""


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


def latest_evaluation(workspace: Workspace, job: Job) -> EvaluationRecord | None:
    """The newest complete evaluation of a submission in a release, whatever it was computed with."""
    found = _evaluations(workspace, job).latest(EvaluationRecord)
    return found[1] if found else None


def is_current(workspace: Workspace, job: Job) -> bool:
    """Whether the newest evaluation is of today's submission, data, environment and metric."""
    latest = latest_evaluation(workspace, job)
    return latest is not None and latest.inputs_digest == job.inputs_digest()


def in_fair_order(jobs: Sequence[Job]) -> list[tuple[int, Job]]:
    """Jobs with their turns, as they are to be run: the first of every team, then the second of every team, and so on.

    A team's own are in the order in which they arrived; teams are in the order in which their first arrived, in every turn.
    """
    of_team: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: (job.submission.submitted_at, job.identifier)):
        of_team.setdefault(job.submission.team, []).append(job)
    turns = max(map(len, of_team.values()), default=0)
    return [(turn, own[turn]) for turn in range(turns) for own in of_team.values() if turn < len(own)]


def predict(
    workspace: Workspace,
    job: Job,
    seed: int,
    *,
    settings: RunSettings = DEFAULT,
    progress: ProgressCallback = silent,
    stop: Callable[[], bool] = never,
) -> PredictionRecord:
    """Train and predict with one seed in isolation, or find that it was done; everything is stored before this returns.

    A run that was interrupted, on whatever machine, goes on from its latest checkpoint.

    Raises:
        IsolationError: this machine cannot isolate strangers' code.
        PlatformError: the platform failed, or the run was stopped; nothing is recorded then.
    """
    key = job.prediction_key(seed)
    if done := read_result(workspace.sealed, key, PredictionRecord):
        return done
    checkpoints = _checkpoints(workspace, job, seed)
    with _run(workspace, job, seed, settings, progress, stop, checkpoints) as (outcome, out):
        record = record_result(workspace.sealed, key, _kept(workspace, job, _without_own_words(outcome, out), out))
    checkpoints.clear()
    return record


def try_out(
    workspace: Workspace,
    job: Job,
    *,
    settings: RunSettings = DEFAULT,
    progress: ProgressCallback = silent,
    stop: Callable[[], bool] = never,
) -> PredictionRecord | None:
    """A smoke run, so that a broken submission fails in seconds: its failure counts as that of its first seed, and is recorded.

    Returns:
        The record where it failed; None where the real runs may begin (or are under way or done). One that is only slow may begin, too.

    Raises:
        IsolationError, PlatformError: as `predict`.
    """
    seed = job.submission.seeds[0]
    key = job.prediction_key(seed)
    if done := read_result(workspace.sealed, key, PredictionRecord):
        return done if done.outcome.failure else None
    if _checkpoints(workspace, job, seed).exist():
        return None
    limits = replace(settings.limits, wall_seconds=min(SMOKE_SECONDS, settings.limits.wall_seconds))
    with _run(workspace, job, seed, replace(settings, limits=limits), progress, stop) as (outcome, out):
        if outcome.failure is None or outcome.wall_seconds >= limits.wall_seconds:
            return None
        return record_result(workspace.sealed, key, _kept(workspace, job, outcome, out))


def record_evaluation(workspace: Workspace, job: Job, evaluation: EvaluationRecord) -> EvaluationRecord:
    """Append an evaluation, unless it is the newest already."""
    if latest_evaluation(workspace, job) != evaluation:
        _evaluations(workspace, job).append(evaluation)
    return evaluation


def refuse(workspace: Workspace, job: Job, reason: str) -> None:
    """Record that no machine may run a submission, so that tables say so; what was evaluated before stays what counts."""
    if latest_evaluation(workspace, job) is None:
        digest = job.submission.digest
        event = EvaluationRecord(identifier=job.identifier, submission_digest=digest, inputs_digest="", runs=(), refusal=reason)
        _evaluations(workspace, job).append(event)


def stage_slice(workspace: Workspace, release: Release, track: str, folder: Path, only: Sequence[str] = ()) -> Path:
    """A small public slice of a release for smoke runs: few visible trials of every session that the track may use, or of some.

    Raises:
        InputError: unknown track, or a release without it.
    """
    if (folder / DESCRIPTION).is_file():
        return folder
    sessions = []
    for session in (each for each in release.training_sessions(track) if not only or each.name in only):
        data = load_session_data(open_dataset(workspace.open, session.open_digest), track)
        small = SessionData(data.description, data.training[:SMOKE_TRIALS], data.validation[:SMOKE_TRIALS])
        sessions.append(StagedSession(small, small.validation.inputs, np.arange(len(small.validation), dtype=np.int64)))
    stage_sessions(sessions, track, folder)
    return folder


@contextmanager
def _run(
    workspace: Workspace,
    job: Job,
    seed: int,
    settings: RunSettings,
    progress: ProgressCallback,
    stop: Callable[[], bool],
    checkpoints: KeptCheckpoints | None = None,
) -> Iterator[tuple[RunOutcome, Path]]:
    """How a run ended, and the folder with what it left; without checkpoints it is a smoke run."""
    if checkpoints is None:
        staged = _stage_smoke_slice(workspace, job)
    else:
        staged = stage_release(workspace.open, job.release, job.track, staging_area(), progress)
    with tempfile.TemporaryDirectory(prefix="sensorium-run-") as folder:
        files, out = Path(folder, "submission"), Path(folder, "out")
        fetch_submission(workspace, job.submission, files)
        outcome = run_submission(
            files,
            staged,
            job.track,
            seed,
            out,
            settings.limits,
            progress=progress,
            stop=stop,
            device=settings.device,
            lowest_tier=settings.lowest_tier,
            checkpoints=checkpoints,
            smoke_run=checkpoints is None,
        )
        if outcome.status == "stopped":
            raise PlatformError("the run was stopped", where=job.identifier, advice="It goes on with the next evaluation.")
        yield outcome, out


def _stage_smoke_slice(workspace: Workspace, job: Job) -> Path:
    """Visible trials alone: whatever a submission says after it saw nothing else may be shown to its team."""
    first = job.release.competition_sessions(job.track)[0]
    content = {"smoke run": SMOKE_TRIALS, "track": job.track, "session": first.open_digest, "schema_version": SCHEMA_VERSION}
    return stage_slice(workspace, job.release, job.track, staging_area() / digest_of(content)[:32], only=[first.name])


def _without_own_words(outcome: RunOutcome, out: Path) -> RunOutcome:
    """An outcome whose failure may be shown: words from inside go to the console file, as hidden tiers' inputs were in reach."""
    failure = outcome.failure
    if failure is None or not failure.own_words:
        return outcome
    with (out / CONSOLE).open("a") as console:
        console.write(f"\n{failure.where}: {failure.problem}. {failure.advice}\n")
    known = failure.where if failure.where.startswith(f"{PREDICTIONS}/") or ", line " in failure.where else "sandbox"
    shown = Failure(
        error=failure.error,
        fault=failure.fault,
        problem="it failed in the real run, after a smoke run on visible trials",
        where=known,
        advice="What it said is for the organisers, as images of hidden tiers were in its reach; `sensorium check` shows everything",
    )
    return outcome.model_copy(update={"failure": shown})


def _kept(workspace: Workspace, job: Job, outcome: RunOutcome, out: Path) -> PredictionRecord:
    """The record of a run whose files are in the sealed store."""

    def keep(*names: str) -> str | None:
        found = {name: out / name for name in names if (out / name).is_file() and (out / name).stat().st_size}
        return write_files(workspace.sealed, found).digest if found else None

    return PredictionRecord(
        outcome=outcome,
        predictions_digest=keep(*(f"{PREDICTIONS}/{session}.npz" for session in outcome.sessions)),
        state_digest=keep(STATE),
        console_digest=keep(CONSOLE),
        environment_digest=environment_digest() if job.submission.has_code else None,
        device_class=job.device_class if job.submission.has_code else "predictions file",
    )


def _checkpoints(workspace: Workspace, job: Job, seed: int) -> KeptCheckpoints:
    return KeptCheckpoints(workspace.sealed, digest_of(job.prediction_key(seed)))


def _evaluations(workspace: Workspace, job: Job) -> Series:
    return Series(workspace.sealed, f"evaluations/{job.release.name}/{job.identifier}")


def _is_named(record: SubmissionRecord, name: str) -> bool:
    return bool(name) and (name in (record.identifier, record.team, f"{record.team}/{record.name}") or record.digest.startswith(name))


def staging_area() -> Path:
    """Folder of this user and machine for decoded sessions; nobody else may have put it there."""
    folder = Path(tempfile.gettempdir(), f"sensorium-staged-{os.getuid()}")
    folder.mkdir(mode=0o755, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise PlatformError("the folder belongs to somebody else", where=folder, advice="Remove it, or set TMPDIR to a folder of your own.")
    return folder
