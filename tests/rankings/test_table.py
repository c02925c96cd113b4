"""The ranking function: the order of entries never matters, and nothing undefined or incomplete ever gets a rank."""

import math
import random
from datetime import timedelta

import numpy as np
import pytest
from fake_entries import RECEIVED, SESSIONS, make_entries, make_entry, make_resampled, make_score
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.rankings import RankingTable, rank_submissions, which_counts
from sensorium_pipeline.scoring import Metrics

TWO = {"static26872-17-20": "d1" * 32, "static99-1-1": "d3" * 32}


def rank(entries, sessions=None, track="sensorium", tier="test", **changes):
    known = {"release": "demo", "track": track, "tier": tier, "sessions": sessions or SESSIONS[track]}
    return rank_submissions(entries, **(known | changes))


def average(value, **others):
    return Metrics(single_trial_correlation=0.3, correlation_to_average=value, feve=0.4, **others)


def test_the_realistic_table():
    table = rank(make_entries())
    assert [row.rank for row in table.ranked] == list(range(1, 9))
    assert table.metric == "correlation_to_average"
    leader, last = table.ranked[0], table.ranked[-1]
    assert (leader.team, last.model) == ("Cortex Cartographers", "LN baseline")
    assert leader.difference_to_leader.value == 0
    assert last.difference_to_leader.high < 0
    assert leader.score.low < leader.score.value < leader.score.high
    assert leader.improvement_percent == pytest.approx(100 * (leader.score.value / table.reference.score.value - 1))
    assert table.reference.improvement_percent == 0
    assert leader.relative_score == pytest.approx(leader.score.value / 0.79)
    assert leader.seed_deviation > 0
    assert leader.sessions[0].score_digests != leader.sessions[0].predictions_digests
    assert {row.team: row.status for row in table.unranked} == {
        "Late Night Commits": "failed",
        "Patience": "incomplete",
        "Shortcut Ltd": "failed",
    }
    assert all(row.reason for row in table.unranked)
    assert RankingTable.model_validate_json(table.model_dump_json()) == table


def test_each_track_is_ranked_by_its_own_metric():
    assert rank(make_entries("sensorium+"), track="sensorium+").metric == "single_trial_correlation"


def test_the_digest_of_hidden_responses_is_not_in_the_table():
    assert "5e5e5e" not in rank(make_entries()).model_dump_json()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_entries_does_not_matter(seed):
    entries = make_entries()
    shuffled = random.Random(seed).sample(entries, len(entries))
    assert rank(shuffled) == rank(entries)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.floats(-1, 1), st.sampled_from([math.nan, math.inf, -math.inf, None, "crashed", "absent", 0.25])),
        min_size=1,
        max_size=7,
    )
)
def test_undefined_and_missing_never_rank_and_equal_scores_share_a_rank(values):
    entries, numbers = [], {}
    for place, value in enumerate(values):
        team = f"team {place}"
        if value == "absent":
            entries.append(make_entry(team, "m", submission_digest=f"{place:064d}"))
        elif value == "crashed":
            failed = make_score(f"{place:064d}", status="failed", reason="Out of memory.", metrics=Metrics())
            entries.append(make_entry(team, "m", [failed]))
        else:
            entries.append(make_entry(team, "m", [make_score(f"{place:064d}", metrics=average(value))]))
            if value is not None and math.isfinite(value):
                numbers[team] = value
    table = rank(entries)
    assert {row.team for row in table.ranked} == set(numbers)
    assert len(table.rows) == len(values)
    for row in table.ranked:
        better = sum(other > numbers[row.team] + 1e-6 for other in numbers.values())
        assert row.rank <= better + sum(abs(other - numbers[row.team]) <= 1e-6 for other in numbers.values())
        assert row.rank >= better + 1
    for row in table.unranked:
        assert row.reason
        assert (row.score, row.p_best, row.difference_to_leader, row.relative_score) == (None, None, None, None)
    ranks = [row.rank for row in table.rows]
    assert ranks == [*sorted(rank for rank in ranks if rank is not None), *[None] * len(table.unranked)]


def test_of_equal_leaders_all_are_compared_with_the_first_row():
    entries = [make_entry(team, "m", [make_score(name)]) for team, name in (("b", "aa"), ("a", "bb"))]
    first, second = rank(entries).ranked
    assert (first.team, first.rank, second.team, second.rank) == ("a", 1, "b", 1)
    assert first.difference_to_leader.low == first.difference_to_leader.high == 0
    assert second.difference_to_leader.low < 0 < second.difference_to_leader.high


@pytest.mark.parametrize("ceiling", [0.0, -0.01, None])
def test_without_a_ceiling_above_zero_nothing_is_relative_to_it(ceiling):
    score = make_score("ab", noise_ceiling=Metrics(correlation_to_average=ceiling))
    assert rank([make_entry("a", "m", [score])]).ranked[0].relative_score is None


