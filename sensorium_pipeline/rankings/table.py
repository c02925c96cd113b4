"""THE ranking function: immutable records in, one table out. It reads no store, no clock and no settings.

A submission has a rank if and only if every session of the release has one score with a defined ranking metric, by the current metric
version and on the released data, for every seed and, where there are several, for their ensemble. Nothing is averaged over fewer
sessions, nothing undefined becomes a number: everything else is listed without a rank and with its reason.

The score of a submission is the mean over sessions of the mean over neurons, of the ensemble of its seeds where there are several. Its
interval says how it would move with other images and neurons; how single seeds differ is the row's `seed_deviation`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import OrganiserError
from sensorium_pipeline.rankings.changes import with_changes
from sensorium_pipeline.rankings.comparison import Comparison, compare, shared_ranks
from sensorium_pipeline.rankings.records import Entry, Estimate, RankingTable, ReleasedData, Row, SessionLeftOut, SessionResult, Withdrawal
from sensorium_pipeline.rankings.resampling import ResampledScore
from sensorium_pipeline.scoring import METRIC_VERSION, MetricName, Metrics, ScoreRecord, Tier, Track, primary_metric
from sensorium_pipeline.storage import digest_of

NAMES: tuple[MetricName, ...] = ("single_trial_correlation", "correlation_to_average", "feve")


class _Complete(NamedTuple):
    """A submission that can be ranked: its score by session (sessions,), and its resampled score (3, resamples): images, neurons, both."""

    entry: Entry
    row: Row
    value: float
    by_session: NDArray[np.float64]
    draws: NDArray[np.float64]
    kind_of_draws: tuple[str, int, int]
    smallest_sample: int


class _NotRanked(Exception):
    """Why a submission has no rank; never leaves this module."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def rank_submissions(
    entries: Sequence[Entry],
    *,
    release: str,
    track: Track,
    tier: Tier,
    sessions: Mapping[str, str],
    metric_version: str = METRIC_VERSION,
    previous: RankingTable | None = None,
    withdrawn: Sequence[Withdrawal] = (),
) -> RankingTable:
    """The table of one track on one tier; the order of the entries does not matter.

    Args:
        entries: all submissions to list.
        release: name of the release.
        track: decides the ranking metric.
        tier: "test" (live) or "final_test".
        sessions: the competition sessions of the track in this release, name -> digest of the released part.
        metric_version: scores by another version do not count.
        previous: the table published before, for the column of changes.
        withdrawn: what teams took back, which says why it is no longer listed.

    Raises:
        OrganiserError: no sessions, an entry of another track, one that is given twice, or two reference baselines.
    """
    if not sessions:
        raise OrganiserError(f"the release names no competition session of track {track}", where=release, advice="Add one to the release.")
    # In the order of rows that share a rank, so that the leader all are compared with is the first row.
    ordered = sorted(entries, key=lambda entry: (entry.team, entry.model, entry.submission_digest))
    _refuse_confusion(ordered, track)
    metric = primary_metric(track)
    complete: list[_Complete] = []
    unranked: list[Row] = []
    for entry in ordered:
        try:
            complete.append(_assemble(entry, metric, tier, sessions, metric_version))
        except _NotRanked as why:
            unranked.append(_unranked_row(entry, why, tier, sessions, metric_version))
    # A model with other draws cannot be paired with the rest; which draws are the right ones is what most models have.
    kinds = [model.kind_of_draws for model in complete]
    kind = max(sorted(set(kinds)), key=kinds.count) if kinds else ("", 0, 0)
    odd = _NotRanked("incomplete", "Its score was resampled with other draws than those of the rest; it will be resampled.")
    unranked += [_unranked_row(model.entry, odd, tier, sessions, metric_version) for model in complete if model.kind_of_draws != kind]
    complete = [model for model in complete if model.kind_of_draws == kind]
    later = [model for model in complete if model.entry.after_competition]
    complete = [model for model in complete if not model.entry.after_competition]

    table = RankingTable(
        release=release,
        track=track,
        tier=tier,
        metric=metric,
        metric_version=metric_version,
        resampling_version=kind[0],
        resampling_seed=kind[1] if kinds else None,
        resamples=kind[2] if kinds else None,
        data=tuple(ReleasedData(session=name, open_digest=digest) for name, digest in sorted(sessions.items())),
        rows=(*_ranked_rows(complete), *_later_rows(later, complete), *sorted(unranked, key=_by_name)),
        withdrawn=tuple(sorted(withdrawn, key=lambda one: (one.team, one.model, one.submission_digest))),
    )
    table = table.model_copy(update={"sessions_left_out": _sessions_left_out(table, complete, sorted(sessions))})
    return with_changes(table, previous)


def _refuse_confusion(entries: Sequence[Entry], track: Track) -> None:
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if entry.track != track:
            problem = f"the submission is of track {entry.track}, and the table of track {track}"
            raise OrganiserError(problem, where=entry.submission_digest, advice="Rank each track by itself.")
        if (entry.team, entry.submission_digest) in seen:
            raise OrganiserError("the submission is given twice", where=entry.submission_digest, advice="Give each submission once.")
        seen.add((entry.team, entry.submission_digest))
    if sum(entry.reference for entry in entries) > 1:
        raise OrganiserError("there are two reference baselines", where=f"track {track}", advice="The release names one a track.")


