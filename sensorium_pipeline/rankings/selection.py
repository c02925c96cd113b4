"""Which submission of a team counts: the one it chose, else its best on the live tier. Never its best on the final tier."""

import math
from collections.abc import Mapping, Sequence

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.rankings.records import RankingTable, Row


def which_counts(live: RankingTable, chosen: Mapping[str, str]) -> dict[str, str]:
    """The submission that counts for each team on the final tier, team -> submission digest.

    It takes the live table and nothing else, so a final score cannot decide. A chosen submission counts even where it failed. Of
    equals on the live tier the one received first counts. A team with nothing ranked is represented by what it sent last.

    Args:
        live: the track's table of the live tier, with all submissions.
        chosen: team -> submission digest, for teams that chose.

    Raises:
        OrganiserError: the table is not of the live tier.
        InputError: a team chose a submission that is not among its own.
    """
    if live.tier != "test":
        raise OrganiserError(f"what counts is decided on tier test, not {live.tier}", where=live.release, advice="Give the live table.")
    by_team: dict[str, list[Row]] = {}
    for row in live.rows:
        by_team.setdefault(row.team, []).append(row)
    counting = {team: _best(rows) for team, rows in by_team.items()}
    for team, digest in chosen.items():
        if team not in by_team:
            continue  # it chose in the other track
        if digest not in {row.submission_digest for row in by_team[team]}:
            problem = f"team {team} chose a submission that it did not send to track {live.track}"
            raise InputError(problem, where=digest, advice="Choose the digest of one of its own submissions.")
        counting[team] = digest
    return dict(sorted(counting.items()))


def _best(rows: Sequence[Row]) -> str:
    ranked = [row for row in rows if row.rank is not None]
    # What came after the competition has scores and no rank.
    later = [(row.score.value, row) for row in rows if row.status == "after" and row.score is not None]
    if not ranked and later:
        return min(later, key=lambda one: (-one[0], _time(one[1], math.inf), one[1].submission_digest))[1].submission_digest
    if ranked:
        return min(ranked, key=lambda row: (row.rank, _time(row, math.inf), row.submission_digest)).submission_digest
    return max(rows, key=lambda row: (_time(row, -math.inf), row.submission_digest)).submission_digest


def _time(row: Row, unknown: float) -> float:
    return unknown if row.received is None else row.received.timestamp()
