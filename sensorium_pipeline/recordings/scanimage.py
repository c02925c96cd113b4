"""ScanImage recordings: several BigTIFF files that go on where the last ended, frames interleaved channel, plane, time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.dewarping import DewarpedMovie
from sensorium_pipeline.recordings.frames import Frames, Movie, check_range
from sensorium_pipeline.recordings.scan_fields import ScanField
from sensorium_pipeline.recordings.scanimage_header import FrameDescription, ScanHeader, parse_frame_description, parse_header
from sensorium_pipeline.recordings.tiff import PageTable, read_page_table
from sensorium_pipeline.recordings.tiff_directory import ARTIST, DESCRIPTION, SOFTWARE

_MISSING = "Copy the missing files of the recording into the folder."


@dataclass(frozen=True)
class ScanImageMovie:
    """One plane and channel of a recording, frames in time; picklable, reads only the lines of the pages that it returns."""

    tables: tuple[PageTable, ...]
    frames: int
    field: ScanField
    first_page: int
    page_step: int

    @property
    def height(self) -> int:
        """Lines of a frame."""
        return self.field.height

    @property
    def width(self) -> int:
        """Pixels of a line."""
        return self.field.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel, int16 as ScanImage writes it."""
        return self.tables[0].first.dtype.newbyteorder("=")

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.tables[0].path)
        out = np.empty((stop - start, self.height, self.width), self.dtype)
        pages = self.first_page + np.arange(start, stop) * self.page_step
        before = 0
        for table in self.tables:
            here = np.flatnonzero((pages >= before) & (pages < before + len(table)))
            if len(here):
                table.read_frames(pages[here] - before, out[here[0] : here[-1] + 1], self.field.first_line)
            before += len(table)
        return out


@dataclass(frozen=True)
class ScanImageRecording:
    """An opened recording.

    Attributes:
        header: of the first file.
        tables: pages of every file, in order.
        volumes: complete volumes.
        skipped: pages before the first complete volume; none but in a part of a recording.
        frames: scanned frames of all planes, flyback included, as the frame clock counts them (an incomplete last volume too).
        first, last: what the first and the last frame's descriptions say.
    """

    header: ScanHeader
    tables: tuple[PageTable, ...]
    volumes: int
    skipped: int
    frames: int
    first: FrameDescription
    last: FrameDescription

    def plane(self, index: int, channel: int = 0) -> Movie:
        """The movie of a plane (see `ScanHeader.fields`), dewarped where that is to be done; `channel` counts the saved ones from 0."""
        channels, fields = len(self.header.channels), self.header.fields
        if not 0 <= index < len(fields) or not 0 <= channel < channels:
            raise InputError(
                f"plane {index}, channel {channel} was asked for, and there are {len(fields)} and {channels}",
                where=self.tables[0].path.parent,
            )
        field = fields[index]
        first_page = self.skipped + field.slice * channels + channel
        movie = ScanImageMovie(self.tables, self.volumes, field, first_page, self.header.frames_per_volume * channels)
        return movie if field.fill_fraction is None else DewarpedMovie(movie, field.fill_fraction)


def is_scanimage(table: PageTable) -> bool:
    """Whether a file has the header of ScanImage."""
    return table.text(0, SOFTWARE).startswith("SI.")


