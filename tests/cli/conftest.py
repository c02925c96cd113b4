"""Commands to run, and a workspace in which something was evaluated."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Said, in_process
from small_world import RELEASE, SENSORIUM, World, send, true_predictions, write_code, write_file_submission

from sensorium_pipeline.hidden_scores import score
from sensorium_pipeline.intake import take_in
from sensorium_pipeline.jobs import list_jobs
from sensorium_pipeline.prediction_runs import predict
from sensorium_pipeline.sessions.release import read_release
from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.sandbox import IsolationTier

Command = Callable[..., Said]


@pytest.fixture
def sensorium(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`sensorium("rank", "--json", ...)` in this process."""
    return lambda *arguments: in_process(capsys, monkeypatch, arguments)


@pytest.fixture(scope="session")
def evaluated(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A copy of the world with a model and a predictions file that were evaluated (without flows); read only."""
    folder = tmp_path_factory.mktemp("evaluated")
    world = world.copy(folder)
    workspace = world.workspace
    predictions = true_predictions(workspace, SENSORIUM, 0.5)
    send(workspace, write_file_submission(folder / "file", "Sharp", SENSORIUM, predictions), "sharp", "sensorium")
    if probe_isolation().tier is not IsolationTier.REFUSE:
        send(workspace, write_code(folder / "code", "Mean response"), "baseline", "sensorium")
    take_in(workspace)
    for job in list_jobs(workspace, read_release(workspace.open, RELEASE)):
        score(workspace, job, [predict(workspace, job, seed) for seed in job.submission.seeds])
    return world


@pytest.fixture
def isolated() -> None:
    isolation = probe_isolation()
    if isolation.tier is IsolationTier.REFUSE:
        pytest.skip(f"no isolation here: {'; '.join(isolation.reasons)}")


@pytest.fixture
def changeable(world: World, tmp_path: Path) -> World:
    """A copy of the world for one test."""
    return world.copy(tmp_path / "changeable")
