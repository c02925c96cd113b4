"""Where each number of one row came from, down to digests: made from the table alone, and published beside it."""

from collections.abc import Mapping

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.rankings.records import METRIC_LABELS, RankingTable, Row, _Record


class Origin(_Record):
    """One number, what it was computed from, and how.

    Attributes:
        number: its column, and the session where it belongs to one.
        value: as published; None where undefined.
        how: the computation in one sentence.
        digests: of everything it was computed from, by what it is.
    """

    number: str
    value: float | None
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
    for result in row.sessions:
        digests = {
            "submission": (row.submission_digest,),
            "released session": (result.open_digest,),
            "predictions": result.predictions_digests,
            "score records": result.score_digests,
        }
        of = "predictions" if len(row.seeds) == 1 else f"ensemble (mean of the predictions) of {len(row.seeds)} seeds"
        for name, label in METRIC_LABELS.items():
            neurons = result.feve_neurons if name == "feve" else result.neurons
            how = f"mean over {neurons} neurons, {result.trials} trials of {result.images} images; {of}"
            origins.append(Origin(number=f"{label}, {result.session}", value=result.metrics.value(name), how=how, digests=digests))
            ceiling = result.noise_ceiling.value(name)
            if ceiling is not None:
                how = "mean over neurons, from the responses alone; leave-one-out oracle (single trials) or reliability of averages"
                origins.append(Origin(number=f"noise ceiling of {label}, {result.session}", value=ceiling, how=how, digests=digests))
    return origins


def _of_the_row(table: RankingTable, row: Row) -> list[Origin]:
    records = {"score records": tuple(digest for result in row.sessions for digest in result.score_digests)}
    origins = [
        Origin(
            number=f"score ({METRIC_LABELS[table.metric]})",
            value=row.score.value if row.score else None,
            how=f"mean over {len(row.sessions)} session(s)",
            digests=records,
        ),
        Origin(
            number="relative score",
            value=row.relative_score,
            how="score divided by the mean of the sessions' noise ceilings",
            digests=records,
        ),
    ]
    reference = table.reference
    if row.difference_to_leader is not None:
        leader = table.ranked[0]
        how = "score minus the leader's score, with the interval of paired resamples"
        digests = {"submission": (row.submission_digest,), "leader": (leader.submission_digest,)}
        origins.append(Origin(number="difference to the leader", value=row.difference_to_leader.value, how=how, digests=digests))
    if reference is not None and row.improvement_percent is not None:
        how = "100 x (score / score of the reference baseline - 1)"
        digests = {"submission": (row.submission_digest,), "reference baseline": (reference.submission_digest,)}
        origins.append(Origin(number="improvement, per cent", value=row.improvement_percent, how=how, digests=digests))
    return origins
