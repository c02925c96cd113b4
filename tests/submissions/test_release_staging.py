"""A release staged from published sessions: everything that is open for training, and only competition sessions to predict."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sensorium_pipeline.progress import Progress
from sensorium_pipeline.sessions.release import Release, ReleasedSession
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, open_workspace, write_dataset
from sensorium_pipeline.submissions.isolation import IsolationTier
from sensorium_pipeline.submissions.release import stage_release
from sensorium_pipeline.submissions.staging import load_staged

TIERS = np.array(["final_test", "train", "test", "validation", "train", "final_test", "test", "train"])


def open_part(name: str, track: str, neurons: int) -> xr.DataTree:
    """The open part of a small session; responses of the test tiers are NaN in a competition session."""
    generator = np.random.default_rng(neurons)
    response = generator.gamma(2, 1, (8, neurons)).astype(np.float32)
    if track:
        response[np.isin(TIERS, ["test", "final_test"])] = np.nan
    trials = {"trial_id": ("trial", np.arange(8)), "image_id": ("trial", np.array([7, 5, 6, 5, 6, 7, 6, 5]))}
    trials |= {"tier": ("trial", TIERS), "response": (("trial", "neuron"), response)}
    images = {"image_id": ("image", np.array([5, 6, 7])), "image": (("image", "y", "x"), np.zeros((3, 12, 16), np.uint8))}
    images["model_input"] = (("image", "model_y", "model_x"), generator.uniform(0, 255, (3, 6, 8)).astype(np.float32))
    position = generator.normal(0, 100, (neurons, 3)).astype(np.float32)
    parts = {
        "/": xr.Dataset(attrs={"session": name, "role": "competition" if track else "open", "track": track}),
        "/trials": xr.Dataset(trials),
        "/images": xr.Dataset(images),
        "/neurons": xr.Dataset({"unit_id": ("neuron", np.arange(neurons)), "position": (("neuron", "axis"), position)}),
        "/statistics": xr.Dataset(
            {
                "image_mean": 127.0,
                "image_std": 60.0,
                "response_mean": ("neuron", np.ones(neurons, np.float32)),
                "response_std": ("neuron", np.ones(neurons, np.float32)),
            }
        ),
    }
    return xr.DataTree.from_dict(parts)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(Settings(root=str(tmp_path / "workspace")))


@pytest.fixture
def release(workspace: Workspace) -> Release:
    sessions = []
    for name, track, neurons in (("static1-1-1", "", 4), ("static2-1-1", "sensorium", 5), ("static3-1-1", "sensorium+", 6)):
        digest = write_dataset(workspace.open, open_part(name, track, neurons)).digest
        sessions.append(
            ReleasedSession(name=name, role="competition" if track else "open", track=track or None, open_digest=digest)  # type: ignore[arg-type]
        )
    return Release(name="small", sessions=tuple(sessions))


def test_what_a_submission_gets(workspace: Workspace, release: Release, tmp_path: Path) -> None:
    reports: list[Progress] = []
    folder = stage_release(workspace.open, release, "sensorium", tmp_path / "cache", reports.append)
    staged = load_staged(folder)
    assert staged.track == "sensorium"
    assert [session.data.description.name for session in staged.sessions] == ["static1-1-1", "static2-1-1"]
    assert [session.data.description.name for session in staged.predicted] == ["static2-1-1"]
    competition = staged.predicted[0]
    np.testing.assert_array_equal(competition.trial_id, [0, 2, 5, 6])
    assert competition.inputs.images.shape == (4, 6, 8)
    assert len(competition.data.training) == 3
    assert reports[-1].done == reports[-1].total == 2


def test_nothing_hidden_is_staged(workspace: Workspace, release: Release, tmp_path: Path) -> None:
    folder = stage_release(workspace.open, release, "sensorium", tmp_path / "cache")
    for path in sorted((folder / "1").glob("*.npy")):
        array = np.load(path)
        if array.dtype.kind == "f":
            # Hidden responses are NaN in the open part, so they would show.
            assert np.isfinite(array).all(), path.name
    assert {path.stem for path in (folder / "1").glob("*responses*")} == {"training.responses", "validation.responses"}


def test_staged_once(workspace: Workspace, release: Release, tmp_path: Path) -> None:
    folder = stage_release(workspace.open, release, "sensorium", tmp_path / "cache")
    before = folder.stat().st_mtime_ns
    reports: list[Progress] = []
    assert stage_release(workspace.open, release, "sensorium", tmp_path / "cache", reports.append) == folder
    assert folder.stat().st_mtime_ns == before
    assert not reports
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_only_competition_sessions_are_predicted(workspace: Workspace, release: Release, tmp_path: Path, tier: IsolationTier) -> None:
    from submission_samples import GOOD, SMALL, write_submission

    from sensorium_pipeline.submissions.run import run_submission

    staged = stage_release(workspace.open, release, "sensorium", tmp_path / "cache")
    folder = write_submission(tmp_path / "submission", GOOD)
    outcome = run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
    assert outcome.failure is None
    assert outcome.sessions == ["static2-1-1"]
    assert [path.name for path in (tmp_path / "out" / "predictions").iterdir()] == ["static2-1-1.npz"]
