"""Movies in TIFF files that are not ScanImage's: a page a frame, one directory for all as ImageJ writes it, or many files."""

import logging
import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.frames import COPY_AGAIN, Frames, brief, check_range, checked_shape
from sensorium_pipeline.recordings.tiff import PageTable, read_page_table
from sensorium_pipeline.recordings.tiff_description import CHANNEL, DEPTH, TIME, Axes, read_description
from sensorium_pipeline.recordings.tiff_directory import DESCRIPTION

# What it logs about a damaged file, the one error says.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class TiffMovie:
    """A TIFF file whose every page is a frame; frame_rate in Hz, None where the file does not say it."""

    table: PageTable
    frame_rate: float | None

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.table)

    @property
    def height(self) -> int:
        """Lines of a frame."""
        return self.table.first.height

    @property
    def width(self) -> int:
        """Pixels of a line."""
        return self.table.first.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel."""
        return self.table.first.dtype.newbyteorder("=")

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.table.path)
        out = np.empty((stop - start, self.height, self.width), self.dtype)
        if self.table.uncompressed:
            self.table.read_frames(np.arange(start, stop), out)
        else:
            _decode(self.table, start, stop, out)
        return out


@dataclass(frozen=True)
class TiffSequence:
    """TIFF files that go on where the one before ended, all of one size and type.

    Attributes:
        parts: the files' movies.
        starts: number of the first frame of each.
    """

    parts: tuple[TiffMovie, ...]
    starts: tuple[int, ...]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.starts[-1] + self.parts[-1].frames

    @property
    def height(self) -> int:
        """Lines of a frame."""
        return self.parts[0].height

    @property
    def width(self) -> int:
        """Pixels of a line."""
        return self.parts[0].width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel."""
        return self.parts[0].dtype

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.parts[0].table.path.parent)
        out = np.empty((stop - start, self.height, self.width), self.dtype)
        at = start
        while at < stop:
            index = bisect_right(self.starts, at) - 1
            first, part = self.starts[index], self.parts[index]
            end = min(first + part.frames, stop)
            out[at - start : end - start] = part.read(at - first, end - first)
            at = end
        return out


def open_tiffs(paths: Sequence[Path], dataset: str | None = None) -> TiffSequence:
    """The movie of files that follow each other in the order of the numbers in their names.

    Raises:
        InputError: as `open_tiff`, or frames differ in size or type between files.
    """
    parts = tuple(open_tiff(read_page_table(path), dataset) for path in sorted(paths, key=_numbers_in_order))
    first = parts[0]
    for part in parts[1:]:
        if (part.height, part.width, part.dtype) != (first.height, first.width, first.dtype):
            raise InputError(
                f"frames are {part.height} x {part.width} {part.dtype}, those of {first.table.path.name} "
                f"{first.height} x {first.width} {first.dtype}",
                where=part.table.path,
                advice="The files of a folder are one movie: move those of others out of it.",
            )
    return TiffSequence(parts, tuple(accumulate((part.frames for part in parts[:-1]), initial=0)))


def _numbers_in_order(path: Path) -> list[str | int]:
    """A key that sorts `part_10.tif` behind `part_9.tif`."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", path.name)]


def open_tiff(table: PageTable, dataset: str | None = None) -> TiffMovie:
    """The movie of a file whose pages are found, or the one plane and channel of it that `dataset` names.

    Raises:
        InputError: nothing says how channels and planes take turns in it, no such plane is there, or it cannot be decoded.
    """
    first, path = table.first, table.path
    about = read_description(table.text(0, DESCRIPTION), len(table), (first.height, first.width))
    if about.images > 1 and table.uncompressed:
        # One directory; the frames follow each other. ImageJ writes files of more than 4 GB so.
        if (end := first.data_offset + about.images * first.frame_bytes) > (size := path.stat().st_size):
            raise InputError(
                f"is cut off: its {about.images} frames end at byte {end}, the file at byte {size}", where=path, advice=COPY_AGAIN
            )
        offsets = first.data_offset + np.arange(about.images, dtype=np.int64) * first.frame_bytes
        table = replace(table, directories=np.full(about.images, first.directory), data_offsets=offsets)
    if about.turns:
        table = _take_turn(table, about.turns, dataset)
    elif dataset is not None:
        raise InputError("is a TIFF file, which has no datasets", where=path, advice="Leave the dataset out.")
    checked_shape((len(table), first.height, first.width), first.dtype, path, "TIFF")
    movie = TiffMovie(table, about.frame_rate)
    if not table.uncompressed:
        movie.read(0, 1)  # says at once whether it can be decoded
    return movie


def _take_turn(table: PageTable, turns: Axes, dataset: str | None) -> PageTable:
    """The pages of one plane and channel."""
    lengths = dict(turns)
    said = " x ".join(str(length) for _, length in reversed(turns))
    if len(lengths) < len(turns) or not set(lengths) <= {TIME, CHANNEL, DEPTH} or math.prod(lengths.values()) != len(table):
        raise InputError(
            f"holds {len(table)} images and is described as {said}, which does not say how channels and planes take turns with time",
            where=table.path,
            advice="Save one channel of one plane as a movie of its own.",
        )
    plane, channel = choose_plane(lengths.get(DEPTH, 1), range(1, lengths.get(CHANNEL, 1) + 1), dataset, table.path)
    images, step = np.arange(len(table)), 1
    chosen = np.ones(len(table), bool)
    for axis, length in turns:
        if axis != TIME:
            chosen &= images // step % length == (plane if axis == DEPTH else channel)
        step *= length
    return replace(table, directories=table.directories[chosen], data_offsets=table.data_offsets[chosen])


def choose_plane(planes: int, channels: Sequence[int], dataset: str | None, where: Path) -> tuple[int, int]:
    """Which plane, and which of the channels (both counted from 0), a name like `plane 0/channel 2` or `plane 0` asks for.

    Raises:
        InputError: there is no such one, or none was named where there are several.
    """
    names = {
        f"plane {plane}" + (f"/channel {number}" if len(channels) > 1 else ""): (plane, channel)
        for plane in range(planes)
        for channel, number in enumerate(channels)
    }
    some = ", ".join(list(names)[:20])
    if dataset is None and len(names) > 1:
        problem = f"holds {planes} planes and {len(channels)} channels"
        raise InputError(problem, where=where, advice=f"Name one of: {some}.")
    wanted = next(iter(names)) if dataset is None else dataset.strip("/")
    if wanted not in names:
        raise InputError(f"has no dataset {dataset!r}", where=where, advice=f"It has: {some}.")
    return names[wanted]


def _decode(table: PageTable, start: int, stop: int, out: Frames) -> None:
    """Decode compressed and tiled pages with tifffile, which goes straight to their directories."""
    try:
        with tifffile.TiffFile(table.path) as file:
            for position, number in enumerate(range(start, stop)):
                file.filehandle.seek(int(table.directories[number]))
                out[position] = tifffile.TiffPage(file, number).asarray().reshape(out.shape[1:])
    except Exception as error:  # a damaged file leads tifffile and its codecs into exceptions of every kind
        raise InputError(f"frames {start} to {stop} cannot be decoded ({brief(error)})", where=table.path, advice=COPY_AGAIN) from error
