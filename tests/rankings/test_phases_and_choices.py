"""Tables of real submissions over the phases of a competition: what is listed, what counts, and what withdrawing changes."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fake_entries import make_entries
from small_world import RELEASE, SENSORIUM, World, send, token_for, true_predictions, write_file_submission

from sensorium_pipeline.errors import OrganiserError
from sensorium_pipeline.hidden_scores import score
from sensorium_pipeline.intake import take_in
from sensorium_pipeline.jobs import list_jobs
from sensorium_pipeline.prediction_runs import predict
from sensorium_pipeline.rankings import publish, rank_submissions
from sensorium_pipeline.rankings.explain import explain
from sensorium_pipeline.rankings.records import RankingTable, Row
from sensorium_pipeline.scoring import Tier
from sensorium_pipeline.sessions.phases import Phase
from sensorium_pipeline.sessions.release import change_phases, read_release
from sensorium_pipeline.submissions.sending import Action, request
from sensorium_pipeline.tables import rank

NOW = datetime.now(UTC)
CLOSE = NOW + timedelta(hours=1)


class Competition:
    """A team with a good submission (1), a worse one (2), and the best (3) after the close; a rival with one (1)."""

    def __init__(self, world: World, folder: Path) -> None:
        self.workspace = world.workspace
        competition = Phase(name="competition", closes=CLOSE, per_day=5)
        ongoing = Phase(name="ongoing", opens=CLOSE, per_day=5, after_competition=True)
        change_phases(self.workspace, RELEASE, phases=[competition, ongoing])
        for team, noise, late in (("lobe-lab", 1.0, False), ("lobe-lab", 3.0, False), ("lobe-lab", 0.1, True), ("rival", 2.0, False)):
            name = f"noise {noise}"
            path = write_file_submission(folder / name, name, SENSORIUM, true_predictions(self.workspace, SENSORIUM, noise))
            sent = send(self.workspace, path, team, "sensorium")
            if late:
                self.received("submissions", team, sent.number, CLOSE + timedelta(hours=1))
        take_in(self.workspace)
        for job in list_jobs(self.workspace, self.release):
            score(self.workspace, job, [predict(self.workspace, job, 0)])

    @property
    def release(self):
        return read_release(self.workspace.open, RELEASE)

    def received(self, kind: str, team: str, number: int, at: datetime) -> None:
        path = Path(self.workspace.inbox.url.removeprefix("file://"), kind, team, "sensorium", f"{number:06d}.json")
        os.utime(path, (at.timestamp(), at.timestamp()))

    def ask(self, action: Action, number: int, at: datetime | None = None) -> None:
        request(self.workspace, self.release, f"lobe-lab/sensorium/{number}", action, token_for(self.workspace, "lobe-lab"))
        if at is not None:
            count = len(self.workspace.inbox.list("requests/lobe-lab/sensorium"))
            self.received("requests", "lobe-lab", count, at)
        take_in(self.workspace)

    def table(self, tier: Tier) -> RankingTable:
        return rank(self.workspace, self.release, "sensorium", tier)

    def models(self, tier: Tier) -> list[tuple[int | None, str]]:
        return [(row.rank, row.model) for row in self.table(tier).rows]


@pytest.fixture
def competition(world: World, tmp_path: Path) -> Competition:
    return Competition(world.copy(tmp_path / "copy"), tmp_path / "sent")


def test_the_best_on_live_counts_and_later_entries_take_no_rank(competition: Competition) -> None:
    assert competition.models("test") == [(1, "noise 1.0"), (2, "noise 2.0"), (3, "noise 3.0"), (None, "noise 0.1")]
    later = competition.table("test").rows[-1]
    assert (later.status, later.reason) == ("after", "after the competition, in phase ongoing")
    assert later.score is not None
    assert later.score.low < later.score.value < later.score.high
    with pytest.raises(OrganiserError, match="the final tier is not open"):
        competition.table("final_test")
    change_phases(competition.workspace, RELEASE, final="open", phase="competition")
    assert competition.models("final_test") == [(1, "noise 1.0"), (2, "noise 2.0")]
    change_phases(competition.workspace, RELEASE, final="open", phase="ongoing")
    assert competition.models("final_test") == [(1, "noise 1.0"), (2, "noise 2.0"), (None, "noise 0.1")]


def test_a_choice_counts_and_a_withdrawal_after_the_opening_lets_nothing_slip_in(competition: Competition) -> None:
    competition.ask("choose", 2)
    opened = datetime.now(UTC) + timedelta(seconds=5)
    change_phases(competition.workspace, RELEASE, final="open", phase="competition", at=opened)
    assert competition.models("final_test") == [(1, "noise 2.0"), (2, "noise 3.0")]
    live, final = competition.table("test"), competition.table("final_test")
    publish(competition.workspace.open, RELEASE, [live, final], final_open=True, time=NOW)
    withdrawn = opened + timedelta(minutes=5)
    competition.ask("withdraw", 2, withdrawn)
    assert competition.models("test") == [(1, "noise 1.0"), (2, "noise 2.0"), (None, "noise 0.1")]
    assert competition.models("final_test") == [(1, "noise 2.0")]
    again = publish(
        competition.workspace.open, RELEASE, [competition.table(tier) for tier in ("test", "final_test")], final_open=True, time=NOW
    )
    reasons = {(change.tier, row.model): row.reason for change in again.changes for row in change.rows}
    assert reasons["test", "noise 3.0"] == reasons["final_test", "noise 3.0"] == f"withdrawn by its team on {withdrawn:%Y-%m-%d}"
    # Its results are still there.
    assert competition.workspace.sealed.list(f"evaluations/{RELEASE}/lobe-lab/sensorium/2")


def test_withdrawn_before_the_opening_the_next_best_counts(competition: Competition) -> None:
    competition.ask("choose", 1)
    competition.ask("withdraw", 1)
    change_phases(competition.workspace, RELEASE, final="open", phase="competition", at=datetime.now(UTC) + timedelta(seconds=5))
    assert competition.models("final_test") == [(1, "noise 2.0"), (2, "noise 3.0")]


def test_later_entries_change_no_number_of_those_that_compete() -> None:
    entries = make_entries()
    sessions = {"static26872-17-20": "d1" * 32}
    best = max(entries, key=lambda entry: max((record.metrics.correlation_to_average or 0 for record in entry.scores), default=0))
    later = best.model_copy(update={"phase": "ongoing", "after_competition": True})
    others = [entry for entry in entries if entry is not best]

    def table(*more):
        return rank_submissions([*others, *more], release="2022", track="sensorium", tier="test", sessions=sessions)

    without, listed = table(), table(later)
    assert listed.ranked == without.ranked
    (row,) = [row for row in listed.unranked if row.status == "after"]
    assert (row.rank, row.p_best, row.difference_to_leader) == (None, None, None)
    assert row.score is not None
    assert row.improvement_percent is not None
    assert row.score.value > listed.ranked[0].score.value
    assert explain(listed, row.submission_digest).numbers
    only = rank_submissions([later], release="2022", track="sensorium", tier="test", sessions=sessions)
    assert only.ranked == ()
    assert isinstance(explain(only, row.submission_digest).status, str)
    assert [type(one) for one in only.rows] == [Row]
