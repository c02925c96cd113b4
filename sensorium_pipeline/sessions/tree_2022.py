"""The file tree of a session as SENSORIUM 2022 released it: read with checks, and written.

`data/{images,responses,behavior,pupil_center}/<i>.npy` hold one trial a file, in random order; `meta/neurons`, `meta/trials` and
`meta/statistics` what belongs to them. Nothing is unpickled.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.sessions.tiers import TIERS

NAME = re.compile(r"static(\d+)-(\d+)-(\d+)")
ADVICE = "Give the unpacked folder of one session, with data/ and meta/, as SENSORIUM 2022 released it"
UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError)


@dataclass(frozen=True)
class Tree2022:
    """What a tree holds, trials in the order of their file numbers.

    Shapes: unit_id (neurons,) int64; position (neurons, 3) float32, um; trial_name (trials,) text, the column trial_idx; tier (trials,)
    text; image_id (trials,) int64; images (images, y, x) uint8 by image_ids (images,) ascending; response (trials, neurons) float32;
    behavior (trials, 3) and pupil_center (trials, 2) float32.
    """

    animal: int
    name: str
    unit_id: NDArray[np.int64]
    position: NDArray[np.float32]
    trial_name: NDArray[np.str_]
    tier: NDArray[np.str_]
    image_id: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    images: NDArray[np.uint8]
    response: NDArray[np.float32]
    behavior: NDArray[np.float32]
    pupil_center: NDArray[np.float32]


def read_tree(tree: Path, scratch: Path, progress: ProgressCallback = silent) -> Tree2022:
    """Read a tree; responses and images go to files in `scratch` that are mapped, so that memory stays bounded.

    Args:
        tree: the folder with `data` and `meta`.
        scratch: folder of this machine that outlives the result.
        progress: told trials read.

    Raises:
        InputError: naming the file that is missing, unreadable, or does not fit the others.
    """
    if not (tree / "data").is_dir() or not (tree / "meta").is_dir():
        raise InputError("no data/ and meta/ in this folder", where=tree, advice=ADVICE)
    meta = tree / "meta"
    tier = _array(meta / "trials/tiers.npy", "U", (None,)).astype(str)
    if unknown := sorted(set(tier.tolist()) - set(TIERS)):
        raise InputError(f"unknown tiers {', '.join(unknown)[:80]}", where=meta / "trials/tiers.npy", advice=f"Known: {', '.join(TIERS)}")
    trials = len(tier)
    image_id = _array(meta / "trials/frame_image_id.npy", "iu", (trials,)).astype(np.int64)
    names = meta / "trials/trial_idx.npy"
    trial_name = _array(names, "iuU", (trials,)).astype(str) if names.exists() else np.arange(trials).astype(str)
    if len(np.unique(trial_name)) < trials:
        raise InputError("two trials have one trial_idx", where=names, advice=ADVICE)
    unit_id = _array(meta / "neurons/unit_ids.npy", "iu", (None,)).astype(np.int64)
    if not len(unit_id) or len(np.unique(unit_id)) < len(unit_id):
        raise InputError("there are no unit ids, or one is given twice", where=meta / "neurons/unit_ids.npy", advice=ADVICE)
    places = meta / "neurons/cell_motor_coordinates.npy"
    position = _array(places, "iuf", (len(unit_id), 3)).astype(np.float32)
    if not np.isfinite(position).all():
        raise InputError("positions hold values that are not finite", where=places, advice=ADVICE)
    animal, name = _name(tree)

    response = np.lib.format.open_memmap(scratch / "response.npy", "w+", np.float32, (trials, len(unit_id)))
    behavior, pupil_center = np.empty((trials, 3), np.float32), np.empty((trials, 2), np.float32)
    image_ids, first = np.unique(image_id, return_index=True)
    place = {int(trial): row for row, trial in enumerate(first)}
    images: NDArray[np.uint8] | None = None
    for trial in range(trials):
        responses = tree / f"data/responses/{trial}.npy"
        response[trial] = _array(responses, "iuf", (len(unit_id),))
        if not np.isfinite(response[trial]).all():
            raise InputError("responses hold values that are not finite", where=responses, advice=ADVICE)
        behavior[trial] = _array(tree / f"data/behavior/{trial}.npy", "iuf", (3,))
        pupil_center[trial] = _array(tree / f"data/pupil_center/{trial}.npy", "iuf", (2,))
        if trial in place:
            image = _image(tree / f"data/images/{trial}.npy")
            if images is None:
                images = np.lib.format.open_memmap(scratch / "images.npy", "w+", np.uint8, (len(image_ids), *image.shape))
            if image.shape != images.shape[1:]:
                raise InputError(
                    f"an image of {image.shape}", where=tree / f"data/images/{trial}.npy", advice=f"Others: {images.shape[1:]}"
                )
            images[place[trial]] = image
        progress(Progress("reading trials", trial + 1, trials))
    if images is None:
        raise InputError("there are no trials", where=meta / "trials/tiers.npy", advice=ADVICE)
    if (more := tree / f"data/responses/{trials}.npy").exists():
        raise InputError(f"meta/trials/tiers.npy lists {trials} trials, and there are more", where=more, advice=ADVICE)
    return Tree2022(
        animal, name, unit_id, position, trial_name, tier, image_id, image_ids, images, response, behavior, pupil_center
    )  # fmt: skip


def write_tree(tree: Tree2022, statistics: Mapping[str, Mapping[str, NDArray[Any]]], folder: Path, progress: ProgressCallback) -> None:
    """Write a tree; the folder appears whole or not at all.

    Args:
        tree: what to write.
        statistics: by kind of data ("images", "responses", ...), then by name ("mean", "std", ...), written as `all` and `stimulus_frame`.
        folder: must not exist yet.
        progress: told trials written.

    Raises:
        InputError: something lies there, or it cannot be written.
    """
    fresh = folder.with_name(f".{folder.name}.unfinished")
    if folder.exists() or fresh.exists():
        raise InputError(
            "something lies there already", where=folder if folder.exists() else fresh, advice="Name a new folder, or remove it"
        )
    animal, session, scan = tree.name.split("-")
    neurons = len(tree.unit_id)
    tables: dict[str, NDArray[Any]] = {
        "meta/neurons/unit_ids": tree.unit_id,
        "meta/neurons/cell_motor_coordinates": tree.position,
        "meta/neurons/animal_ids": np.full(neurons, int(animal)),
        "meta/neurons/sessions": np.full(neurons, int(session)),
        "meta/neurons/scan_idx": np.full(neurons, int(scan)),
        "meta/trials/tiers": tree.tier,
        "meta/trials/frame_image_id": tree.image_id,
        "meta/trials/trial_idx": tree.trial_name.astype(np.int64) if all(n.isdigit() for n in tree.trial_name) else tree.trial_name,
    }
    for kind, values in statistics.items():
        for name, value in values.items():
            tables |= {f"meta/statistics/{kind}/{frame}/{name}": value for frame in ("all", "stimulus_frame")}
    try:
        for path, table in tables.items():
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            np.save(fresh / f"{path}.npy", table, allow_pickle=False)
        row = np.searchsorted(tree.image_ids, tree.image_id)
        for kind in ("images", "responses", "behavior", "pupil_center"):
            (fresh / "data" / kind).mkdir(parents=True)
        for trial in range(len(tree.tier)):
            np.save(fresh / f"data/images/{trial}.npy", np.asarray(tree.images[row[trial]])[None], allow_pickle=False)
            np.save(fresh / f"data/responses/{trial}.npy", np.asarray(tree.response[trial]), allow_pickle=False)
            np.save(fresh / f"data/behavior/{trial}.npy", tree.behavior[trial], allow_pickle=False)
            np.save(fresh / f"data/pupil_center/{trial}.npy", tree.pupil_center[trial], allow_pickle=False)
            progress(Progress("writing trials", trial + 1, len(tree.tier)))
        fresh.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write here ({error.strerror})", where=folder, advice="Choose a folder that is writable") from error


def _name(tree: Path) -> tuple[int, str]:
    """Animal and name `<animal>-<session>-<scan>`, from the neurons' tables or from the folder's name."""
    files = [tree / "meta/neurons" / f"{name}.npy" for name in ("animal_ids", "sessions", "scan_idx")]
    if all(file.exists() for file in files):
        numbers = [_array(file, "iu", (None,)) for file in files]
        if any(len(set(table.tolist())) != 1 for table in numbers):
            raise InputError("the neurons are not of one scan", where=tree / "meta/neurons", advice=ADVICE)
        animal, session, scan = (int(table[0]) for table in numbers)
        return animal, f"{animal}-{session}-{scan}"
    match = NAME.match(tree.resolve().name)
    if match is None:
        raise InputError(
            "nothing says which animal, session and scan this is", where=tree, advice="Keep the folder's name static<a>-<s>-<s>"
        )
    return int(match[1]), "-".join(match.groups())


def stored_number(path: Path) -> float | None:
    """The number in a file of statistics; None where there is no such file, or one with other than a single number.

    Raises:
        InputError: the file is damaged.
    """
    array = _load(path) if path.exists() else np.empty(0)
    return float(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "iuf" else None


def _load(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("the file is missing", where=path, advice=ADVICE) from error
    except UNREADABLE as error:
        raise InputError(f"no readable array ({type(error).__name__})", where=path, advice="Objects and pickles are not read") from error
    if not isinstance(array, np.ndarray):
        raise InputError("several arrays", where=path, advice="Expected is a .npy file with one array")
    return array


def _array(path: Path, kinds: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    array = _load(path)
    fits = array.ndim == len(shape) and all(wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in kinds or not fits:
        wanted = tuple("any" if length is None else length for length in shape)
        raise InputError(f"its shape and type are {array.shape} {array.dtype}", where=path, advice=f"Expected is the shape {wanted}")
    return array


def _image(path: Path) -> NDArray[np.uint8]:
    """(y, x) grey values of a file that may hold (1, y, x) of any number type."""
    image = _array(path, "iuf", (1, None, None))[0]
    with np.errstate(invalid="ignore"):
        grey = image.astype(np.uint8)
    if not np.array_equal(grey, image):
        raise InputError("its pixels are not whole grey values from 0 to 255", where=path, advice=ADVICE)
    return grey
