"""Releases: audited before they are named, versioned, and clear about what may not be."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.sessions.phases import Phase, phase_at, read_phases
from sensorium_pipeline.sessions.release import change_phases, choose_release, create_release, read_release
from sensorium_pipeline.storage import Series


@pytest.fixture
def three(raw_of, publish) -> list[str]:
    return [
        publish(raw_of(animal=animal, role=role, track=track, seed=animal)).name
        for animal, role, track in ((1, "open", None), (2, "competition", "sensorium"), (3, "competition", "sensorium+"))
    ]


def test_a_release_names_audited_sessions_by_digest(workspace, three):
    release, reports = create_release(workspace, "2022", three[::-1], references={"sensorium": "organisers/cnn"})
    assert [session.name for session in release.sessions] == three
    assert all(report.passed for report in reports)
    assert release.tracks == ("sensorium", "sensorium+")
    assert [session.name for session in release.training_sessions("sensorium")] == three[:2]
    assert [session.name for session in release.competition_sessions("sensorium+")] == three[2:]
    assert release.opened_tiers == ("test",)
    assert read_release(workspace.open, "2022") == release
    assert choose_release(workspace.open) == choose_release(workspace.open, "2022") == release
    create_release(workspace, "2022", three, references={"sensorium": "organisers/cnn"})
    assert Series(workspace.open, "releases/2022").numbers() == [1]
    again, _ = create_release(workspace, "2022", three)
    assert again == release  # what is left out, references too, stays as it was
    assert create_release(workspace, "2022", three, references={})[0].references == {}
    create_release(workspace, "2022", three, references={"sensorium": "organisers/cnn"})
    opened = change_phases(workspace, "2022", final="open")
    assert opened.opened_tiers == ("test", "final_test")
    assert opened.sessions == release.sessions
    assert workspace.open.list("releases") == ["2022"]
    with pytest.raises(InputError, match=r"sensorium, sensorium\+"):
        release.training_sessions("dynamic")
    with pytest.raises(InputError, match=r"sensorium, sensorium\+"):
        create_release(workspace, "2023", three, references={"dynamic": "organisers/cnn"})
    with pytest.raises(InputError, match="team/name"):
        create_release(workspace, "2023", three, references={"sensorium": "cnn"})
    with pytest.raises(OrganiserError, match="no session belongs to a track"):
        create_release(workspace, "2023", three[:1])
    with pytest.raises(InputError, match="Known releases: 2022"):
        read_release(workspace.open, "2023")


def test_a_leak_stops_a_release(workspace, published):
    record = published()
    Series(workspace.open, f"sessions/{record.name}").append(record)
    with pytest.raises(OrganiserError, match=r"leak audit failed.*lab_digest"):
        create_release(workspace, "2022", [record.name])
    assert workspace.open.list("releases") == []
    with pytest.raises(InputError, match="there is no release yet"):
        choose_release(workspace.open)


def test_a_competition_session_without_a_hidden_tier_makes_no_release(workspace, raw_of, publish):
    raw = raw_of()
    sets = {image: "test" if name == "final_test" else name for image, name in raw.image_sets.items()}
    record = publish(replace(raw, image_sets=sets))
    with pytest.raises(OrganiserError, match="without trials of final_test: no submission could be scored"):
        create_release(workspace, "2022", [record.name])
    assert workspace.open.list("releases") == []


@pytest.mark.parametrize(("name", "sessions", "said"), [
    ("2022", ["9-9-9"], "no session of this name"),
    ("2022", [], "missing or listed twice"),
    ("2022", ["1-1-1", "1-1-1"], "listed twice"),
    ("../2022", ["1-1-1"], "cannot name a release"),
])  # fmt: skip
def test_bad_releases(workspace, name, sessions, said):
    with pytest.raises(InputError, match=said):
        create_release(workspace, name, sessions)


PHASES = """
[[phase]]
name = "ongoing"
opens = 2022-11-01T00:00:00Z
after_competition = true