def _assemble(entry: Entry, metric: MetricName, tier: Tier, sessions: Mapping[str, str], metric_version: str) -> _Complete:
    if entry.failure:
        raise _NotRanked("failed", entry.failure)
    failed = [record for record in entry.scores if record.tier == tier and record.session in sessions and record.status == "failed"]
    if failed:
        first = min(failed, key=lambda record: (record.session, str(record.seed)))
        raise _NotRanked("failed", f"Session {first.session}, {_run_name(first.seed)}: {first.reason}")
    names = sorted(sessions)
    # What counts comes first, then each seed where there are several.
    wanted = _counting(entry.seeds)
    records = [[_the_score(entry, name, sessions[name], seed, tier, metric, metric_version) for seed in wanted] for name in names]
    flat = [_the_resamples(entry, of_session[0], metric) for of_session in records]
    kinds = {(one.resampling_version, one.resampling_seed, len(one.images)) for one in flat}
    if len(kinds) > 1 or any({len(one.images), len(one.neurons), len(one.both)} != {len(one.images)} for one in flat):
        raise _NotRanked("incomplete", "Its sessions were resampled with different draws; they will be resampled.")

    values = np.array([[record.metrics.value(metric) for record in of_session] for of_session in records], dtype=np.float64)
    draws = np.mean([(one.images, one.neurons, one.both) for one in flat], axis=0)
    results = tuple(_session_result(of_session) for of_session in records)
    ceiling = _mean([result.noise_ceiling.value(metric) for result in results])
    value = float(values[:, 0].mean())
    row = _row(entry, results).model_copy(
        update={
            "status": "ranked",
            "score": Estimate(value=value, low=value, high=value),
            "metrics": Metrics(**{name: _mean([result.metrics.value(name) for result in results]) for name in NAMES}),
            "seed_deviation": float(values[:, 1:].mean(0).std(ddof=1)) if len(entry.seeds) > 1 else None,
            "noise_ceiling": ceiling,
            "relative_score": value / ceiling if ceiling is not None and ceiling > 0 else None,
        }
    )
    return _Complete(entry, row, value, values[:, 0], draws, kinds.pop(), min(min(one.image_count, one.neuron_count) for one in flat))


def _counting(seeds: tuple[int, ...]) -> tuple[int | None, ...]:
    """The seeds of the records that are needed, that of the score itself first."""
    return seeds if len(seeds) == 1 else (None, *seeds)


def _run_name(seed: int | None) -> str:
    return "the ensemble of its seeds" if seed is None else f"seed {seed}"


def _the_score(
    entry: Entry, session: str, open_digest: str, seed: int | None, tier: Tier, metric: MetricName, metric_version: str
) -> ScoreRecord:
    here = f"session {session}, {_run_name(seed)}"
    same_run = [record for record in entry.scores if (record.session, record.seed, record.tier) == (session, seed, tier)]
    if not same_run:
        raise _NotRanked("incomplete", f"There is no score yet for {here}.")
    on_data = [record for record in same_run if record.open_digest == open_digest]
    if not on_data:
        raise _NotRanked("incomplete", f"The data of {here} is newer than the score; the submission will be evaluated again.")
    current = {digest_of(record): record for record in on_data if record.metric_version == metric_version}
    if not current:
        raise _NotRanked("incomplete", f"The score of {here} is by metric version {on_data[0].metric_version}; it will be scored again.")
    if len(current) > 1:
        raise _NotRanked("incomplete", f"There are {len(current)} different scores for {here}; the organisers have to say which counts.")
    record = next(iter(current.values()))
    value = record.metrics.value(metric)
    if value is None:
        raise _NotRanked("incomplete", f"The ranking metric is undefined for {here}.")
    return record


def _the_resamples(entry: Entry, record: ScoreRecord, metric: MetricName) -> ResampledScore:
    digest = digest_of(record)
    for resampled in entry.resampled:
        if resampled.score_digest == digest and resampled.metric == metric:
            return resampled
    raise _NotRanked("incomplete", f"The score of session {record.session}, {_run_name(record.seed)} has not been resampled yet.")


