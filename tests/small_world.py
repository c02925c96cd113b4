"""A small world to test whole stations with: three simulated mice, ingested and released, and submissions of a few lines."""

import fcntl
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.ingestion import ingest_plane, ingest_session_parts
from sensorium_pipeline.recordings import SimulationParameters, simulate_recording
from sensorium_pipeline.sessions.catalogue import load_hidden, load_inputs, read_session
from sensorium_pipeline.sessions.phases import Phase
from sensorium_pipeline.sessions.records import SessionParameters
from sensorium_pipeline.sessions.release import create_release, read_release
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, open_dataset, open_workspace
from sensorium_pipeline.submissions.predictions import Predictions, write_predictions
from sensorium_pipeline.submissions.sending import Sent, submit
from sensorium_pipeline.submissions.teams import Token, add_team, parse_token, read_team, token_of

RELEASE = "trial-run"
OPEN, SENSORIUM, SENSORIUM_PLUS = "1-1-1", "2-1-1", "3-1-1"
SMALL = SimulationParameters(
    single_images=60, test_images=6, final_test_images=3, repeats=4, neurons_per_plane=6, height=48, width=48, planes=1
)
MICE = (
    SMALL.model_copy(update={"animal": 1, "seed": 1}),
    SMALL.model_copy(update={"animal": 2, "seed": 2, "role": "competition", "track": "sensorium"}),
    SMALL.model_copy(update={"animal": 3, "seed": 3, "role": "competition", "track": "sensorium+"}),
)
HIDDEN = ("test", "final_test")
Array = NDArray[np.float32]

MEAN_RESPONSE = """
    import numpy as np

    class MeanResponse:
        def __init__(self, context):
            self.gain = context.parameters["gain"]
            self.mean = {}

        def train(self, sessions):
            for session in sessions:
                precision = session.description.statistics.response_precision
                self.mean[session.description.name] = session.training.responses.mean(axis=0) * precision

        def state(self):
            return self.mean

        def load_state(self, state):
            self.mean = dict(state)

        def predict(self, session, inputs):
            contrast = inputs.images.std(axis=(1, 2))[:, None]
            return (self.mean[session] * (1 + self.gain * contrast)).astype(np.float32)

    def build(context):
        return MeanResponse(context)
"""


@dataclass(frozen=True)
class World:
    """A folder with `raw/<session>` and `workspace`; the workspace holds the three sessions and the release `RELEASE`."""

    folder: Path

    @property
    def root(self) -> str:
        return str(self.folder / "workspace")

    @property
    def workspace(self) -> Workspace:
        return open_workspace(Settings(root=self.root))

    def raw(self, session: str) -> Path:
        return self.folder / "raw" / session

    def copy(self, folder: Path) -> "World":
        """A copy whose workspace may be changed; raw recordings stay where they are."""
        shutil.copytree(self.root, folder / "workspace")
        (folder / "raw").symlink_to(self.folder / "raw")
        return World(folder)


def build_world(folder: Path) -> World:
    """Make the world, or take the one that another process of the same test run has made."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        world = World(folder / "world")
        if not world.folder.exists():
            fresh = World(folder / "unfinished")
            shutil.rmtree(fresh.folder, ignore_errors=True)
            workspace = fresh.workspace
            for mouse in MICE:
                simulate_recording(fresh.raw(mouse.name), mouse)
                planes = [
                    ingest_plane(workspace, fresh.raw(mouse.name), plane, SessionParameters().imaging) for plane in range(mouse.planes)
                ]
                ingest_session_parts(workspace, fresh.raw(mouse.name), planes, SessionParameters())
            create_release(workspace, RELEASE, [mouse.name for mouse in MICE], phases=[Phase(per_day=20)])
            fresh.folder.rename(world.folder)
    return world


def write_code(folder: Path, name: str, code: str = MEAN_RESPONSE, *, seeds: tuple[int, ...] = (0,), gain: float = 0.01) -> Path:
    """A submission with code, for both tracks."""
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(textwrap.dedent(code))
    lines = [f'name = "{name}"', 'entry_point = "model:build"', f"seeds = {list(seeds)}", "[parameters]", f"gain = {gain}"]
    (folder / "submission.toml").write_text("\n".join(lines) + "\n")
    return folder


def token_for(workspace: Workspace, team: str) -> Token:
    """The team's token; the team is added where it is new."""
    if read_team(workspace.sealed, team) is None:
        add_team(workspace.sealed, team, datetime.now(UTC))
    return parse_token(token_of(workspace.sealed, team))


def send(workspace: Workspace, folder: Path, team: str, track: str) -> Sent:
    """Submit to the world's release as a team does."""
    return submit(workspace, read_release(workspace.open, RELEASE), folder, token_for(workspace, team), track)


def true_predictions(workspace: Workspace, session: str, noise: float = 0.0) -> Predictions:
    """What nobody but the organisers could send: the hidden responses in standardised units, with some noise on them."""
    digest = read_session(workspace.open, session)[1].open_digest
    tiers = [load_hidden(workspace, digest, tier) for tier in HIDDEN]
    trial_id = np.concatenate([tier.trial_id for tier in tiers])
    order = np.argsort(trial_id)
    responses = np.concatenate([tier.responses for tier in tiers])[order] * tiers[0].precision
    noisy = responses + noise * np.random.default_rng(0).normal(size=responses.shape)
    return Predictions(trial_id[order], tiers[0].unit_ids, noisy.astype(np.float32))


def write_file_submission(
    folder: Path,
    name: str,
    session: str,
    predictions: Predictions,
    change: Callable[[dict[str, NDArray[np.generic]]], object] | None = None,
) -> Path:
    """A submission that is a predictions file; `change` may spoil its arrays."""
    (folder / "predictions").mkdir(parents=True)
    (folder / "submission.toml").write_text(f'name = "{name}"\npredictions = "predictions"\n')
    path = folder / "predictions" / f"{session}.npz"
    write_predictions(path, predictions)
    if change is not None:
        with np.load(path) as stored:
            arrays = dict(stored)
        change(arrays)
        np.savez(path, **arrays)
    return folder


def tree_snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def image_inputs(workspace: Workspace, session: str, track: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """trial_id and image_id of the hidden trials of a session."""
    tree = open_dataset(workspace.open, read_session(workspace.open, session)[1].open_digest)
    trial_id, image_id, _ = load_inputs(tree, HIDDEN, track)
    return trial_id, image_id
