"""What every starter reaches on the sessions of the demonstration, as a table; the baselines at their small size.

    make demo
    python tests/benchmarks/zoo.py workspace [--starters cnn energy]

Each is built from a fresh `sensorium new-submission`, trained on the visible tiers of the track's sessions, and scored on the live test
tier of its competition session, which takes the organisers' access to the sealed store. Without the sandbox: it is our own code.
"""

import argparse
import importlib.util
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import torch

from sensorium_pipeline.models.baselines import BASELINES
from sensorium_pipeline.scoring import primary_metric, score_predictions
from sensorium_pipeline.sessions.catalogue import load_hidden, load_inputs, load_session_data
from sensorium_pipeline.sessions.release import Release, choose_release
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, open_dataset, open_workspace
from sensorium_pipeline.submissions.features import FittedReadout
from sensorium_pipeline.submissions.interface import Context
from sensorium_pipeline.submissions.package import new_submission
from sensorium_pipeline.training.data import SessionData

TIER = "test"


def build(starter: str, folder: Path, sessions: list[SessionData], track: str) -> Any:
    """The model of a fresh starter; a network without a readout gets the platform's, as in the sandbox."""
    new_submission(folder, starter)
    parameters = tomllib.loads((folder / "submission.toml").read_text()).get("parameters", {})
    if starter in BASELINES:
        parameters["size"] = "demo"
    specification = importlib.util.spec_from_file_location(f"starter_{starter}", folder / "model.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    context = Context([session.description for session in sessions], track, 0, "cpu", parameters, folder)
    model = module.build(context)
    return model if hasattr(model, "predict") else FittedReadout(context, model)


def measure(workspace: Workspace, release: Release, track: str, starters: list[str]) -> None:
    """Print a line for each starter."""
    sessions = [load_session_data(open_dataset(workspace.open, s.open_digest), track) for s in release.training_sessions(track)]
    competition = release.competition_sessions(track)[0]
    hidden = load_hidden(workspace, competition.open_digest, TIER)
    _, _, inputs = load_inputs(open_dataset(workspace.open, competition.open_digest), TIER, track)
    print(f"\ntrack {track}, session {competition.name}, tier {TIER}, primary metric {primary_metric(track)}")
    print(f"{'starter':14}{'single trial':>13}{'average':>9}{'FEVE':>9}{'seconds':>9}")
    for starter in starters:
        with tempfile.TemporaryDirectory() as area:
            begun = time.perf_counter()
            model = build(starter, Path(area, "submission"), sessions, track)
            model.train(sessions)
            prediction = model.predict(competition.name, inputs)
            seconds = time.perf_counter() - begun
        score = score_predictions(prediction, hidden.responses, hidden.image_id, hidden.precision)
        numbers = score.metrics.single_trial_correlation, score.metrics.correlation_to_average, score.metrics.feve
        line = "".join(
            f"{number:>{width}.3f}" if number is not None else " " * width for number, width in zip(numbers, (13, 9, 9), strict=True)
        )
        source = f"{BASELINES[starter].name} ({BASELINES[starter].paper})" if starter in BASELINES else ""
        print(f"{starter:14}{line}{seconds:9.0f}  {source}", flush=True)
    ceiling = score.noise_ceiling
    print(f"{'noise ceiling':14}{ceiling.single_trial_correlation:13.3f}{ceiling.correlation_to_average:9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="workspace with a release")
    parser.add_argument("--release")
    parser.add_argument("--tracks", nargs="+", default=["sensorium", "sensorium+"])
    parser.add_argument("--starters", nargs="+", default=["mean", "features", *BASELINES])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    workspace = open_workspace(Settings(root=arguments.root))
    release = choose_release(workspace.open, arguments.release)
    for track in arguments.tracks:
        measure(workspace, release, track, arguments.starters)


if __name__ == "__main__":
    main()
