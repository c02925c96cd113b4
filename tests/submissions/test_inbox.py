"""Taking submissions in: kept by content, once, in their team's own series."""

from pathlib import Path

import pytest
from submission_samples import write_submission

from sensorium_pipeline.errors import InputError, SubmissionError
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, open_workspace
from sensorium_pipeline.submissions.inbox import fetch_submission, list_submissions, submit
from sensorium_pipeline.submissions.package import submission_files

BUILD = "def build(context):\n    pass\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(Settings(root=str(tmp_path / "workspace")))


def test_in_and_out_again(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "mine", BUILD)
    (folder / "weights").mkdir()
    (folder / "weights" / "core.npz").write_bytes(b"weights")
    record = submit(workspace, folder, "lobe-lab", "sensorium")
    assert (record.name, record.seeds, record.has_code, record.duplicate) == ("test", [0], True, False)
    assert list_submissions(workspace) == [record]
    fetch_submission(workspace, record, tmp_path / "fetched")
    assert submission_files(tmp_path / "fetched").keys() == submission_files(folder).keys()
    assert (tmp_path / "fetched" / "weights" / "core.npz").read_bytes() == b"weights"


def test_same_content_is_recognised(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "mine", BUILD)
    first = submit(workspace, folder, "lobe-lab", "sensorium")
    again = submit(workspace, write_submission(tmp_path / "copy", BUILD), "lobe-lab", "sensorium")
    assert again.duplicate
    assert again.identifier == first.identifier
    assert submit(workspace, folder, "lobe-lab", "sensorium+").duplicate is False
    assert submit(workspace, folder, "other", "sensorium").duplicate is False
    (folder / "model.py").write_text(BUILD + "# changed\n")
    changed = submit(workspace, folder, "lobe-lab", "sensorium")
    assert not changed.duplicate
    assert changed.number > first.number == again.number
    assert [record.team for record in list_submissions(workspace)] == ["lobe-lab"] * 3 + ["other"]


@pytest.mark.parametrize("team", ["", "../sealed", "a/b", "Lobe Lab", "x" * 41, "-x", "a\n", "é"])
def test_team_names(workspace: Workspace, tmp_path: Path, team: str) -> None:
    folder = write_submission(tmp_path / "mine", BUILD)
    with pytest.raises(InputError, match="is no name for a team"):
        submit(workspace, folder, team, "sensorium")
    assert list_submissions(workspace) == []


def test_wrong_track(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "mine", BUILD, 'name = "x"\ntrack = "sensorium+"\nentry_point = "model:build"\n')
    with pytest.raises(SubmissionError, match=r"submission.toml, track: it is for sensorium\+, not for sensorium"):
        submit(workspace, folder, "lobe-lab", "sensorium")
    with pytest.raises(InputError, match=r"unknown track 'retina'. Choose one of sensorium, sensorium"):
        submit(workspace, folder, "lobe-lab", "retina")
    assert list_submissions(workspace) == []
