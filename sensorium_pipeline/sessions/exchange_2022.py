"""Sessions of SENSORIUM 2022 in and out: a file tree becomes a published session, a published session a file tree.

A session that is taken over has no lab part. Its trials keep the numbers of their files, which were in random order already, and their
names of 2022 (the hashes of trial_idx) stand beside it, so that predictions of that time can be read. Statistics are taken anew from the
training trials, as of every session here. Of the tables nothing is released that has a time or an order in it.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.raw_session import Role, Track
from sensorium_pipeline.sessions.catalogue import read_session
from sensorium_pipeline.sessions.parts import hide
from sensorium_pipeline.sessions.publish import bind, point
from sensorium_pipeline.sessions.records import Provenance, SessionParameters, SessionRecord
from sensorium_pipeline.sessions.scaling import MODEL_INPUT_SHAPE, rescale
from sensorium_pipeline.sessions.schema import FIELDS, SCHEMA_VERSION, build_tree, read_array, release_rule
from sensorium_pipeline.sessions.statistics import training_statistics
from sensorium_pipeline.sessions.tiers import TIERS
from sensorium_pipeline.sessions.tree_2022 import Tree2022, read_tree, stored_number, write_tree
from sensorium_pipeline.storage import Series, Store, Workspace, open_dataset, write_dataset, write_files

IMAGE_BLOCK = 256
SHORTEST_HASH = 16


class TrialNames(BaseModel):
    """The names of 2022 of a session's trials, in the order of their trial ids: series `trial-names/<open digest>` of the open store."""

    model_config = ConfigDict(frozen=True)

    names: tuple[str, ...]


class Imported(BaseModel):
    """What an import made: the session, and what is worth knowing of it, in sentences."""

    session: SessionRecord
    notes: tuple[str, ...] = ()


