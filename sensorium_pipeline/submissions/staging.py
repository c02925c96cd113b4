"""Sessions decoded once for a machine into plain .npy files that every sandbox maps read-only.

Inside lie training and validation trials and the inputs of the trials to predict; responses of hidden tiers are not in the open part
of a session, so none can be here. No file is ever changed: a staged folder appears whole, under its final name, or not at all.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.submissions.predictions import Expected
from sensorium_pipeline.training.data import SessionData, SessionDescription, Statistics, TrialInputs, Trials

DESCRIPTION = "description.json"
SCHEMA_VERSION = 1
STATISTICS = ("response_mean", "response_std", "behavior_mean", "behavior_std", "pupil_center_mean", "pupil_center_std")
INPUTS = ("images", "behavior", "pupil_center")


@dataclass(frozen=True)
class StagedSession:
    """A session as a submission gets it: visible trials, and the inputs of the trials to predict with their trial_id (trials,).

    A session that serves training alone has no trials to predict.
    """

    data: SessionData
    inputs: TrialInputs
    trial_id: NDArray[np.int64]

    @property
    def expected(self) -> Expected:
        """What predictions of this session must cover."""
        return Expected(self.data.description.name, self.trial_id, self.data.description.unit_ids)


@dataclass(frozen=True)
class Staged:
    """Everything that one submission of a track may see."""

    track: str
    sessions: tuple[StagedSession, ...]

    @property
    def predicted(self) -> tuple[StagedSession, ...]:
        """The sessions that have trials to predict."""
        return tuple(session for session in self.sessions if len(session.trial_id))


def stage_sessions(sessions: Iterable[StagedSession], track: str, folder: Path) -> None:
    """Write sessions to `folder`, unless another process has done so already (name it after the content).

    Args:
        sessions: those of a release that the track may use; taken one at a time.
        track: "sensorium" or "sensorium+".
        folder: appears with its files readable by every user of the machine.
    """
    if (folder / DESCRIPTION).is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        described = [_write_session(session, fresh / str(number)) for number, session in enumerate(sessions)]
        description = {"schema_version": SCHEMA_VERSION, "track": track, "sessions": described}
        (fresh / DESCRIPTION).write_text(json.dumps(description, indent=1))
        for path in (fresh, *fresh.rglob("*")):
            # Sandboxes run as users of their own.
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            os.rename(fresh, folder)
        except OSError:
            if not (folder / DESCRIPTION).is_file():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_staged(folder: Path) -> Staged:
    """Map staged sessions read-only.

    Raises:
        PlatformError: the folder holds no staged sessions of this version.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if description["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {description['schema_version']}")
        sessions = tuple(_read_session(entry, folder / str(number)) for number, entry in enumerate(description["sessions"]))
        return Staged(description["track"], sessions)
    except (OSError, ValueError, KeyError) as error:
        raise PlatformError(f"no readable staged sessions ({error})", where=folder, advice="Remove the folder and stage again") from error


def _write_session(session: StagedSession, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    description = session.data.description
    statistics = description.statistics
    arrays: dict[str, NDArray[np.generic] | None] = {
        "unit_ids": description.unit_ids,
        "positions": description.positions,
        "trial_id": session.trial_id,
        "training.responses": session.data.training.responses,
        "validation.responses": session.data.validation.responses,
    }
    arrays |= {name: getattr(statistics, name) for name in STATISTICS}
    groups = {"training": session.data.training.inputs, "validation": session.data.validation.inputs, "inputs": session.inputs}
    arrays |= {f"{group}.{name}": getattr(inputs, name) for group, inputs in groups.items() for name in INPUTS}
    for name, array in arrays.items():
        if array is not None:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
    return {
        "name": description.name,
        "image_shape": list(description.image_shape),
        "image_mean": float(statistics.image_mean),
        "image_std": float(statistics.image_std),
    }


def _read_session(entry: dict[str, Any], folder: Path) -> StagedSession:
    statistics = Statistics(entry["image_mean"], entry["image_std"], *(_read(folder, name) for name in STATISTICS))
    shape = (int(entry["image_shape"][0]), int(entry["image_shape"][1]))
    description = SessionDescription(entry["name"], _read(folder, "unit_ids"), _read(folder, "positions"), shape, statistics)
    training, validation, inputs = (
        TrialInputs(*(_read(folder, f"{group}.{name}") for name in INPUTS)) for group in ("training", "validation", "inputs")
    )
    data = SessionData(
        description,
        Trials(training, _read(folder, "training.responses")),
        Trials(validation, _read(folder, "validation.responses")),
    )
    return StagedSession(data, inputs, _read(folder, "trial_id"))


def _read(folder: Path, name: str) -> Any:
    path = folder / f"{name}.npy"
    if not path.exists():
        return None
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        # An array without elements cannot be mapped.
        return np.load(path, allow_pickle=False)
