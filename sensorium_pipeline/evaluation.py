"""One submission against one release: predictions of every seed, then scores, each computed once and never again.

Everything is keyed by content. Predictions: submission, released data, seed, environment and device class. Scores: predictions,
data and metric version, so a new metric scores stored predictions again and runs no model. What an evaluation consists of is an
event in the sealed store, appended when all of it is stored; rankings read nothing else.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.environment import code_version, environment_digest
from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.rankings.resampling import RESAMPLING_VERSION, ResampledScore, draw, resample_score
from sensorium_pipeline.scoring import METRIC_VERSION, ScoreRecord, SessionScore, primary_metric, score_predictions
from sensorium_pipeline.sessions.catalogue import load_description, load_hidden, load_inputs, load_session_data, read_binding, read_session
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.sessions.scaling import rescale
from sensorium_pipeline.sessions.tiers import Tier
from sensorium_pipeline.storage import (
    Series,
    Workspace,
    digest_of,
    download_files,
    open_dataset,
    read_result,
    record_result,
    write_files,
)
from sensorium_pipeline.submissions.inbox import SubmissionRecord, fetch_submission, list_submissions
from sensorium_pipeline.submissions.predictions import Expected, read_predictions
from sensorium_pipeline.submissions.release import stage_release
from sensorium_pipeline.submissions.run import CONSOLE, CPU, PREDICTIONS, STATE, Device, RunOutcome, predict_images, run_submission
from sensorium_pipeline.submissions.sandbox import never
from sensorium_pipeline.submissions.staging import StagedSession, stage_sessions
from sensorium_pipeline.training.data import SessionData

HIDDEN_TIERS: tuple[Tier, ...] = ("test", "final_test")
DeviceClass = Literal["cpu", "cuda"]
SLICE_TRIALS = 64
"""Trials of each visible tier and session in the slice that smoke runs use."""


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
        return digest_of(
            {
                "predictions": [self.prediction_key(seed) for seed in self.submission.seeds],
                "metric": METRIC_VERSION,
                "resampling": RESAMPLING_VERSION,
            }
        )

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


class TierScore(_Record):
    """The score of one session and tier, with its resamples; as secret as the tier."""

    record: ScoreRecord
    resampled: ResampledScore


class EvaluationRecord(_Record):
    """An evaluation that is complete: event of the series `evaluations/<release>/<team>/<track>/<number>` in the sealed store.

    Attributes:
        inputs_digest: see `Job.inputs_digest`.
        runs: one a seed, in the order of the submission's seeds.
        scores: keys of the `TierScore`s.
        refusal: why no machine has run it yet; such an event has no runs and is never current.
    """

    identifier: str
    submission_digest: str
    inputs_digest: str
    runs: tuple[PredictionRecord, ...]
    scores: tuple[str, ...] = ()
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


def predict(
    workspace: Workspace,
    job: Job,
    seed: int,
    *,
    device: Device = CPU,
    progress: ProgressCallback = silent,
    stop: Callable[[], bool] = never,
) -> PredictionRecord:
    """Train and predict with one seed in isolation, or find that it was done; everything is stored before this returns.

    Raises:
        IsolationError: this machine cannot isolate strangers' code.
        PlatformError: the platform failed, or the run was stopped; nothing is recorded then.
    """
    if done := read_result(workspace.sealed, job.prediction_key(seed), PredictionRecord):
        return done
    staged = stage_release(workspace.open, job.release, job.track, _staging_area(), progress)
    with tempfile.TemporaryDirectory(prefix="sensorium-run-") as folder:
        files, out = Path(folder, "submission"), Path(folder, "out")
        fetch_submission(workspace, job.submission, files)
        outcome = run_submission(files, staged, job.track, seed, out, progress=progress, stop=stop, device=device)
        if outcome.status == "stopped":
            raise PlatformError("the run was stopped", where=job.identifier, advice="It starts again with the next evaluation.")

        def keep(*names: str) -> str | None:
            found = {name: out / name for name in names if (out / name).is_file() and (out / name).stat().st_size}
            return write_files(workspace.sealed, found).digest if found else None

        record = PredictionRecord(
            outcome=outcome,
            predictions_digest=keep(*(f"{PREDICTIONS}/{session}.npz" for session in outcome.sessions)),
            state_digest=keep(STATE),
            console_digest=keep(CONSOLE),
            environment_digest=environment_digest() if job.submission.has_code else None,
            device_class=job.device_class if job.submission.has_code else "predictions file",
        )
    return record_result(workspace.sealed, job.prediction_key(seed), record)


def score(workspace: Workspace, job: Job, runs: Sequence[PredictionRecord]) -> EvaluationRecord:
    """Score the predictions of all seeds on the hidden tiers, and append the evaluation; a failed one is appended with its reason."""
    keys: list[str] = []
    if all(run.outcome.status == "finished" for run in runs):
        for session in job.release.competition_sessions(job.track):
            for run in runs:
                keys += [_score_tier(workspace, job, session.name, session.open_digest, tier, run) for tier in HIDDEN_TIERS]
    evaluation = EvaluationRecord(
        identifier=job.identifier,
        submission_digest=job.submission.digest,
        inputs_digest=job.inputs_digest(),
        runs=tuple(runs),
        scores=tuple(keys),
    )
    if latest_evaluation(workspace, job) != evaluation:
        _evaluations(workspace, job).append(evaluation)
    return evaluation


def refuse(workspace: Workspace, job: Job, reason: str) -> None:
    """Record that no machine may run a submission, so that tables say so; what was evaluated before stays what counts."""
    if latest_evaluation(workspace, job) is None:
        digest = job.submission.digest
        event = EvaluationRecord(identifier=job.identifier, submission_digest=digest, inputs_digest="", runs=(), refusal=reason)
        _evaluations(workspace, job).append(event)


def read_scores(workspace: Workspace, evaluation: EvaluationRecord, tier: Tier) -> list[TierScore]:
    """The scores of one tier.

    Raises:
        PlatformError: one that the evaluation names is missing.
    """
    found = []
    for key in evaluation.scores:
        stored = read_result(workspace.sealed, key, TierScore)
        if stored is None:
            raise PlatformError(
                "a score is missing", where=f"{workspace.sealed.url}/results/{key}", advice="Evaluate the submission again."
            )
        if stored.record.tier == tier:
            found.append(stored)
    return found


def predict_twin(
    workspace: Workspace, job: Job, images: NDArray[np.generic], session: str | None = None, *, progress: ProgressCallback = silent
) -> tuple[str, NDArray[np.int64], NDArray[np.float32]]:
    """Responses of a session's neurons to any images, by a submission that was evaluated: a digital twin.

    Args:
        workspace: where it was evaluated.
        job: the submission.
        images: (images, y, x) grey values 0..255, at the full or at the model-input resolution of the session.
        session: whose neurons; the track's first competition session where it is left out.
        progress: of the run.

    Returns:
        The session's name, unit ids (neurons,) and responses (images, neurons) in standardised units; the mean over seeds.

    Raises:
        InputError: it was not evaluated or failed, or the session or images do not fit.
    """
    evaluation = latest_evaluation(workspace, job)
    if evaluation is None or evaluation.failure:
        problem = f"it failed ({evaluation.failure})" if evaluation else "it has not been evaluated"
        raise InputError(problem, where=job.identifier, advice="Only an evaluated model predicts; see `sensorium rank`.")
    name = session or job.release.competition_sessions(job.track)[0].name
    if name not in job.data():
        raise InputError(
            f"the release has no session {name} for this track", where="session", advice=f"Choose one of {', '.join(job.data())}."
        )
    tree = open_dataset(workspace.open, job.data()[name])
    description = load_description(tree, job.track)
    full = (tree["images"].sizes["y"], tree["images"].sizes["x"])
    if images.ndim == 3 and images.shape[1:] == full and full != description.image_shape:
        images = rescale(images, description.image_shape)
    staged = stage_release(workspace.open, job.release, job.track, _staging_area(), progress)
    responses = []
    with tempfile.TemporaryDirectory(prefix="sensorium-twin-") as folder:
        files = Path(folder, "submission")
        fetch_submission(workspace, job.submission, files)
        for seed, run in zip(job.submission.seeds, evaluation.runs, strict=True):
            state = None
            if run.state_digest is not None:
                download_files(workspace.sealed, run.state_digest, Path(folder, str(seed)))
                state = Path(folder, str(seed), STATE)
            responses.append(predict_images(files, state, staged, name, images, seed=seed, progress=progress))
    return name, description.unit_ids, np.mean(responses, axis=0, dtype=np.float32)


def stage_slice(workspace: Workspace, release: Release, track: str, folder: Path) -> Path:
    """A small public slice of a release for smoke runs: few visible trials of every session that the track may use.

    Raises:
        InputError: unknown track, or a release without it.
    """
    sessions = []
    for session in release.training_sessions(track):
        data = load_session_data(open_dataset(workspace.open, session.open_digest), track)
        small = SessionData(data.description, data.training[:SLICE_TRIALS], data.validation[:SLICE_TRIALS])
        sessions.append(StagedSession(small, small.validation.inputs, np.arange(len(small.validation), dtype=np.int64)))
    stage_sessions(sessions, track, folder)
    return folder


def score_file(workspace: Workspace, path: Path, session: str, tier: str) -> SessionScore:
    """The three metrics of one prediction file against one tier of a session.

    Raises:
        InputError: unknown session or tier.
        SubmissionError: the file does not hold usable predictions of exactly the tier's trials.
    """
    _, published = read_session(workspace.open, session)
    hidden = load_hidden(workspace, published.open_digest, tier)
    expected = Expected(session, hidden.trial_id, hidden.unit_ids)
    predictions = read_predictions(path, expected, str(path))
    return score_predictions(predictions.prediction, hidden.responses, hidden.image_id, hidden.precision)


def _score_tier(workspace: Workspace, job: Job, session: str, open_digest: str, tier: Tier, run: PredictionRecord) -> str:
    """Score one session and tier unless that was done; returns the key of the score."""
    inputs = {
        "predictions": run.predictions_digest,
        "data": open_digest,
        "tier": tier,
        "metric": METRIC_VERSION,
        "resampling": RESAMPLING_VERSION,
        "submission": job.submission.digest,
        "seed": run.outcome.seed,
    }
    key = f"scores/{digest_of(inputs)}"
    if read_result(workspace.sealed, key, TierScore):
        return key
    if run.predictions_digest is None:
        raise PlatformError("a finished run has no predictions", where=job.identifier, advice="Evaluate the submission again.")
    tree = open_dataset(workspace.open, open_digest)
    hidden = load_hidden(workspace, open_digest, tier)
    trial_id, _, _ = load_inputs(tree, HIDDEN_TIERS, job.track)
    with tempfile.TemporaryDirectory(prefix="sensorium-score-") as folder:
        download_files(workspace.sealed, run.predictions_digest, Path(folder))
        expected = Expected(session, trial_id, hidden.unit_ids)
        predictions = read_predictions(Path(folder, PREDICTIONS, f"{session}.npz"), expected, f"{session}.npz")
    predicted = predictions.prediction[np.searchsorted(trial_id, hidden.trial_id)]
    result = score_predictions(predicted, hidden.responses, hidden.image_id, hidden.precision)
    record = ScoreRecord(
        submission_digest=job.submission.digest,
        track=job.submission.track,
        session=session,
        tier=tier,
        seed=run.outcome.seed,
        open_digest=open_digest,
        responses_digest=read_binding(workspace.sealed, open_digest).sealed_digest,
        predictions_digest=run.predictions_digest,
        environment_digest=run.environment_digest,
        code_version=code_version(),
        device_class=run.device_class,
        metric_version=METRIC_VERSION,
        metrics=result.metrics,
        noise_ceiling=result.noise_ceiling,
        neurons=result.neurons,
        feve_neurons=result.feve_neurons,
        images=result.images,
        trials=result.trials,
        repeats=result.repeats,
    )
    draws = draw(session, hidden.image_id, result.neurons)
    metric = primary_metric(job.submission.track)
    resampled = resample_score(predicted, hidden.responses, hidden.image_id, metric, draws).record(digest_of(record), metric, draws)
    record_result(workspace.sealed, key, TierScore(record=record, resampled=resampled))
    return key


def _evaluations(workspace: Workspace, job: Job) -> Series:
    return Series(workspace.sealed, f"evaluations/{job.release.name}/{job.identifier}")


def _is_named(record: SubmissionRecord, name: str) -> bool:
    return bool(name) and (name in (record.identifier, record.team, f"{record.team}/{record.name}") or record.digest.startswith(name))


def _staging_area() -> Path:
    """Folder of this user and machine for decoded sessions; nobody else may have put it there."""
    folder = Path(tempfile.gettempdir(), f"sensorium-staged-{os.getuid()}")
    folder.mkdir(mode=0o755, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or folder.is_symlink():
        raise PlatformError("the folder belongs to somebody else", where=folder, advice="Remove it, or set TMPDIR to a folder of your own.")
    return folder
