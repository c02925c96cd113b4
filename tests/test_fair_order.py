"""Whose turn it is: teams with many submissions do not hold up teams with one."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sensorium_pipeline.jobs import Job, in_fair_order
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.submissions.inbox import SubmissionRecord

RELEASE = Release(name="2027", sessions=(), phases=())


def job(team: str, number: int, minute: int) -> Job:
    submission = SubmissionRecord(
        team=team,
        track="sensorium",
        name=f"Model {number}",
        digest=f"{team}-{number}",
        has_code=True,
        seeds=[0],
        submitted_at=datetime(2027, 3, 1, tzinfo=UTC) + timedelta(minutes=minute),
        number=number,
        release="2027",
        phase="",
    )
    return Job(submission=submission, release=RELEASE)


def test_the_first_of_every_team_comes_before_the_second_of_any() -> None:
    jobs = [job("many", number, number) for number in (1, 2, 3)] + [job("late", 1, 50), job("later", 1, 60)]
    assert [(turn, one.identifier) for turn, one in in_fair_order(jobs)] == [
        (0, "many/sensorium/1"),
        (0, "late/sensorium/1"),
        (0, "later/sensorium/1"),
        (1, "many/sensorium/2"),
        (2, "many/sensorium/3"),
    ]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 100)), max_size=30))
def test_between_two_of_a_team_every_other_waiting_team_has_one(sent: list[tuple[str, int]]) -> None:
    jobs = [job(team, number, minute) for number, (team, minute) in enumerate(sent, 1)]
    order = in_fair_order(jobs)
    assert sorted(one.identifier for _, one in order) == sorted(one.identifier for one in jobs)
    for team in {one.submission.team for one in jobs}:
        places = [place for place, (_, one) in enumerate(order) if one.submission.team == team]
        for first, second in pairwise(places):
            waiting = {one.submission.team for _, one in order[second:]} - {team}
            assert waiting <= {one.submission.team for _, one in order[first:second]}
