"""Runs of a submission with one seed, as a worker does them: staged, isolated, and everything stored before it is said to be done.

The key of a run is content: submission, released data, seed, environment and device class. So no run is done twice, whichever worker is
asked; one that was interrupted goes on from its latest checkpoint. Nothing here knows of scores, nor imports what they need.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.environment import environment_digest
from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.jobs import Job
from sensorium_pipeline.progress import ProgressCallback, never, silent
from sensorium_pipeline.sessions.catalogue import load_session_data
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.storage import Workspace, digest_of, open_dataset, read_result, record_result, write_files
from sensorium_pipeline.submissions.checkpoints import KeptCheckpoints
from sensorium_pipeline.submissions.inbox import fetch_submission
from sensorium_pipeline.submissions.outcome import Failure, RunOutcome
from sensorium_pipeline.submissions.release import stage_release
from sensorium_pipeline.submissions.run import CONSOLE, CPU, PREDICTIONS, STATE, Device, run_submission
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits
from sensorium_pipeline.submissions.staging import DESCRIPTION, SCHEMA_VERSION, StagedSession, stage_sessions
from sensorium_pipeline.training.data import SessionData

SMOKE_TRIALS = 64
"""Trials of each visible tier and session in the slice that smoke runs use."""
SMOKE_SECONDS = 30.0
"""A smoke run is given up after this long; the real run then tells whether the submission works."""


@dataclass(frozen=True)
class RunSettings:
    """What submissions run with: limits of each sandbox, the device, and the lowest tier of isolation that strangers' code may run in."""

    limits: Limits = field(default_factory=Limits)
    device: Device = CPU
    lowest_tier: IsolationTier = IsolationTier.NO_USER_NAMESPACE


DEFAULT = RunSettings()


class PredictionRecord(BaseModel):
    """How the run with one seed ended, and what it left in the sealed store.

    Attributes:
        outcome: "finished" or "failed" with the reason.
        predictions_digest: one .npz a session; None where it failed.
        state_digest: `state.npz`, what training changed; None where nothing was trained.
        console_digest: what it printed, for organisers only.
        environment_digest, device_class: what it ran in; None and "predictions file" where nothing ran here.
    """

    model_config = ConfigDict(frozen=True)

    outcome: RunOutcome
    predictions_digest: str | None = None
    state_digest: str | None = None
    console_digest: str | None = None
    environment_digest: str | None = None
    device_class: str


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
        advice="What it said is for the organisers, as images of hidden tiers were in its reach; `sensorium check` shows everything.",
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


def staging_area() -> Path:
    """Folder of this user and machine for decoded sessions; nobody else may have put it there."""
    folder = Path(tempfile.gettempdir(), f"sensorium-staged-{os.getuid()}")
    folder.mkdir(mode=0o755, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise PlatformError("the folder belongs to somebody else", where=folder, advice="Remove it, or set TMPDIR to a folder of your own.")
    return folder
