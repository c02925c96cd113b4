"""What moved between two tables, and why."""

import pytest
from fake_entries import SESSIONS, make_entries, make_entry, make_score

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.rankings import changes_between, explain, rank_submissions
from sensorium_pipeline.scoring import METRIC_VERSION, Metrics


def table_of(*scores, failures=(), **changes):
    entries = [make_entry(f"team {score.submission_digest}", "m", [score]) for score in scores]
    entries += [make_entry(f"team {name}", "m", failure="It crashed.", submission_digest=name) for name in failures]
    known = {"release": "demo", "track": "sensorium", "tier": "test", "sessions": SESSIONS["sensorium"]}
    return rank_submissions(entries, **(known | changes))


def score(name, value, **changes):
    return make_score(name, metrics=Metrics(correlation_to_average=value), **changes)


def reasons(before, after):
    return {row.submission_digest: row.reason for row in changes_between(before, after).rows}


def test_the_first_table_has_no_changes():
    changes = changes_between(None, table_of(score("aa", 0.5)))
    assert changes.first
    assert changes.rows == ()


def test_a_new_submission_pushes_others_down():
    before = table_of(score("aa", 0.5), score("bb", 0.4))
    after = table_of(score("aa", 0.5), score("bb", 0.4), score("cc", 0.45))
    assert reasons(before, after) == {"cc": "new submission", "bb": "others: 1 new above it"}
    moved = next(row for row in changes_between(before, after).rows if row.submission_digest == "bb")
    assert (moved.rank_before, moved.rank_now, moved.score_before) == (2, 3, moved.score_now)


def test_run_again_new_data_new_metric_failure_and_withdrawal_are_told_apart():
    before = table_of(score("aa", 0.5), score("bb", 0.4))
    again = table_of(score("aa", 0.5), score("bb", 0.41, predictions_digest="99"))
    assert reasons(before, again) == {"bb": "run again: other predictions"}
    scored = table_of(score("aa", 0.5), score("bb", 0.41))
    assert reasons(before, scored) == {"bb": "scored again"}
    data = {"static26872-17-20": "ee" * 32}
    new_data = table_of(score("aa", 0.5), score("bb", 0.41, open_digest="ee" * 32), sessions=data)
    assert reasons(before, new_data) == {
        "aa": "new data: static26872-17-20; incomplete now",
        "bb": "new data: static26872-17-20",
    }
    metric = table_of(score("aa", 0.51, metric_version="next"), score("bb", 0.41, metric_version="next"), metric_version="next")
    assert set(reasons(before, metric).values()) == {f"new metric version: {METRIC_VERSION} → next"}
    assert reasons(before, table_of(score("aa", 0.5), failures=["bb"])) == {"bb": "failed now"}
    assert reasons(before, table_of(score("bb", 0.4))) == {
        "aa": "no longer listed: another one of the team counts",
        "bb": "others: 1 above it gone",
    }


def test_the_tables_own_column_says_the_same():
    before = table_of(score("aa", 0.5), score("bb", 0.4))
    after = table_of(score("aa", 0.5), score("bb", 0.6), previous=before)
    assert [(row.submission_digest, row.change.rank_before, row.change.reason) for row in after.rows] == [
        ("bb", 2, "scored again"),
        ("aa", 1, "others: 1 passed it"),
    ]
    assert after.without_changes() == table_of(score("aa", 0.5), score("bb", 0.6))


def test_every_number_is_explained_down_to_digests():
    table = rank_submissions(make_entries(), release="demo", track="sensorium", tier="test", sessions=SESSIONS["sensorium"])
    row = table.ranked[1]
    explanation = explain(table, row.submission_digest[:10])
    numbers = {origin.number: origin for origin in explanation.numbers}
    assert numbers["score (Correlation to Average)"].value == row.score.value
    assert numbers["score (Correlation to Average)"].digests["score records"] == row.sessions[0].score_digests
    assert numbers["FEVE, static26872-17-20"].digests["predictions"] == row.sessions[0].predictions_digests
    score = numbers["score (Correlation to Average)"]
    assert (score.low, score.high) == (row.score.low, row.score.high)
    assert (numbers["rank"].value, numbers["rank"].low, numbers["rank"].high) == (row.rank, row.rank_low, row.rank_high)
    assert numbers["P(best)"].value == row.p_best
    assert numbers["deviation of single seeds"].value == row.seed_deviation
    ceiling = numbers["noise ceiling of Correlation to Average, static26872-17-20"]
    assert "reliability" in ceiling.how
    assert ceiling.digests.keys() == {"released session", "score records"}  # no model has a part in it
    assert "the 5102 neurons with at least 15 % explainable variance" in numbers["FEVE, static26872-17-20"].how
    assert numbers["difference to the leader"].digests["leader"] == (table.ranked[0].submission_digest,)
    assert numbers["improvement, per cent"].digests["reference baseline"] == (table.reference.submission_digest,)
    failed = explain(table, table.unranked[0].submission_digest)
    assert (failed.status, failed.numbers) == ("failed", ())
    with pytest.raises(InputError, match="no submission"):
        explain(table, "zz")
    with pytest.raises(InputError, match="begin like this"):
        explain(table, "")
