"""When a submission counts: quotas of a day, given back or not, and the phases of a release."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from small_inbox import BUILD, NOON, Post, finish, reasons
from submission_samples import write_submission

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.evaluation import refuse
from sensorium_pipeline.intake import record_platform_failure, take_in, update_standings
from sensorium_pipeline.jobs import Job
from sensorium_pipeline.sessions.phases import Phase
from sensorium_pipeline.sessions.release import Release, change_phases
from sensorium_pipeline.storage import Workspace
from sensorium_pipeline.submissions.inbox import Decision, list_submissions
from sensorium_pipeline.submissions.sending import submit
from sensorium_pipeline.submissions.teams import Token, add_team, parse_token, token_of


class TestQuotas:
    def test_one_a_day_by_the_clock_of_the_phase(self, workspace: Workspace, post: Post, token: Token) -> None:
        evening = datetime(2027, 3, 2, 22, 30, tzinfo=UTC)  # 23:30 in Berlin
        post.send(token, evening)
        with pytest.raises(InputError, match=r"team lobe-lab has used its 1 submission of 2027-03-02 to sensorium") as caught:
            post.send(token, evening + timedelta(minutes=29))
        assert caught.value.where == "lobe-lab/sensorium/1"
        assert "The next day begins at 2027-03-03 00:00 Europe/Berlin" in caught.value.advice
        assert post.send(token, evening + timedelta(minutes=31)).number == 2
        assert post.send(token, evening, "sensorium+").number == 1
        take_in(workspace)
        assert set(reasons(workspace).values()) == {""}

    def test_what_counts_is_when_the_store_received_it(self, workspace: Workspace, post: Post, token: Token) -> None:
        for day in range(3):
            # By its own clock the team sent these on three days.
            sent = post.send(token, NOON + timedelta(days=day))
            post.received(f"submissions/{sent.identifier}", NOON + timedelta(hours=day))
        take_in(workspace)
        assert [reason.partition(" by")[0] for reason in reasons(workspace).values()] == [
            "",
            *["the quota of 1 a day was used on 2027-03-01 (Europe/Berlin)"] * 2,
        ]

    def test_the_same_again_is_recognised_and_costs_nothing(self, workspace: Workspace, post: Post, token: Token) -> None:
        first = post.send(token, text=BUILD)
        again = post.send(token, text=BUILD)
        assert (again.duplicate, again.identifier) == (True, first.identifier)
        take_in(workspace)
        assert post.send(token, NOON + timedelta(days=3), text=BUILD).duplicate
        other = parse_token(add_team(workspace.sealed, "other", NOON))
        assert not post.send(other, text=BUILD).duplicate
        assert not post.send(token, track="sensorium+", text=BUILD).duplicate

    def test_what_was_refused_can_be_sent_again(self, workspace: Workspace, post: Post, token: Token) -> None:
        post.send(token)
        sent = post.send(token, NOON + timedelta(days=1), text=BUILD)
        post.received(f"submissions/{sent.identifier}", NOON)
        take_in(workspace)
        assert reasons(workspace)["lobe-lab/sensorium/2"].endswith("submit it again another day")
        again = post.send(token, NOON + timedelta(days=1, minutes=1), text=BUILD)
        assert (again.duplicate, again.number) == (False, 3)
        take_in(workspace)
        assert reasons(workspace)["lobe-lab/sensorium/3"] == ""

    @pytest.mark.parametrize(
        ("outcomes", "accepted"),
        [
            (["scored"], 1),
            (["failed", "scored"], 2),
            (["failed", "failed", "failed"], 3),
            (["platform", "platform", "platform", "platform", "scored"], 5),
            (["refused here", "scored"], 2),
        ],
    )
    def test_failures_are_capped_apart_and_the_platforms_are_refunded(
        self, workspace: Workspace, release: Release, post: Post, token: Token, outcomes: list[str], accepted: int
    ) -> None:
        for outcome in outcomes:
            post.send(token)
            (decision,) = take_in(workspace)
            assert isinstance(decision, Decision)
            record = decision.submission
            assert record is not None, decision.reason
            if outcome == "platform":
                record_platform_failure(workspace, record, "the disk is full")
            elif outcome == "refused here":
                refuse(workspace, Job(submission=record, release=release), "no isolation")
            else:
                finish(workspace, release, record, failed=outcome == "failed")
            update_standings(workspace, {("lobe-lab", "sensorium")})
        with pytest.raises(InputError, match="has used its 1 submission of 2027-03-01"):
            post.send(token)
        assert len(list_submissions(workspace)) == accepted

    def test_two_at_once_share_no_place(self, workspace: Workspace, post: Post, token: Token, release: Release, tmp_path: Path) -> None:
        folders = [write_submission(tmp_path / f"at-once-{number}", f"{BUILD}# {number}\n") for number in range(4)]

        def put(folder: Path) -> str:
            try:
                return submit(workspace, release, folder, token, "sensorium", NOON).identifier
            except InputError as error:
                return error.problem

        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(put, folders))
        assert sum(text.startswith("lobe-lab/") for text in said) == 1
        for entry in workspace.inbox.walk("submissions"):
            post.received(entry.path.removesuffix(".json"), NOON)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(take_in, [workspace] * 4))
        assert len(list_submissions(workspace)) == 1
        assert list(reasons(workspace).values()).count("") == 1

    def test_the_organisers_have_none(self, workspace: Workspace, post: Post) -> None:
        token = parse_token(add_team(workspace.sealed, "organisers", NOON, kind="organisers"))
        for day in (-90, 0, 0, 90):
            post.send(token, NOON + timedelta(days=day))
        take_in(workspace)
        assert set(reasons(workspace).values()) == {""}
        claimed = parse_token(SecretStr(token_of(workspace.sealed, "organisers").get_secret_value()))
        assert claimed.kind == "organisers"

    def test_a_team_cannot_call_itself_organisers(self, workspace: Workspace, post: Post, token: Token) -> None:
        own = token_of(workspace.sealed, "lobe-lab").get_secret_value().replace("-team.", "-organisers.")
        for _ in range(2):
            post.send(parse_token(SecretStr(own)))
        take_in(workspace)
        assert list(reasons(workspace).values()).count("") == 1


class TestPhases:
    @pytest.mark.parametrize("at", [datetime(2027, 2, 28, 23, 59, tzinfo=UTC), datetime(2027, 4, 1, tzinfo=UTC)])
    def test_outside_of_all_phases(self, workspace: Workspace, post: Post, token: Token, at: datetime) -> None:
        with pytest.raises(InputError, match="no submissions are taken now") as caught:
            post.send(token, at)
        assert "competition from 2027-03-01 01:00 to 2027-04-01 02:00 Europe/Berlin" in caught.value.advice
        assert workspace.inbox.walk("") == []
        sent = post.send(token)  # its own clock says March
        post.received(f"submissions/{sent.identifier}", at)
        take_in(workspace)
        assert "between phases: competition from" in reasons(workspace)["lobe-lab/sensorium/1"]

    def test_the_phase_is_kept_with_the_submission(self, workspace: Workspace, post: Post, token: Token, release: Release) -> None:
        after = Phase(name="ongoing", opens=datetime(2027, 5, 1, tzinfo=UTC), after_competition=True)
        post.release = change_phases(workspace, "2027", phases=[after, *release.phases])
        post.send(token)
        post.send(token, datetime(2028, 1, 1, tzinfo=UTC))
        take_in(workspace)
        assert [record.phase for record in list_submissions(workspace)] == ["competition", "ongoing"]
