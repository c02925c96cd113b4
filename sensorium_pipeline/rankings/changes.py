"""What moved between two publications of a table, and why: shown before and after a table is replaced."""

from sensorium_pipeline.rankings.comparison import SAME_SCORE
from sensorium_pipeline.rankings.records import Change, RankingTable, Row, _Record


class RowChange(_Record):
    """One submission whose rank or score is not what it was; None is "no rank" or "no score"."""

    team: str
    model: str
    submission_digest: str
    rank_before: int | None
    rank_now: int | None
    score_before: float | None
    score_now: float | None
    reason: str


class TableChanges(_Record):
    """All that moved in one table; `first` where there was none before."""

    track: str
    tier: str
    first: bool
    rows: tuple[RowChange, ...]


def with_changes(table: RankingTable, previous: RankingTable | None) -> RankingTable:
    """The table with its column of changes filled in; without a previous table nothing has changed."""
    if previous is None:
        return table
    before = {_key(row): row for row in previous.rows}
    rows = tuple(row.model_copy(update={"change": _change(row, before.get(_key(row)), table, previous)}) for row in table.rows)
    return table.model_copy(update={"rows": rows})


def changes_between(previous: RankingTable | None, table: RankingTable) -> TableChanges:
    """Every submission that moved, came or went, in the order of the new table and then of the old one."""
    rows: list[RowChange] = []
    if previous is not None:
        for row in with_changes(table, previous).rows:
            if row.change.reason:
                rows.append(_row_change(row, row.change.rank_before, row.rank, row.change.score_before, _score(row), row.change.reason))
        now = {_key(row) for row in table.rows}
        withdrawn = {(one.team, one.submission_digest): one.time for one in table.withdrawn}
        for row in previous.rows:
            if _key(row) not in now:
                time = withdrawn.get(_key(row))
                reason = f"withdrawn by its team on {time:%Y-%m-%d}" if time else "no longer listed: another one of the team counts"
                rows.append(_row_change(row, row.rank, None, _score(row), None, reason))
    return TableChanges(track=table.track, tier=table.tier, first=previous is None, rows=tuple(rows))


def _row_change(
    row: Row, rank_before: int | None, rank_now: int | None, score_before: float | None, score_now: float | None, reason: str
) -> RowChange:
    return RowChange(
        team=row.team,
        model=row.model,
        submission_digest=row.submission_digest,
        rank_before=rank_before,
        rank_now=rank_now,
        score_before=score_before,
        score_now=score_now,
        reason=reason,
    )


def _key(row: Row) -> tuple[str, str]:
    return (row.team, row.submission_digest)


def _score(row: Row) -> float | None:
    return None if row.score is None else row.score.value


def _change(row: Row, before: Row | None, table: RankingTable, previous: RankingTable) -> Change:
    if before is None:
        return Change(reason="new submission")
    score_before, score_now = _score(before), _score(row)
    moved = score_before != score_now and (score_before is None or score_now is None or abs(score_before - score_now) > SAME_SCORE)
    reasons: list[str] = []
    if moved:
        reasons = _reasons_of_score(row, before, table, previous)
    elif row.rank != before.rank:
        reasons = [_reason_of_rank(row, table, previous)]
    elif row.reason != before.reason:
        reasons = ["another reason"]
    return Change(rank_before=before.rank, score_before=score_before, reason="; ".join(reasons))


def _reasons_of_score(row: Row, before: Row, table: RankingTable, previous: RankingTable) -> list[str]:
    reasons = []
    data_now = {data.session: data.open_digest for data in table.data}
    data_before = {data.session: data.open_digest for data in previous.data}
    if data_now != data_before:
        other = sorted(name for name in data_now.keys() | data_before.keys() if data_now.get(name) != data_before.get(name))
        reasons.append(f"new data: {', '.join(other)}")
    if table.metric_version != previous.metric_version:
        reasons.append(f"new metric version: {previous.metric_version} → {table.metric_version}")
    if row.score is None:
        reasons.append(f"{row.status} now")
    elif before.score is None:
        reasons.append("evaluated now")
    elif _predictions(row) != _predictions(before) and data_now == data_before:
        reasons.append("run again: other predictions")
    return reasons or ["scored again"]


def _predictions(row: Row) -> list[tuple[str, ...]]:
    return [result.predictions_digests for result in row.sessions]


def _reason_of_rank(row: Row, table: RankingTable, previous: RankingTable) -> str:
    """Its own score stands: others came, went or moved above it."""
    above_before = {_key(other) for other in previous.ranked if (other.rank or 0) < _rank(previous, row)}
    above_now = {_key(other) for other in table.ranked if (other.rank or 0) < _rank(table, row)}
    known_before, known_now = {_key(other) for other in previous.rows}, {_key(other) for other in table.rows}
    new = len(above_now - known_before)
    gone = len(above_before - known_now)
    passed = len((above_now - above_before) & known_before)
    fell = len((above_before - above_now) & known_now)
    parts = [
        f"{count} {what}"
        for count, what in ((new, "new above it"), (passed, "passed it"), (gone, "above it gone"), (fell, "above it fell behind"))
        if count
    ]
    return "others: " + ", ".join(parts) if parts else "ranked otherwise"


def _rank(table: RankingTable, row: Row) -> int:
    return next((other.rank or 0 for other in table.rows if _key(other) == _key(row)), 0)