[[phase]]
name = "competition"
opens = 2022-06-20T00:00:00+02:00
closes = 2022-10-15T23:59:00+02:00
time_zone = "Europe/Berlin"
per_day = 2
"""


class TestPhases:
    def test_from_a_file(self, tmp_path):
        (tmp_path / "phases.toml").write_text(PHASES)
        competition, ongoing = read_phases(tmp_path / "phases.toml")
        assert (competition.name, competition.per_day, ongoing.per_day) == ("competition", 2, 1)
        assert competition.dates == "from 2022-06-20 00:00 to 2022-10-15 23:59 Europe/Berlin"
        first, last = datetime(2022, 6, 19, 22, tzinfo=UTC), datetime(2022, 10, 15, 21, 59, tzinfo=UTC)
        assert phase_at((competition, ongoing), first) == competition
        assert phase_at((competition, ongoing), first - timedelta(seconds=1)) is None
        assert phase_at((competition, ongoing), last) is None
        assert phase_at((competition, ongoing), last + timedelta(days=365)) == ongoing
        assert competition.day(first) == "2022-06-20"
        # The clocks go back in the night to 30 October: that day has 25 hours.
        assert competition.next_day(datetime(2022, 10, 30, 22, 30, tzinfo=UTC)).isoformat() == "2022-10-31T00:00:00+01:00"

    @pytest.mark.parametrize(("old", "new", "said"), [
        ("+02:00", "", "phase 2, opens: Input should have timezone info"),
        ("Europe/Berlin", "Berlin", "phase 2, time_zone: no such time zone"),
        ("2022-10-15", "2022-06-15", "phase 2: it closes before it opens"),
        ("2022-11-01", "2022-10-01", "'competition' and 'ongoing' hold at the same time"),
        ("opens = 2022-11-01T00:00:00Z", "", "hold at the same time"),
        ('"ongoing"', '"competition"', "two of one name"),
        ("per_day", "a_day", "phase 2, a_day: Extra inputs are not permitted"),
        ("per_day = 2", "per_day = 0", "greater than or equal to 1"),
        ("[[phase]]", "[phase]", "cannot be read as TOML"),
        ("[[phase]]", "[[phases]]", "must hold tables"),
    ])  # fmt: skip
    def test_bad_files(self, tmp_path, old, new, said):
        path = tmp_path / "phases.toml"
        path.write_text(PHASES.replace(old, new))
        with pytest.raises(InputError, match=said) as caught:
            read_phases(path)
        assert str(path) in str(caught.value)
        assert caught.value.advice

    def test_the_final_tier_opens_phase_by_phase_and_stays_open(self, workspace, published):
        record = published()
        competition = Phase(name="competition", closes=datetime(2022, 10, 15, tzinfo=UTC))
        create_release(workspace, "2022", [record.name], phases=[competition])
        moment = datetime(2022, 10, 16, tzinfo=UTC)
        opened = change_phases(workspace, "2022", final="open", phase="competition", at=moment)
        ongoing = Phase(name="ongoing", opens=moment, after_competition=True)
        release = change_phases(workspace, "2022", phases=[ongoing, competition])
        assert opened.opened_tiers == release.opened_tiers == ("test", "final_test")
        assert [(phase.name, phase.final_opened) for phase in release.phases] == [("competition", moment), ("ongoing", None)]
        later = change_phases(workspace, "2022", final="open", at=moment + timedelta(days=9))
        assert [phase.final_opened for phase in later.phases] == [moment, moment + timedelta(days=9)]
        # Naming the sessions again, as when one is added, leaves the phases and what is shown as they are.
        assert create_release(workspace, "2022", [record.name])[0].phases == later.phases
        assert Series(workspace.open, "releases/2022").latest(type(later))[1] == later
        assert change_phases(workspace, "2022", final="closed").final == "closed"
        with pytest.raises(InputError, match="Its phases: competition, ongoing"):
            change_phases(workspace, "2022", final="open", phase="winter")