def import_tree(
    workspace: Workspace, tree: Path, track: Track | None, provenance: Provenance, progress: ProgressCallback = silent
) -> Imported:
    """Publish a file tree of SENSORIUM 2022 as a session; the same tree again changes nothing.

    Args:
        workspace: needs its lab, open and sealed stores.
        tree: the folder with `data` and `meta`.
        track: of a competition session, whose test responses are hidden; None publishes an open session.
        provenance: kept in every part.
        progress: told trials read, then steps.

    Raises:
        InputError: the tree cannot be read, or has nothing to train on, or nothing to hide where a track is given.
    """
    with tempfile.TemporaryDirectory(prefix="sensorium-import-") as scratch:
        found = read_tree(tree, Path(scratch), progress)
        role: Role = "open" if track is None else "competition"
        rule = release_rule(role, track)
        training, hidden = found.tier == "train", ~np.isin(found.tier, rule.response_tiers)
        if not training.any() or (track is not None and not hidden.any()):
            missing = "test" if training.any() else "train"
            raise InputError(f"there are no trials of tier {missing}", where=tree / "meta/trials/tiers.npy", advice="Import another tree.")
        image_index = np.searchsorted(found.image_ids, found.image_id)
        lost = _without_behavior(found)
        if rule.shows_behavior and lost is not None:
            raise InputError(f"{lost}, and models are given them", where=tree / "data", advice="Take such trials out of the tree.")
        shown = (found.behavior, found.pupil_center) if rule.shows_behavior else (None, None)
        statistics = training_statistics(
            found.images,
            image_index[training],
            found.response[training],
            *(None if table is None else table[training] for table in shown),
        )
        notes = _notes(tree, found, hidden, statistics.image_mean, statistics.image_std)
        attributes = {
            "schema_version": SCHEMA_VERSION,
            "part": "open",
            "session": found.name,
            "animal": found.animal,
            "role": role,
            "track": track or "",
            "area": "V1",
            "indicator": "GCaMP6s",
            **provenance.model_dump(mode="json"),
            "response_window": list(SessionParameters().response_window),
        }
        trial_id = np.arange(len(found.tier), dtype=np.int64)
        sealed_digest = None
        if hidden.any():
            values: dict[str, NDArray[Any]] = {
                "trials/trial_id": trial_id[hidden],
                "trials/image_id": found.image_id[hidden],
                "trials/tier": found.tier[hidden],
                "trials/response": np.asarray(found.response[hidden]),
                "neurons/unit_id": found.unit_id,
            }
            sealed_digest = write_dataset(workspace.sealed, build_tree(FIELDS["sealed"], values, attributes | {"part": "sealed"})).digest
        digest = _digest_of_tree(found)
        values = {
            "neurons/unit_id": found.unit_id,
            "neurons/position": found.position,
            # Planes of 2022 are known by their depth alone, and no quality of traces is told.
            "neurons/plane": np.unique(found.position[:, 2], return_inverse=True)[1],
            "neurons/snr": np.full(len(found.unit_id), np.nan, np.float32),
            "trials/trial_id": trial_id,
            "trials/image_id": found.image_id,
            "trials/tier": found.tier,
            "trials/response": found.response,
            "trials/behavior": found.behavior,
            "trials/pupil_center": found.pupil_center,
            "images/image_id": found.image_ids,
            "images/image": found.images,
            "images/model_input": _model_input(found.images),
            **{f"statistics/{name}": np.asarray(value) for name, value in vars(statistics).items() if value is not None},
        }
        kept = {field.path for field in rule.fields}
        values = {path: value for path, value in values.items() if path in kept}
        hide(values, found.tier, rule)
        progress(Progress("publish session", 1, 3, "sealed part written"))
        open_digest = write_dataset(workspace.open, build_tree(rule.fields, values, attributes)).digest
        progress(Progress("publish session", 2, 3, "open part written"))
        report = "\n".join([f"# Session {found.name}", "", "Taken over from a file tree of SENSORIUM 2022.", *notes, ""])
        record = SessionRecord(
            name=found.name,
            animal=found.animal,
            role=role,
            track=track,
            open_digest=open_digest,
            lab_digest=digest,
            sealed_digest=sealed_digest,
            report_digest=write_files(workspace.lab, {"report.md": report.encode()}).digest,
            recording_digest=digest,
            neurons=len(found.unit_id),
            trials={tier: int((found.tier == tier).sum()) for tier in TIERS if (found.tier == tier).any()},
            rejected={},
        )
        names = TrialNames(names=tuple(found.trial_name.tolist())) if _tells_no_order(found) else None
    bind(workspace, record)
    if names is not None:
        point(Series(workspace.open, f"trial-names/{open_digest}"), names)
    point(Series(workspace.lab, f"sessions/{record.name}"), record)
    point(Series(workspace.open, f"sessions/{record.name}"), record.published())
    progress(Progress("publish session", 3, 3, "published"))
    return Imported(session=record, notes=notes)


def trial_names(store: Store, open_digest: str, trials: int) -> NDArray[np.str_]:
    """What 2022 called the trials of a session, by trial id; the ids themselves where it gave them no hashes."""
    latest = Series(store, f"trial-names/{open_digest}").latest(TrialNames)
    return np.array(latest[1].names, str) if latest else np.arange(trials).astype(str)


def export_tree(store: Store, session: str, folder: Path, progress: ProgressCallback = silent) -> None:
    """Write the open part of a session as a file tree of SENSORIUM 2022; what is hidden is filled with zeros, as it was then.

    Args:
        store: the open store.
        session: its name.
        folder: must not exist yet.
        progress: told trials written.

    Raises:
        InputError: there is no such session, or the folder cannot be written.
    """
    _, published = read_session(store, session)
    tree = open_dataset(store, published.open_digest)
    tier = read_array(tree, "trials/tier")
    response = np.nan_to_num(np.asarray(tree["trials/response"].values), nan=0.0)
    behavior = "behavior" in tree["trials"].to_dataset()
    tables = {
        name: np.nan_to_num(read_array(tree, f"trials/{name}"), nan=0.0) if behavior else np.zeros((len(tier), width), np.float32)
        for name, width in (("behavior", 3), ("pupil_center", 2))
    }
    found = Tree2022(
        animal=published.animal,
        name=published.name,
        unit_id=read_array(tree, "neurons/unit_id"),
        position=read_array(tree, "neurons/position"),
        trial_name=trial_names(store, published.open_digest, len(tier)),
        tier=tier,
        image_id=read_array(tree, "trials/image_id"),
        image_ids=read_array(tree, "images/image_id"),
        images=read_array(tree, "images/image"),
        response=response,
        behavior=tables["behavior"],
        pupil_center=tables["pupil_center"],
    )
    training = tier == "train"
    statistics = {"responses": _statistics(response[training])} | {
        name: _statistics(table[training]) for name, table in tables.items() if behavior
    }
    rows = np.searchsorted(found.image_ids, found.image_id[training])
    counts = np.bincount(rows, minlength=len(found.image_ids))
    statistics["images"] = _image_statistics(found.images, counts)
    for name in ("mean", "std"):
        statistics["images"][name] = np.asarray(float(tree[f"statistics/image_{name}"]))
    write_tree(found, statistics, folder, progress)


