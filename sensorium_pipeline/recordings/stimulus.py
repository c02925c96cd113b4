"""The stimulus of a raw session: the images, their sets, and when the photodiode saw each of them."""

from pathlib import Path
from typing import get_args

import numpy as np

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.clocks import ClockMap, Times, join_clocks
from sensorium_pipeline.recordings.raw_session import (
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    ImageSet,
    Presentations,
    RecordingDescription,
    StimulusImages,
)
from sensorium_pipeline.recordings.sync import SyncFile, check_session
from sensorium_pipeline.recordings.tables import commented_session, read_columns, read_text_table, whole_numbers

_TOLERANCE = 0.02  # seconds; a frame of the screen is 0.0167
_MOST_UNSEEN = 0.02
_INVERTED = 0.2  # of the presentations' ends that a photodiode must show better upside down


def read_images(table: Path, stack: Path, description: RecordingDescription) -> tuple[StimulusImages, dict[int, ImageSet]]:
    """The images, ascending by id and left on disk until used, and the set of each.

    Raises:
        InputError: when ids are not whole or come twice, a set is unknown, or the stack is of another shape.
    """
    ids = whole_numbers(read_columns(table, ["image_id"])["image_id"], table, "image_id")
    sets = [text.strip() for text in read_text_table(table, ["image_set"])["image_set"]]
    for row, name in enumerate(sets):
        if name not in get_args(ImageSet):
            raise InputError(
                f"row {row + 1}: image_set is {name!r}", where=table, advice=f"It must be one of {', '.join(get_args(ImageSet))}."
            )
    if len(np.unique(ids)) != len(ids):
        raise InputError("an image_id comes twice", where=table, advice="Every image has one row.")
    if description.role == "open" and "final_test" in sets:
        raise InputError(
            "an open session shows images of the final_test set, which would give them away",
            where=table,
            advice="Correct image_set, or the role in session.toml.",
        )
    try:
        images = np.load(stack, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's header parser lets exceptions of many kinds through on damaged files
        problem = "is missing" if not stack.is_file() else "is damaged or cut off"
        raise InputError(problem, where=stack, advice="Copy it again.") from error
    if not isinstance(images, np.ndarray):
        raise InputError("holds several arrays", where=stack, advice="Save one with numpy.save.")
    if images.dtype != np.uint8 or images.shape != (len(ids), IMAGE_HEIGHT, IMAGE_WIDTH):
        raise InputError(
            f"is {images.shape} {images.dtype}, and {table.name} asks for ({len(ids)}, {IMAGE_HEIGHT}, {IMAGE_WIDTH}) uint8",
            where=stack,
            advice="One grey image for each row of the table.",
        )
    order = np.argsort(ids)
    ascending = images if bool((order == np.arange(len(order))).all()) else images[order]
    return StimulusImages(ids[order], ascending), {int(ids[row]): sets[row] for row in order}


def read_presentations(
    path: Path, session: str, images: StimulusImages, sync: SyncFile, zero: float, end: float, warnings: list[str]
) -> Presentations:
    """The stimulus table, its times joined through the photodiode to the frame clock.

    Args:
        zero: of the frame clock, on the acquisition clock (s).
        end: of the recording, on the frame clock (s).

    Raises:
        InputError: unknown images, times that are not in order or outside the recording, a table that the photodiode does not bear out.
    """
    check_session(path, commented_session(path), session)
    columns = read_columns(path, ["image_id", "onset", "offset"])
    image_id = whole_numbers(columns["image_id"], path, "image_id")
    unknown = np.setdiff1d(image_id, images.image_ids)
    if len(unknown):
        some = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"image_id: {len(unknown)} images are not in images.csv ({some})", where=path, advice="Copy the images of this session."
        )
    onset, offset = columns["onset"], columns["offset"]
    if (bad := np.flatnonzero(offset <= onset)).size:
        raise InputError(f"row {bad[0] + 1}: offset is not after onset", where=path, advice="Export the table again.")
    if (bad := np.flatnonzero(onset[1:] < offset[:-1])).size:
        raise InputError(f"row {bad[0] + 2}: onset is before the last offset", where=path, advice="Export the table again.")
    rising, falling = sync.photodiode()
    joined = join_clocks(onset, rising, tolerance=_TOLERANCE)
    inverse = join_clocks(onset, falling, tolerance=_TOLERANCE)
    if inverse is not None and _ends_seen(inverse, offset, rising) > _ends_seen(joined, offset, falling) + _INVERTED:
        rising, falling, joined = falling, rising, inverse
        warnings.append("the photodiode is inverted: its signal is low while images are shown")
    if joined is None:
        raise InputError(
            f"onset: the photodiode ({len(rising)} rising edges) does not show these {len(onset)} presentations",
            where=path,
            advice="Take the stimulus table of this session.",
        )
    seen_onset, seen_offset = joined(onset), joined(offset)
    outside = np.flatnonzero((seen_onset < zero) | (seen_offset > zero + end))
    if len(outside):
        at = seen_onset[outside[0]] - zero
        raise InputError(
            f"onset: {len(outside)} presentations lie outside the recording of {end:.1f} s; row {outside[0] + 1} at {at:.1f} s",
            where=path,
            advice="Take the presentations that were not recorded out of the table.",
        )
    unseen = len(onset) - len(joined.theirs)
    if unseen > _MOST_UNSEEN * len(onset):
        raise InputError(
            f"onset: the photodiode does not show {unseen} of {len(onset)} presentations",
            where=path,
            advice="Take the stimulus table of this session.",
        )
    if unseen:
        warnings.append(f"the photodiode missed {unseen} of {len(onset)} onsets, which are taken from the stimulus machine's clock")
    if (unlisted := int(((rising > zero) & (rising < zero + end)).sum()) - len(joined.ours)) > 0:
        warnings.append(f"the photodiode shows {unlisted} presentations that {path.name} does not list")
    seen_onset[joined.theirs] = rising[joined.ours]
    seen_offset = _first_after(falling, seen_onset, seen_offset)
    lasting = seen_offset - seen_onset
    if slow := int((np.abs(lasting - np.median(lasting)) > 1.5 / 60).sum()):
        warnings.append(f"{slow} presentations were not as long as the others: the screen dropped frames")
    return Presentations(image_id, seen_onset - zero, seen_offset - zero)


def _ends_seen(joined: ClockMap | None, offset: Times, ends: Times) -> float:
    """Part of the logged ends of presentations (presentations,) at which the photodiode saw an end."""
    if joined is None:
        return 0.0
    after = np.searchsorted(ends, joined(offset))
    near = [np.abs(np.append(ends, np.inf)[np.clip(index, 0, len(ends))] - joined(offset)) for index in (after - 1, after)]
    return float(np.mean(np.minimum(*near) < _TOLERANCE))


def _first_after(falling: Times, onset: Times, logged: Times) -> Times:
    """The photodiode's first falling edge after each onset, or the logged offset where there is none within a second of it."""
    index = np.searchsorted(falling, onset, side="right")
    found = np.append(falling, np.inf)[index]
    return np.where(np.abs(found - logged) < 1.0, found, logged)
