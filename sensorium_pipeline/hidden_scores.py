"""Scores on the hidden tiers, by the trusted scorer: predictions of every seed and of their ensemble against the sealed responses."""

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.environment import code_version
from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.evaluation import EvaluationRecord, inputs_digest, record_evaluation
from sensorium_pipeline.jobs import Job
from sensorium_pipeline.prediction_runs import PredictionRecord
from sensorium_pipeline.rankings.resampling import RESAMPLING_VERSION, Draws, ResampledScore, draw, resample_score
from sensorium_pipeline.scoring import METRIC_VERSION, ScoreRecord, SessionScore, primary_metric, score_predictions
from sensorium_pipeline.sessions.catalogue import HiddenResponses, load_hidden, read_binding, read_session
from sensorium_pipeline.sessions.tiers import HIDDEN_TIERS, Tier
from sensorium_pipeline.storage import Workspace, digest_of, read_file, read_result, record_result, write_files
from sensorium_pipeline.submissions.learning_curve import PICTURE, draw_learning_curves
from sensorium_pipeline.submissions.predictions import Expected, Predictions, read_predictions, write_predictions
from sensorium_pipeline.submissions.release import expected_predictions
from sensorium_pipeline.submissions.run import PREDICTIONS


class TierScore(BaseModel):
    """The score of one session and tier; as secret as the tier. `resampled` is None for a single seed among several."""

    model_config = ConfigDict(frozen=True)

    record: ScoreRecord
    resampled: ResampledScore | None


@dataclass(frozen=True)
class _Predicted:
    """Predictions in the sealed store: of one seed, or of the ensemble of all (seed None)."""

    seed: int | None
    digest: str
    counts: bool


def score(workspace: Workspace, job: Job, runs: Sequence[PredictionRecord]) -> EvaluationRecord:
    """Score the predictions on the hidden tiers, and append the evaluation; a failed one is appended with its reason.

    Several seeds are scored each by itself, and their ensemble, which is what counts.

    Args:
        workspace: needs its open and sealed stores.
        job: the submission.
        runs: of all its seeds in their order, or the one that failed.

    Raises:
        PlatformError: something that the runs name is missing.
    """
    keys: list[str] = []
    ensemble = None
    if all(run.outcome.status == "finished" for run in runs):
        digests = [_predictions_of(run, job) for run in runs]
        predicted = [_Predicted(run.outcome.seed, digest, len(runs) == 1) for run, digest in zip(runs, digests, strict=True)]
        if len(runs) > 1:
            ensemble = _store_ensemble(workspace, job, digests)
            predicted.append(_Predicted(None, ensemble, True))
        for session in job.release.competition_sessions(job.track):
            for one in predicted:
                keys += _score_session(workspace, job, session.name, session.open_digest, one, runs[0])
    curves = {f"seed {run.outcome.seed}": run.outcome.epochs for run in runs if run.outcome.epochs}
    evaluation = EvaluationRecord(
        identifier=job.identifier,
        submission_digest=job.submission.digest,
        inputs_digest=inputs_digest(job),
        runs=tuple(runs),
        ensemble_digest=ensemble,
        scores=tuple(keys),
        curve_digest=write_files(workspace.sealed, {PICTURE: draw_learning_curves(curves)}).digest if curves else None,
    )
    return record_evaluation(workspace, job, evaluation)


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


def _predictions_of(run: PredictionRecord, job: Job) -> str:
    if run.predictions_digest is None:
        raise PlatformError("a finished run has no predictions", where=job.identifier, advice="Evaluate the submission again.")
    return run.predictions_digest


def _store_ensemble(workspace: Workspace, job: Job, digests: Sequence[str]) -> str:
    """The mean of the predictions of all seeds, stored like those of one; returns its digest."""
    with tempfile.TemporaryDirectory(prefix="sensorium-ensemble-") as folder:
        files: dict[str, bytes | Path] = {}
        for expected in expected_predictions(workspace.open, job.release, job.track):
            # One at a time: ten seeds of 8000 neurons would be a gigabyte.
            total = np.zeros((len(expected.trial_id), len(expected.unit_id)))
            for digest in digests:
                total += _read_predictions(workspace, digest, expected).prediction
            path = Path(folder, f"{expected.session}.npz")
            write_predictions(path, Predictions(expected.trial_id, expected.unit_id, (total / len(digests)).astype(np.float32)))
            files[f"{PREDICTIONS}/{path.name}"] = path
        return write_files(workspace.sealed, files).digest


def _read_predictions(workspace: Workspace, digest: str, expected: Expected) -> Predictions:
    with tempfile.TemporaryDirectory(prefix="sensorium-score-") as folder:
        path = Path(folder, f"{expected.session}.npz")
        path.write_bytes(read_file(workspace.sealed, digest, f"{PREDICTIONS}/{path.name}"))
        return read_predictions(path, expected, path.name)


def _score_session(
    workspace: Workspace, job: Job, session: str, open_digest: str, predicted: _Predicted, run: PredictionRecord
) -> list[str]:
    """Score one session on the hidden tiers unless that was done; returns the keys of the scores."""
    inputs = {
        "predictions": predicted.digest,
        "data": open_digest,
        "metric": METRIC_VERSION,
        "resampling": RESAMPLING_VERSION if predicted.counts else None,
        "submission": job.submission.digest,
        "seed": predicted.seed,
    }
    keys = {tier: f"scores/{digest_of({**inputs, 'tier': tier})}" for tier in HIDDEN_TIERS}
    missing = [tier for tier in HIDDEN_TIERS if read_result(workspace.sealed, keys[tier], TierScore) is None]
    if missing:
        hidden = load_hidden(workspace, open_digest, HIDDEN_TIERS)
        predictions = _read_predictions(workspace, predicted.digest, Expected(session, hidden.trial_id, hidden.unit_ids))
        for tier in missing:
            scored = _score_tier(workspace, job, open_digest, tier, predictions, hidden.of_tier(tier), predicted, run, session)
            record_result(workspace.sealed, keys[tier], scored)
    return list(keys.values())


def _score_tier(
    workspace: Workspace,
    job: Job,
    open_digest: str,
    tier: Tier,
    predictions: Predictions,
    hidden: HiddenResponses,
    predicted: _Predicted,
    run: PredictionRecord,
    session: str,
) -> TierScore:
    rows = predictions.prediction[np.searchsorted(predictions.trial_id, hidden.trial_id)]
    result = score_predictions(rows, hidden.responses, hidden.image_id, hidden.precision)
    record = ScoreRecord(
        submission_digest=job.submission.digest,
        track=job.submission.track,
        session=session,
        tier=tier,
        seed=predicted.seed,
        open_digest=open_digest,
        responses_digest=read_binding(workspace.sealed, open_digest).sealed_digest,
        predictions_digest=predicted.digest,
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
    if not predicted.counts:
        return TierScore(record=record, resampled=None)
    draws = _draws(session, hidden.image_id.astype(np.int64).tobytes(), result.neurons)
    metric = primary_metric(job.submission.track)
    resampled = resample_score(rows, hidden.responses, hidden.image_id, metric, draws).record(digest_of(record), metric, draws)
    return TierScore(record=record, resampled=resampled)


@functools.lru_cache(maxsize=8)
def _draws(session: str, image_id: bytes, neurons: int) -> Draws:
    """The draws of a session and tier are the same for every submission, and take as long as the resampling itself."""
    return draw(session, np.frombuffer(image_id, np.int64), neurons)