def _notes(tree: Path, found: Tree2022, hidden: NDArray[np.bool_], image_mean: float, image_std: float) -> tuple[str, ...]:
    notes = []
    silent_trials = np.array([not response.any() for response in found.response])
    if hidden.any() and silent_trials[hidden].all():
        notes.append("All hidden responses are zero, as in the public files of 2022: predictions for them cannot be scored.")
        silent_trials &= ~hidden
    for tier in TIERS:
        if count := int(silent_trials[found.tier == tier].sum()):
            first = int(np.flatnonzero(silent_trials & (found.tier == tier))[0])
            of = f"{count} of {int((found.tier == tier).sum())} trials of tier {tier}"
            notes.append(f"Responses of all neurons are zero in {of}, first in data/responses/{first}.npy: are they missing?")
    if (lost := _without_behavior(found)) is not None:
        notes.append(f"{lost}; this session does not show them.")
    for name, value in (("mean", image_mean), ("std", image_std)):
        stored = stored_number(tree / f"meta/statistics/images/all/{name}.npy")
        if stored is not None and not np.isclose(stored, value, rtol=1e-3):
            notes.append(f"The image {name} of the training trials is {value:.4f}; the tree says {stored:.4f}.")
    return tuple(notes)


def _without_behavior(found: Tree2022) -> str | None:
    """Which trials have behaviour or a pupil that is not finite, in words; None where there are none."""
    known = np.isfinite(np.concatenate([found.behavior, found.pupil_center], axis=1)).all(axis=1)
    if known.all():
        return None
    return f"Behaviour or pupil is not finite in {int((~known).sum())} of {known.size} trials, first in trial {int(np.argmin(known))}"


def _tells_no_order(found: Tree2022) -> bool:
    """Whether the trials' names may be published: the hashes of competition sessions, but not numbers in the order of presentation."""
    return not all(name.isdigit() and len(name) < SHORTEST_HASH for name in found.trial_name.tolist())


def _model_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    if images.shape[1] * MODEL_INPUT_SHAPE[1] != images.shape[2] * MODEL_INPUT_SHAPE[0]:
        raise InputError(f"images of {images.shape[1:]} pixels", where="images", advice="Those of 2022 are 144 x 256, or of that shape")
    return np.concatenate([rescale(images[start : start + IMAGE_BLOCK]) for start in range(0, len(images), IMAGE_BLOCK)])


def _digest_of_tree(found: Tree2022) -> str:
    """sha256 over everything that was read."""
    digest = hashlib.sha256(found.name.encode())
    for name, table in sorted(vars(found).items()):
        if isinstance(table, np.ndarray):
            digest.update(f"{name} {table.dtype.str} {table.shape}".encode())
            for start in range(0, len(table), IMAGE_BLOCK):
                digest.update(np.ascontiguousarray(table[start : start + IMAGE_BLOCK]).tobytes())
    return digest.hexdigest()


def _statistics(table: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Over trials (trials, columns), of each column."""
    return {name: getattr(np, name)(table, axis=0) for name in ("min", "max", "mean", "median", "std")}


def _image_statistics(images: NDArray[np.uint8], counts: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """Smallest, largest and middle grey value of the images, each as often as it was shown."""
    histogram = np.zeros(256, np.int64)
    for image, count in zip(images, counts, strict=True):
        if count:
            histogram += count * np.bincount(image.ravel(), minlength=256)
    present = np.flatnonzero(histogram)
    middle = int(np.searchsorted(np.cumsum(histogram), histogram.sum() / 2))
    return {"min": np.asarray(present[0]), "max": np.asarray(present[-1]), "median": np.asarray(middle)}