class TestIncomplete:
    """Nothing is averaged over fewer sessions or seeds, and nothing old or doubtful counts."""

    def one(self, scores, **changes):
        sessions = changes.pop("sessions", None)
        (row,) = rank([make_entry("team", "model", scores, **changes)], sessions).rows
        return row

    def test_a_session_is_missing(self):
        row = self.one([make_score("ab", metrics=average(0.99))], sessions=TWO)
        assert (row.rank, row.status, row.metrics) == (None, "incomplete", Metrics())
        assert "static99-1-1" in row.reason
        assert row.sessions[0].metrics.correlation_to_average == 0.99

    def test_a_seed_is_missing(self):
        assert "seed 7" in self.one([make_score("ab", seed=None), make_score("ab")], seeds=(0, 7)).reason

    def test_the_ensemble_is_missing(self):
        assert "the ensemble of its seeds" in self.one([make_score("ab"), make_score("ab", seed=1)]).reason

    def test_one_seed_failed(self):
        failed = make_score("ab", seed=1, status="failed", reason="Out of time.")
        row = self.one([make_score("ab"), failed], resampled=(make_resampled(make_score("ab")),))
        assert (row.status, row.reason) == ("failed", "Session static26872-17-20, seed 1: Out of time.")

    def test_an_old_metric_version(self):
        assert "sensorium-2022.0" in self.one([make_score("ab", metric_version="sensorium-2022.0")]).reason

    def test_old_data(self):
        assert "newer" in self.one([make_score("ab", open_digest="0d" * 32)]).reason

    def test_two_different_scores(self):
        assert "2 different scores" in self.one([make_score("ab"), make_score("ab", metrics=average(0.9))]).reason

    def test_the_same_score_twice_is_one(self):
        assert self.one([make_score("ab"), make_score("ab")], seeds=(0,)).rank == 1

    def test_not_resampled(self):
        assert "not been resampled" in self.one([make_score("ab")], resampled=()).reason

    def test_other_draws_than_the_rest(self):
        odd = make_score("cc", metrics=average(0.9))
        entries = [make_entry(f"team {name}", "m", [make_score(name)]) for name in ("aa", "bb")]
        entries.append(make_entry("odd", "m", [odd], resampled=(make_resampled(odd, resampling_seed=5),)))
        table = rank(entries)
        assert [row.team for row in table.unranked] == ["odd"]
        assert "other draws" in table.unranked[0].reason
        assert table.unranked[0].score is None

    def test_scores_of_the_other_tier_do_not_count(self):
        assert self.one([make_score("ab", tier="final_test")]).rank is None


def test_the_score_is_the_mean_over_sessions_of_the_ensemble_of_seeds():
    scores = [
        make_score("ab", session=session, seed=seed, metrics=average(value))
        for session, seed, value in [
            ("static26872-17-20", None, 0.3),
            ("static26872-17-20", 0, 0.1),
            ("static26872-17-20", 1, 0.2),
            ("static99-1-1", None, 0.6),
            ("static99-1-1", 0, 0.5),
            ("static99-1-1", 1, 0.5),
        ]
    ]
    other = [make_score("cd", session=name, metrics=average(value)) for name, value in zip(TWO, (0.1, 0.8), strict=True)]
    table = rank([make_entry("a", "m", scores), make_entry("b", "m", other)], TWO)
    first, second = table.ranked
    assert (first.team, first.score.value, second.score.value) == ("a", pytest.approx(0.45), pytest.approx(0.45))
    assert (first.rank, second.rank) == (1, 1)
    assert first.seed_deviation == pytest.approx(0.05 / math.sqrt(2))
    assert len(first.sessions[0].score_digests) == 3
    assert second.seed_deviation is None
    assert [left.ranks for left in table.sessions_left_out] == [(2, 1), (1, 2)]


def test_the_interval_is_that_of_the_mean_over_sessions():
    entry = make_entry("a", "m", [make_score("ab", session=name, images=images) for name, images in zip(TWO, (100, 40), strict=True)])
    (row,) = rank([entry], TWO).ranked
    drawn = (np.mean([getattr(one, kind) for one in entry.resampled], axis=0) for kind in ("images", "neurons", "both"))
    images, neurons, both = (np.var(values, ddof=1) for values in drawn)
    variance = np.clip(2 * (images + neurons) - both, max(images, neurons), max(images, neurons, both))
    # Student's t with 39 degrees of freedom, as the smaller session has 40 images: 2.0227.
    for bound in (row.score.low, row.score.high):
        assert abs(bound - row.score.value) == pytest.approx(2.0227 * np.sqrt(variance), rel=1e-4)


def test_what_makes_no_table():
    entry = make_entry("a", "m", [make_score("ab")])
    with pytest.raises(OrganiserError, match="twice"):
        rank([entry, entry])
    with pytest.raises(OrganiserError, match="no competition session"):
        rank_submissions([entry], release="demo", track="sensorium", tier="test", sessions={})
    with pytest.raises(OrganiserError, match=r"track sensorium\+"):
        rank([make_entry("a", "m", track="sensorium+")])
    with pytest.raises(OrganiserError, match="two reference baselines"):
        rank([entry.model_copy(update={"reference": True, "team": name}) for name in "ab"])
    assert rank([]).rows == ()


class TestWhichCounts:
    """The team's choice, else its best on live; never its best on final."""

    def live(self):
        scores = {"aa": 0.5, "bb": 0.6, "cc": 0.4}
        entries = [make_entry("one", name, [make_score(name, metrics=average(value))]) for name, value in scores.items()]
        return rank([*entries, make_entry("two", "m", failure="It crashed.", submission_digest="dd")])

    def test_the_best_on_live_counts_where_nothing_was_chosen(self):
        assert which_counts(self.live(), {}) == {"one": "bb", "two": "dd"}

    def test_of_equals_the_one_received_first_counts(self):
        later = make_entry("one", "m", [make_score("aa")], received=RECEIVED + timedelta(days=1))
        first = make_entry("one", "m", [make_score("bb")], received=RECEIVED)
        assert which_counts(rank([later, first]), {}) == {"one": "bb"}

    def test_the_choice_wins_over_the_best(self):
        assert which_counts(self.live(), {"one": "cc", "in the other track": "ff"}) == {"one": "cc", "two": "dd"}

    def test_a_foreign_choice_is_refused(self):
        with pytest.raises(InputError, match="did not send"):
            which_counts(self.live(), {"one": "dd"})

    def test_final_scores_cannot_decide(self):
        final = rank(make_entries(tier="final_test"), tier="final_test")
        with pytest.raises(OrganiserError, match="decided on tier test"):
            which_counts(final, {})
