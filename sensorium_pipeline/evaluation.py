"""Evaluations: what one consists of, which is the newest, and whether it is still of today's inputs.

An evaluation is an event in the sealed store, appended when all that it names is stored; rankings read nothing else. Predictions are
keyed by what they were computed from and scores by predictions, data and metric version, so a new metric scores stored predictions
again and runs no model.
"""

from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.jobs import Job
from sensorium_pipeline.prediction_runs import PredictionRecord
from sensorium_pipeline.rankings.resampling import RESAMPLING_VERSION
from sensorium_pipeline.scoring import METRIC_VERSION
from sensorium_pipeline.storage import Series, Workspace, digest_of


class EvaluationRecord(BaseModel):
    """An evaluation that is complete: event of the series `evaluations/<release>/<team>/<track>/<number>` in the sealed store.

    Attributes:
        inputs_digest: see `inputs_digest`.
        runs: one a seed, in the order of the submission's seeds; where one failed, that one alone.
        ensemble_digest: predictions that are the mean over all seeds; None where there is one seed.
        scores: keys of the `TierScore`s.
        curve_digest: picture of the learning curves, for organisers; None where nothing reported one.
        refusal: why no machine has run it yet; such an event has no runs and is never current.
    """

    model_config = ConfigDict(frozen=True)

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


def inputs_digest(job: Job) -> str:
    """Digest of everything that decides the scores of a submission."""
    inputs = {
        "predictions": [job.prediction_key(seed) for seed in job.submission.seeds],
        "metric": METRIC_VERSION,
        "resampling": RESAMPLING_VERSION,
    }
    if len(job.submission.seeds) > 1:
        inputs["several seeds"] = "ensemble"
    return digest_of(inputs)


def latest_evaluation(workspace: Workspace, job: Job) -> EvaluationRecord | None:
    """The newest complete evaluation of a submission in a release, whatever it was computed with."""
    found = _evaluations(workspace, job).latest(EvaluationRecord)
    return found[1] if found else None


def is_current(workspace: Workspace, job: Job) -> bool:
    """Whether the newest evaluation is of today's submission, data, environment and metric."""
    latest = latest_evaluation(workspace, job)
    return latest is not None and latest.inputs_digest == inputs_digest(job)


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


def _evaluations(workspace: Workspace, job: Job) -> Series:
    return Series(workspace.sealed, f"evaluations/{job.release.name}/{job.identifier}")
