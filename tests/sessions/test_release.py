"""Releases: audited before they are named, versioned, and clear about what may not be."""

import pytest

from sensorium_pipeline.errors import InputError, OrganiserError
from sensorium_pipeline.sessions.release import Phase, change_phases, choose_release, create_release, list_releases, phase, read_release
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
    opened = change_phases(workspace, "2022", final=Phase(state="open", opens="2022-10-15"))
    assert opened.opened_tiers == ("test", "final_test")
    assert opened.sessions == release.sessions
    assert list_releases(workspace.open) == [opened]
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


def test_a_leak_stops_a_release(workspace, raw_of, publish):
    record = publish(raw_of())
    Series(workspace.open, f"sessions/{record.name}").append(record)
    with pytest.raises(OrganiserError, match=r"leak audit failed.*lab_digest"):
        create_release(workspace, "2022", [record.name])
    assert list_releases(workspace.open) == []
    with pytest.raises(InputError, match="there is no release yet"):
        choose_release(workspace.open)


@pytest.mark.parametrize(("name", "sessions", "said"), [
    ("2022", ["9-9-9"], "no session of this name"),
    ("2022", [], "missing or listed twice"),
    ("2022", ["1-1-1", "1-1-1"], "listed twice"),
    ("../2022", ["1-1-1"], "cannot name a release"),
])  # fmt: skip
def test_bad_releases(workspace, name, sessions, said):
    with pytest.raises(InputError, match=said):
        create_release(workspace, name, sessions)


@pytest.mark.parametrize(("state", "opens"), [("ajar", None), ("open", "soon")])
def test_bad_phases(state, opens):
    with pytest.raises(InputError, match="cannot be read"):
        phase(state, opens)