def _session_result(records: Sequence[ScoreRecord]) -> SessionResult:
    """One session, from the record that counts and those of each seed after it."""
    first = records[0]
    return SessionResult(
        session=first.session,
        metrics=first.metrics,
        noise_ceiling=first.noise_ceiling,
        neurons=first.neurons,
        feve_neurons=first.feve_neurons,
        images=first.images,
        trials=first.trials,
        repeats=first.repeats,
        open_digest=first.open_digest,
        score_digests=tuple(digest_of(record) for record in records),
        predictions_digests=tuple(record.predictions_digest or "" for record in records),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of all values; undefined where any is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _row(entry: Entry, results: tuple[SessionResult, ...]) -> Row:
    def used(of: Callable[[ScoreRecord], str | None]) -> tuple[str, ...]:
        return tuple(sorted({value for record in entry.scores if (value := of(record))}))

    return Row(
        team=entry.team,
        model=entry.model,
        submission_digest=entry.submission_digest,
        reference=entry.reference,
        phase=entry.phase,
        status="incomplete",
        sessions=results,
        neurons=sum(result.neurons for result in results) or None,
        images=max((result.images for result in results), default=None),
        trials=sum(result.trials for result in results) or None,
        seeds=entry.seeds,
        device_class=", ".join(used(lambda record: record.device_class)),
        environment_digests=used(lambda record: record.environment_digest),
        code_versions=used(lambda record: record.code_version),
        wall_seconds=entry.wall_seconds,
        device_seconds=entry.device_seconds,
        energy_joules=entry.energy_joules,
        peak_memory_bytes=entry.peak_memory_bytes,
        isolation=entry.isolation,
        received=entry.received,
    )


def _unranked_row(entry: Entry, why: _NotRanked, tier: Tier, sessions: Mapping[str, str], metric_version: str) -> Row:
    """What is known of a submission without a rank: scores by session, where they are complete; no means over sessions."""
    results = []
    for name in sorted(sessions):
        wanted = (name, tier, "scored", sessions[name], metric_version)
        scored = {r.seed: r for r in entry.scores if (r.session, r.tier, r.status, r.open_digest, r.metric_version) == wanted}
        if all(seed in scored for seed in _counting(entry.seeds)):
            results.append(_session_result([scored[seed] for seed in _counting(entry.seeds)]))
    return _row(entry, tuple(results)).model_copy(update={"status": why.status, "reason": why.reason})


def _ranked_rows(complete: Sequence[_Complete]) -> list[Row]:
    if not complete:
        return []
    return _compared(complete, next((model.value for model in complete if model.row.reference), None))


def _compared(complete: Sequence[_Complete], reference: float | None) -> list[Row]:
    """Rows with ranks among each other, best first."""
    comparison = compare(
        np.array([model.value for model in complete]),
        *np.stack([model.draws for model in complete], axis=1),
        degrees_of_freedom=min(model.smallest_sample for model in complete) - 1,
    )
    rows = [_with_comparison(model, comparison, place, reference) for place, model in enumerate(complete)]
    return sorted(rows, key=lambda row: (row.rank or 0, *_by_name(row)))


def _later_rows(later: Sequence[_Complete], competing: Sequence[_Complete]) -> list[Row]:
    """What came after the competition, best first: scores with their intervals, and no rank."""
    if not later:
        return []
    reference = next((model.value for model in competing if model.row.reference), None)
    nobodys = {"rank": None, "rank_tier": None, "rank_low": None, "rank_high": None, "difference_to_leader": None, "p_best": None}
    rows = []
    for ranked in _compared(later, reference):
        reason = f"after the competition{f', in phase {ranked.phase}' if ranked.phase else ''}"
        rows.append(ranked.model_copy(update={**nobodys, "status": "after", "reason": reason}))
    return rows


def _with_comparison(model: _Complete, comparison: Comparison, place: int, reference: float | None) -> Row:
    half, value = float(comparison.half_width[place]), model.value
    difference, half_difference = float(comparison.difference[place]), float(comparison.difference_half_width[place])
    return model.row.model_copy(
        update={
            "rank": int(comparison.rank[place]),
            "rank_tier": int(comparison.rank_tier[place]),
            "rank_low": int(comparison.rank_low[place]),
            "rank_high": int(comparison.rank_high[place]),
            "score": Estimate(value=value, low=value - half, high=value + half),
            "difference_to_leader": Estimate(value=difference, low=difference - half_difference, high=difference + half_difference),
            "p_best": float(comparison.p_best[place]),
            "improvement_percent": 100 * (value / reference - 1) if reference is not None and reference > 0 else None,
        }
    )


def _by_name(row: Row) -> tuple[str, str, str]:
    return (row.team, row.model, row.submission_digest)


def _sessions_left_out(table: RankingTable, complete: Sequence[_Complete], names: Sequence[str]) -> tuple[SessionLeftOut, ...]:
    """How the ranking would be without each session, where there are several."""
    if len(names) < 2 or not complete:
        return ()
    # The only need for scipy.stats, whose import takes longer than all tables of a night with nothing new.
    from scipy.stats import kendalltau

    of_model = {(model.row.team, model.row.submission_digest): model for model in complete}
    in_order = [of_model[(row.team, row.submission_digest)] for row in table.ranked]
    whole = shared_ranks(np.array([model.value for model in in_order]))
    left_out = []
    for index, name in enumerate(names):
        ranks = shared_ranks(np.array([np.delete(model.by_session, index).mean() for model in in_order]))
        tau = float(kendalltau(whole, ranks).statistic) if len(in_order) > 1 else math.nan
        left_out.append(SessionLeftOut(session=name, kendall_tau=tau if math.isfinite(tau) else None, ranks=tuple(ranks.tolist())))
    return tuple(left_out)
