"""A release as submissions get it: its sessions decoded once and staged."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.sessions.catalogue import load_inputs, load_session_data, read_session
from sensorium_pipeline.sessions.release import Release
from sensorium_pipeline.sessions.schema import read_array
from sensorium_pipeline.storage import Store, digest_of, open_dataset
from sensorium_pipeline.submissions.predictions import Expected
from sensorium_pipeline.submissions.staging import SCHEMA_VERSION, StagedSession, stage_sessions
from sensorium_pipeline.training.data import TrialInputs

PREDICTED_TIERS = ("test", "final_test")


def expected_predictions(store: Store, release: Release, track: str) -> tuple[Expected, ...]:
    """What predictions for a track must cover, by competition session; reads no trial."""
    found = []
    for session in release.competition_sessions(track):
        tree = open_dataset(store, session.open_digest)
        rows = np.isin(read_array(tree, "trials/tier"), PREDICTED_TIERS)
        found.append(Expected(session.name, read_array(tree, "trials/trial_id")[rows], read_array(tree, "neurons/unit_id")))
    return tuple(found)


def visible_trials(store: Store, release: Release, track: str) -> int:
    """How many trials models of a track may train and validate on."""
    published = [read_session(store, session.name, session.open_digest)[1] for session in release.training_sessions(track)]
    return sum(session.trials.get("train", 0) + session.trials.get("validation", 0) for session in published)


def stage_release(store: Store, release: Release, track: str, cache: Path, progress: ProgressCallback = silent) -> Path:
    """Stage the sessions of a release for one track; what is staged already is used again.

    Training uses the visible tiers of every session of the track; predictions are asked for the test tiers of its competition sessions.

    Args:
        store: the open store.
        release: which sessions.
        track: "sensorium" or "sensorium+".
        cache: folder of this machine; the staged folder is named by what it holds.

    Returns:
        The staged folder, for `run_submission`.

    Raises:
        InputError: a session does not fit the track, or lacks trials of the test tiers.
    """
    competition = {session.name for session in release.competition_sessions(track)}
    chosen = release.training_sessions(track)
    content = [[session.open_digest, session.name in competition] for session in chosen]
    folder = cache / digest_of({"schema_version": SCHEMA_VERSION, "track": track, "sessions": content})[:32]

    def sessions() -> Iterator[StagedSession]:
        for done, session in enumerate(chosen):
            progress(Progress("staging sessions", done, len(chosen), session.name))
            tree = open_dataset(store, session.open_digest)
            data = load_session_data(tree, track)
            if session.name in competition:
                trial_id, _, inputs = load_inputs(tree, PREDICTED_TIERS, track)
            else:
                trial_id = np.empty(0, np.int64)
                inputs = TrialInputs(data.training.inputs.images[:0])
            yield StagedSession(data, inputs, trial_id)
        progress(Progress("staging sessions", len(chosen), len(chosen)))

    stage_sessions(sessions(), track, folder)
    return folder
