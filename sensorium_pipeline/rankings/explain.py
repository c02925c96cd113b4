"""Where each number of one row came from, down to digests: made from the table alone, and published beside it."""

from collections.abc import Mapping

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.rankings.records import METRIC_LABELS, Estimate, RankingTable, Row, _Record
from sensorium_pipeline.scoring import FEV_THRESHOLD, MetricName

_CEILINGS: Mapping[MetricName, str] = {
    "single_trial_correlation": "leave-one-out oracle: each trial predicted by the mean of the other repeats of its image",
    "correlation_to_average": "reliability of averages: the correlation of an image's average with its expectation",
}


class Origin(_Record):
    """One number, what it was computed from, and how.

    Attributes:
        number: its column, and the session where it belongs to one.
        value: as published; None where undefined.
        low, high: its 95 % interval, where it has one.
        how: the computation in one sentence.
        digests: of everything it was computed from, by what it is.
    """

    number: str
    value: float | None
    low: float | None = None
    high: float | None = None
    how: str
    digests: Mapping[str, tuple[str, ...]]


class Explanation(_Record):
    """The whole row of one submission, explained: where each number came from, and what the run took."""

    release: str
    track: str
    tier: str
    team: str
    model: str
    submission_digest: str
    status: str
    reason: str
    metric_version: str
    resampling: str
    environment_digests: tuple[str, ...]
    code_versions: tuple[str, ...]
    seeds: tuple[int, ...]
    device_class: str
    isolation: tuple[str, ...]
    wall_seconds: float | None
    device_seconds: float | None
    peak_memory_bytes: int | None
    energy_joules: float | None
    numbers: tuple[Origin, ...]


def explain(table: RankingTable, submission: str, team: str | None = None) -> Explanation:
    """Explain the row of a submission, named by its digest or the first digits of it, and by its team where two sent the same.

    Raises:
        InputError: the table has no such submission, or several.
    """
    rows = [row for row in table.rows if row.submission_digest.startswith(submission) and team in (None, row.team)]
    if len(rows) != 1 or not submission:
        problem = "no submission of the table has this digest" if not rows else f"{len(rows)} submissions of the table begin like this"
        raise InputError(problem, where=submission or "submission", advice="Give more digits of its digest; `sensorium rank` lists them.")
    row = rows[0]
    return Explanation(
        release=table.release,
        track=table.track,
        tier=table.tier,
        team=row.team,
        model=row.model,
        submission_digest=row.submission_digest,
        status=row.status,
        reason=row.reason,
        metric_version=table.metric_version,
        resampling=f"{table.resampling_version}, {table.resamples} resamples, seed {table.resampling_seed}" if table.resamples else "",
        environment_digests=row.environment_digests,
        code_versions=row.code_versions,
        seeds=row.seeds,
        device_class=row.device_class,
        isolation=row.isolation,
        wall_seconds=row.wall_seconds,
        device_seconds=row.device_seconds,
        peak_memory_bytes=row.peak_memory_bytes,
        energy_joules=row.energy_joules,
        numbers=(*_by_session(row), *(_of_the_row(table, row) if row.score is not None else ())),
    )


def _by_session(row: Row) -> list[Origin]:
    origins = []
    of = "predictions" if len(row.seeds) == 1 else f"ensemble (mean of the predictions) of {len(row.seeds)} seeds"
    for result in row.sessions:
        data = {"released session": (result.open_digest,), "score records": result.score_digests}
        digests = {"submission": (row.submission_digest,), "predictions": result.predictions_digests, **data}
        for name, label in METRIC_LABELS.items():
            neurons = f"{result.neurons} neurons"
            if name == "feve":
                neurons = f"the {result.feve_neurons} neurons with at least {100 * FEV_THRESHOLD:.0f} % explainable variance"
            how = f"mean over {neurons}, {result.trials} trials of {result.images} images; {of}"
            origins.append(Origin(number=f"{label}, {result.session}", value=result.metrics.value(name), how=how, digests=digests))
        for name, how in _CEILINGS.items():
            ceiling = result.noise_ceiling.value(name)
            if ceiling is not None:
                number = f"noise ceiling of {METRIC_LABELS[name]}, {result.session}"
                origins.append(Origin(number=number, value=ceiling, how=f"{how}; mean over {result.neurons} neurons", digests=data))
    return origins


def _of_the_row(table: RankingTable, row: Row) -> list[Origin]:
    records = {"score records": tuple(digest for result in row.sessions for digest in result.score_digests)}
    origins = [_estimate(f"score ({METRIC_LABELS[table.metric]})", row.score, f"mean over {len(row.sessions)} session(s)", records)]

    def add(number: str, value: float | None, how: str, digests: Mapping[str, tuple[str, ...]]) -> None:
        if value is not None:
            origins.append(Origin(number=number, value=value, how=how, digests=digests))

    add("deviation of single seeds", row.seed_deviation, "standard deviation over seeds of the score of each alone", records)
    add("relative score", row.relative_score, "score divided by the mean of the sessions' noise ceilings", records)
    if row.rank is not None and row.rank_low is not None and row.rank_high is not None:
        how = f"place by score among {len(table.ranked)} ranked rows, in rank tier {row.rank_tier}; interval from draws of all scores"
        origins.append(Origin(number="rank", value=row.rank, low=row.rank_low, high=row.rank_high, how=how, digests=records))
        add("P(best)", row.p_best, "share of the same draws in which it comes first", records)
    if row.difference_to_leader is not None:
        digests = {"submission": (row.submission_digest,), "leader": (table.ranked[0].submission_digest,)}
        how = "score minus the leader's score; interval from paired resamples"
        origins.append(_estimate("difference to the leader", row.difference_to_leader, how, digests))
    if table.reference is not None:
        digests = {"submission": (row.submission_digest,), "reference baseline": (table.reference.submission_digest,)}
        add("improvement, per cent", row.improvement_percent, "100 x (score / score of the reference baseline - 1)", digests)
    return origins


def _estimate(number: str, estimate: Estimate | None, how: str, digests: Mapping[str, tuple[str, ...]]) -> Origin:
    known = {} if estimate is None else {"low": estimate.low, "high": estimate.high}
    return Origin(number=number, value=estimate.value if estimate else None, how=how, digests=digests, **known)