def open_scanimage(paths: Sequence[Path], *, part: bool = False, dewarp: bool | None = None) -> ScanImageRecording:
    """Open the files of one recording, in any order.

    Only the first, a middle and the last pages of each file are looked at where pages lie at one constant distance.

    Args:
        paths: the files.
        part: whether files before the first one given may be missing, as when a single file is looked at.
        dewarp: whether lines are still to be dewarped; None decides by the header.

    Raises:
        InputError: naming the file and the field: a missing or truncated file, a file of another recording, frames that are not as the
            header says, a gap in the frame numbers.
    """
    if not paths:
        raise InputError("no scan files were given", advice=_MISSING)
    tables = [read_page_table(path) for path in sorted(paths)]
    header = _header(tables[0], dewarp)
    channels = len(header.channels)
    bounds = [_bounds(table, channels) for table in tables]
    order = sorted(range(len(tables)), key=lambda index: bounds[index][0].number)
    ordered, bounds = [tables[index] for index in order], [bounds[index] for index in order]
    _check_files(ordered, header, dewarp)
    _check_order(ordered, bounds, part)
    frames = sum(len(table) for table in ordered) // channels
    skipped = (1 - bounds[0][0].number) % header.frames_per_volume
    volumes = (frames - skipped) // header.frames_per_volume
    if volumes <= 0:
        raise InputError(f"hold {frames} frames, and a volume has {header.frames_per_volume}", where=paths[0].parent, advice=_MISSING)
    if header.planned_volumes is not None and volumes > header.planned_volumes:
        raise InputError(
            f"hold {volumes} volumes, and the header's SI.hStackManager.actualNumVolumes says {header.planned_volumes}",
            where=paths[0].parent,
            advice="Files of another recording may have got into the folder.",
        )
    return ScanImageRecording(header, tuple(ordered), volumes, skipped * channels, frames, bounds[0][0], bounds[-1][1])


def _header(table: PageTable, dewarp: bool | None) -> ScanHeader:
    page = (table.first.height, table.first.width)
    return parse_header(table.text(0, SOFTWARE), table.text(0, ARTIST), page, table.path, dewarp)


def _bounds(table: PageTable, channels: int) -> tuple[FrameDescription, FrameDescription]:
    """First and last frame of a file, whose numbers must differ by its number of frames."""
    if not table.uncompressed:
        raise InputError("is compressed or tiled", where=table.path, advice="ScanImage writes plain files; give those.")
    if len(table) % channels:
        raise InputError(
            f"holds {len(table)} pages, which is no multiple of the {channels} channels of SI.hChannels.channelSave", where=table.path
        )
    last_page = len(table) - 1
    first = parse_frame_description(table.text(0, DESCRIPTION), table.path, 0)
    last = parse_frame_description(table.text(last_page, DESCRIPTION), table.path, last_page)
    frames = len(table) // channels
    if last.number - first.number + 1 != frames:
        raise InputError(
            f"holds {frames} frames, and their frameNumbers go from {first.number} to {last.number}",
            where=table.path,
            advice="Frames were lost while the recording was saved, or SI.hChannels.channelSave is not what was saved.",
        )
    return first, last


def _check_files(tables: list[PageTable], header: ScanHeader, dewarp: bool | None) -> None:
    for table in tables[1:]:
        page, first = table.first, tables[0].first
        if (page.height, page.width, page.dtype) != (first.height, first.width, first.dtype):
            raise InputError(
                f"frames are {page.height} x {page.width} {page.dtype}, those before {first.height} x {first.width} {first.dtype}",
                where=table.path,
                advice="The file belongs to another recording.",
            )
        if (other := _header(table, dewarp)) != header:
            differing = [name for name in vars(header) if getattr(other, name) != getattr(header, name)]
            raise InputError(
                f"its header differs from that of {tables[0].path.name} in {', '.join(differing)}",
                where=table.path,
                advice="The file belongs to another recording.",
            )


def _check_order(tables: list[PageTable], bounds: list[tuple[FrameDescription, FrameDescription]], part: bool) -> None:
    if bounds[0][0].number != 1 and not part:
        raise InputError(
            f"begins with frameNumbers = {bounds[0][0].number}: the first file of the recording is missing",
            where=tables[0].path,
            advice=_MISSING,
        )
    for index in range(1, len(tables)):
        before, here = bounds[index - 1][1], bounds[index][0]
        if here.number > before.number + 1:
            raise InputError(
                f"frameNumbers jump from {before.number} to {here.number}: files after {tables[index - 1].path.name} are missing",
                where=tables[index].path,
                advice=_MISSING,
            )
        if here.number <= before.number or here.timestamp <= before.timestamp:
            raise InputError(
                f"frame {here.number} at {here.timestamp:.3f} s comes again after frame {before.number} at {before.timestamp:.3f} s",
                where=tables[index].path,
                advice="Take files of other recordings and doubles out of the folder.",
            )
