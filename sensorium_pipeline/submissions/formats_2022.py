"""What was sent in 2022, made into submissions of today: the two CSV files, and a checkpoint of the organisers."""

import shutil
from pathlib import Path

import numpy as np

from sensorium_pipeline.errors import InputError, SubmissionError
from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.sessions.exchange_2022 import trial_names
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.sessions.schema import read_array
from sensorium_pipeline.storage import Store, open_dataset
from sensorium_pipeline.submissions.csv_2022 import FILES, Trials2022, read_2022
from sensorium_pipeline.submissions.package import DESCRIPTION
from sensorium_pipeline.submissions.predictions import write_predictions
from sensorium_pipeline.submissions.release import PREDICTED_TIERS

CHECKPOINT = ".pth"
ENTRY_POINT = "sensorium_pipeline.submissions.checkpoint_2022:build"


def is_of_2022(path: Path) -> bool:
    """Whether a path is a checkpoint, or a folder with CSV files of 2022 and no submission.toml."""
    if path.suffix == CHECKPOINT:
        return path.is_file()
    return any((path / name).is_file() for name in FILES.values()) and not (path / DESCRIPTION).exists()


def convert(
    path: Path, name: str | None, store: Store, release: Release, track: str, folder: Path, progress: ProgressCallback = silent
) -> None:
    """Write a submission of today for one of 2022.

    Args:
        path: a checkpoint `.pth`, or the folder with the two CSV files.
        name: of the submission; the file's or folder's own where it is left out.
        store: the open store, which says what the files must cover.
        release: the competition.
        track: "sensorium" or "sensorium+".
        folder: written, must not exist.
        progress: told bytes read.

    Raises:
        InputError: the release has no session that fits.
        SubmissionError: a file is not as it should be; the message says which line.
    """
    folder.mkdir(parents=True)
    title = (name or path.resolve().stem).replace('"', "").replace("\\", "")[:80] or "submission"
    if path.suffix == CHECKPOINT:
        shutil.copyfile(path, folder / "weights.pth")
        lines = [f'name = "{title}"', f'track = "{track}"', f'entry_point = "{ENTRY_POINT}"', "", "[parameters]", 'weights = "weights.pth"']
    else:
        (folder / "predictions").mkdir()
        lines = [f'name = "{title}"', f'track = "{track}"', 'predictions = "predictions"']
        sessions = release.competition_sessions(track)
        if len(sessions) != 1:
            problem = f"the release has {len(sessions)} competition sessions of track {track}"
            raise InputError(problem, where=f"release {release.name}", advice="Files of 2022 are for one; write one .npz for each session")
        trials = _trials(store, sessions[0].name, sessions[0].open_digest)
        write_predictions(folder / "predictions" / f"{sessions[0].name}.npz", read_2022(path, trials, progress))
    (folder / DESCRIPTION).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _trials(store: Store, session: str, open_digest: str) -> Trials2022:
    """The trials to predict of a session, by the names that 2022 gave them."""
    tree = open_dataset(store, open_digest)
    tier = read_array(tree, "trials/tier")
    rows = np.flatnonzero(np.isin(tier, PREDICTED_TIERS))
    trial_id = read_array(tree, "trials/trial_id")
    if not len(rows):
        raise SubmissionError("there is nothing to predict", where=f"session {session}")
    return Trials2022(
        session=session,
        trial_name=trial_names(store, open_digest, len(trial_id))[rows],
        trial_id=trial_id[rows],
        image_id=read_array(tree, "trials/image_id")[rows],
        tier=tier[rows],
        unit_id=read_array(tree, "neurons/unit_id"),
    )
