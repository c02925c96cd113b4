"""What goes into a ranking and what comes out of it: immutable records that JSON keeps without loss.

A table can be defended line by line: each row names the digests of the submission, the predictions, the data, the score records and
the environment its numbers come from.
"""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from sensorium_pipeline.rankings.resampling import ResampledScore
from sensorium_pipeline.scoring import MetricName, Metrics, RepeatCounts, ScoreRecord, Tier, Track

TABLE_SCHEMA_VERSION = "1"

TRACK_LABELS: dict[Track, str] = {"sensorium": "SENSORIUM", "sensorium+": "SENSORIUM+"}
TIER_LABELS: dict[Tier, str] = {"train": "training", "validation": "validation", "test": "live", "final_test": "final"}
METRIC_LABELS: dict[MetricName, str] = {
    "single_trial_correlation": "Single Trial Correlation",
    "correlation_to_average": "Correlation to Average",
    "feve": "FEVE",
}


def _plain_text(value: object) -> object:
    # Names come from strangers and end up in tables, pages and terminals: one line, no control characters.
    if isinstance(value, str):
        printable = "".join(character if character.isprintable() else " " for character in value)
        return " ".join(printable.split())[:80]
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a published number is finite")
    return value


Name = Annotated[str, BeforeValidator(_plain_text), Field(min_length=1)]
Finite = Annotated[float, AfterValidator(_finite)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Record):
    """One submission with everything known of it on one tier: what the ranking function takes.

    Attributes:
        received: when it arrived; earlier wins where two of a team are equal.
        seeds: the seeds it names (one, 0, for a predictions file). With several, its score is that of their ensemble: the mean of
            their predictions, whose records have the seed None.
        reference: whether it is the reference baseline that improvements are measured against.
        phase: of the competition in which it was received.
        after_competition: whether it is listed only, as it came after those that compete.
        failure: why it was not evaluated, in words for the participant; "" where it was.
        scores: its score records on this tier; resampled: those of the ranking metric, each naming its score record.
        wall_seconds, device_seconds, energy_joules: of training and prediction, all seeds together; None where nothing ran here, or
            it cannot be read.
        peak_memory_bytes: of the seed that took most.
        isolation: the tiers of isolation that its code ran in.
    """

    team: Name
    model: Name
    submission_digest: str
    track: Track
    received: AwareDatetime | None = None
    seeds: tuple[int, ...] = (0,)
    reference: bool = False
    phase: str = ""
    after_competition: bool = False
    failure: str = ""
    scores: tuple[ScoreRecord, ...] = ()
    resampled: tuple[ResampledScore, ...] = ()
    wall_seconds: Finite | None = None
    device_seconds: Finite | None = None
    energy_joules: Finite | None = None
    peak_memory_bytes: int | None = None
    isolation: tuple[str, ...] = ()


class Estimate(_Record):
    """A number with its 95 % interval."""

    value: Finite
    low: Finite
    high: Finite


class SessionResult(_Record):
    """One submission on one session, and the digests that the numbers come from.

    Where the row has several seeds, the numbers and the first digests are those of their ensemble; each seed's follow, in the row's order.
    """

    session: str
    metrics: Metrics
    noise_ceiling: Metrics
    neurons: int
    feve_neurons: int
    images: int
    trials: int
    repeats: RepeatCounts | None
    open_digest: str
    score_digests: tuple[str, ...]
    predictions_digests: tuple[str, ...]


class Change(_Record):
    """What is different from the last publication; `reason` is "" where nothing is."""

    rank_before: int | None = None
    score_before: Finite | None = None
    reason: str = ""


class Row(_Record):
    """One line of a table. Without a rank it holds the reason, and whatever numbers there are.

    A row of status "after" came after the competition: it has a score with its interval, and takes nobody's rank.
    """

    # Publications that older versions wrote are read too, and have fields that went since.
    model_config = ConfigDict(frozen=True, extra="ignore")

    rank: int | None = None
    rank_tier: int | None = None
    rank_low: int | None = None
    rank_high: int | None = None
    team: Name
    model: Name
    submission_digest: str
    reference: bool = False
    phase: str = ""
    status: Literal["ranked", "after", "failed", "incomplete"]
    reason: str = ""
    score: Estimate | None = None
    difference_to_leader: Estimate | None = None
    p_best: Finite | None = None
    seed_deviation: Finite | None = None
    metrics: Metrics = Metrics()
    sessions: tuple[SessionResult, ...] = ()
    noise_ceiling: Finite | None = None
    relative_score: Finite | None = None
    improvement_percent: Finite | None = None
    neurons: int | None = None
    images: int | None = None
    trials: int | None = None
    seeds: tuple[int, ...] = ()
    device_class: str = ""
    environment_digests: tuple[str, ...] = ()
    code_versions: tuple[str, ...] = ()
    wall_seconds: Finite | None = None
    device_seconds: Finite | None = None
    energy_joules: Finite | None = None
    peak_memory_bytes: int | None = None
    isolation: tuple[str, ...] = ()
    received: AwareDatetime | None = None
    change: Change = Change()


class Withdrawal(_Record):
    """A submission that its team withdrew; it is in no row, and its results stay in the record."""

    team: Name
    model: Name
    submission_digest: str
    time: AwareDatetime


class SessionLeftOut(_Record):
    """The ranking without one session: Kendall's tau with the whole ranking, and ranks in the order of the ranked rows."""

    session: str
    kendall_tau: Finite | None
    ranks: tuple[int, ...]


class ReleasedData(_Record):
    """A session that a table is about, by the digest of its released part."""

    session: str
    open_digest: str


class RankingTable(_Record):
    """The ranking of one track on one tier.

    Example: `RankingTable(release="demo", track="sensorium", tier="test", metric="correlation_to_average",
    metric_version="sensorium-2022.2", data=(), rows=())`
    """

    schema_version: str = TABLE_SCHEMA_VERSION
    release: Name
    track: Track
    tier: Tier
    metric: MetricName
    metric_version: str
    resampling_version: str = ""
    resampling_seed: int | None = None
    resamples: int | None = None
    data: tuple[ReleasedData, ...]
    rows: tuple[Row, ...]
    sessions_left_out: tuple[SessionLeftOut, ...] = ()
    withdrawn: tuple[Withdrawal, ...] = ()

    @property
    def ranked(self) -> tuple[Row, ...]:
        """Rows with a rank, best first."""
        return tuple(row for row in self.rows if row.rank is not None)

    @property
    def unranked(self) -> tuple[Row, ...]:
        """Rows without a rank."""
        return tuple(row for row in self.rows if row.rank is None)

    @property
    def reference(self) -> Row | None:
        """The ranked reference baseline, where there is one."""
        return next((row for row in self.ranked if row.reference), None)

    def without_changes(self) -> "RankingTable":
        """The table itself, whatever was published before it."""
        return self.model_copy(update={"rows": tuple(row.model_copy(update={"change": Change()}) for row in self.rows)})
