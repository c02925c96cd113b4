"""What is kept of a score: immutable, small, and with the digest of everything it was computed from."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Track = Literal["sensorium", "sensorium+"]
Tier = Literal["train", "validation", "test", "final_test"]
MetricName = Literal["single_trial_correlation", "correlation_to_average", "feve"]

_PRIMARY: dict[Track, MetricName] = {"sensorium": "correlation_to_average", "sensorium+": "single_trial_correlation"}


def primary_metric(track: Track) -> MetricName:
    """The metric a track is ranked by: Correlation to Average for SENSORIUM, Single Trial Correlation for SENSORIUM+."""
    return _PRIMARY[track]


def _finite_or_none(value: object) -> object:
    # JSON has no NaN, and a NaN that becomes a number anywhere on its way to the table would be a lie: undefined is None.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metrics(_Record):
    """Means over neurons; None is undefined (see the rules in `scoring.metrics`), never 0."""

    single_trial_correlation: Number = None
    correlation_to_average: Number = None
    feve: Number = None

    def value(self, name: MetricName) -> float | None:
        """The metric of this name."""
        number: float | None = getattr(self, name)
        return number


class RepeatCounts(_Record):
    """Fewest and most repeats of an image."""

    fewest: int = Field(ge=1)
    most: int = Field(ge=1)


class ScoreRecord(_Record):
    """The score of one submission, run with one seed or the mean of several, on one tier of one session; or the reason why there is none.

    Example: `ScoreRecord(submission_digest="ab..", track="sensorium", session="static26872-17-20", tier="test", open_digest="cd..",
    status="failed", reason="The predictions hold NaN in row 3.")`

    Attributes:
        submission_digest: the submission's files.
        predictions_digest: the predictions' file; None where there are none.
        open_digest: the released part of the session.
        responses_digest: the sealed part of the session, which holds the responses. It stays in the sealed store: published tables
            show the digest of this record instead.
        metric_version: `METRIC_VERSION` that computed the numbers.
        seed: of training; 0 for a predictions file; None where the predictions are the mean over all seeds of the submission.
        device_class: "cpu", "cuda" or "predictions file".
        environment_digest: the locked environment of the prediction run.
        code_version: of this package, when scoring.
        metrics: the three numbers.
        noise_ceiling: of the two correlations (FEVE has none: its ceiling is 1).
        feve_neurons: neurons with fev >= 0.15, which FEVE is the mean of.
        status: "scored" or "failed".
        reason: why there is no score, in words for the participant.
    """

    submission_digest: str
    track: Track
    session: str
    tier: Tier
    seed: int | None = 0
    status: Literal["scored", "failed"] = "scored"
    reason: str = ""
    open_digest: str
    responses_digest: str | None = None
    predictions_digest: str | None = None
    environment_digest: str | None = None
    code_version: str = ""
    device_class: str = ""
    metric_version: str = ""
    metrics: Metrics = Metrics()
    noise_ceiling: Metrics = Metrics()
    neurons: int = 0
    feve_neurons: int = 0
    images: int = 0
    trials: int = 0
    repeats: RepeatCounts | None = None

    @model_validator(mode="after")
    def _says_what_it_is(self) -> "ScoreRecord":
        if self.status == "failed" and not self.reason:
            raise ValueError("a failed score needs a reason")
        if self.status == "scored" and not (self.metric_version and self.predictions_digest):
            raise ValueError("a score needs its metric version and the digest of the predictions it was computed from")
        return self
