"""Where the frames of a TIFF file lie.

Written here rather than taken from a library because a recording has 10^5 pages: pages that follow each other at one constant
distance (as ScanImage writes them) are found from a handful of them, and where a walk through the file has to be made, a page like
the first is known by its bytes. Compressed and tiled pages are found here and left to tifffile (`tiff_movie.py`) to decode.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.tiff_directory import (
    CODES,
    COPY_SCAN,
    DESCRIPTION,
    SIZES,
    STRIP_BYTES,
    STRIP_OFFSETS,
    TILE_BYTES,
    TILE_OFFSETS,
    DirectoryReader,
    TiffPage,
    cut_off,
    opened,
    read_at,
    read_text,
)


@dataclass(frozen=True)
class PageTable:
    """All pages of one file, of one geometry.

    Shapes: directories and data_offsets (pages,) int64, in bytes from the start of the file.
    """

    path: Path
    first: TiffPage
    directories: NDArray[np.int64]
    data_offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.directories)

    @property
    def uncompressed(self) -> bool:
        """Whether every frame is one run of plain bytes."""
        return bool((self.data_offsets >= 0).all())

    def read_frames(self, pages: NDArray[np.int64], out: NDArray[Any], first_line: int = 0) -> None:
        """Copy a window of some pages into `out` (pages, y, x) of the file's type in native byte order.

        The window begins at the first pixel of `first_line` and is as large as a frame of `out`; no other lines are read.
        """
        page = self.first
        lines, pixels = out.shape[1:]
        line_bytes = page.width * page.dtype.itemsize
        direct = page.dtype == out.dtype and pixels == page.width and out.flags.c_contiguous
        with opened(self.path) as file:
            for position, number in enumerate(pages):
                start = int(self.data_offsets[number]) + first_line * line_bytes
                if direct and os.preadv(file, [out[position]], start) == lines * line_bytes:
                    continue
                raw = read_at(file, self.path, start, lines * line_bytes, f"page {number}, pixels")
                out[position] = np.frombuffer(raw, page.dtype).reshape(lines, page.width)[:, :pixels]

    def text(self, number: int, tag: int) -> str:
        """A text tag of one page, "" where the page has none."""
        with opened(self.path) as file:
            return read_text(file, self.path, self._page(file, number), tag)

    def _page(self, file: int, number: int) -> TiffPage:
        return DirectoryReader(file, self.path).page(int(self.directories[number]), f"page {number}")


def read_page_table(path: Path) -> PageTable:
    """Find all pages of a TIFF file.

    Raises:
        InputError: when the file is missing, is not a TIFF, is cut off, or holds frames of several sizes or colours.
    """
    with opened(path) as file:
        reader = DirectoryReader(file, path)
        first = reader.page(reader.start(), "page 0")
        return _evenly_spaced(reader, first) or _walk(reader, first)


def _evenly_spaced(reader: "DirectoryReader", first: TiffPage) -> PageTable | None:
    """The table of a file whose pages follow each other at one distance, from a handful of pages; None where they do not."""
    if not first.following or first.data_offset < 0:
        return None
    second = reader.page(first.following, "page 1")
    if not second.following:
        return None
    third = reader.page(second.following, "page 2")
    step = third.directory - second.directory
    if step <= first.frame_bytes or third.data_offset - second.data_offset != step:
        return None
    last = (reader.size - max(second.directory, second.data_offset + second.frame_bytes)) // step
    if last < 1 or last * step + second.directory >= reader.size:
        return None
    for number in {last, last // 2}:
        try:
            page = reader.page(second.directory + number * step, f"page {number + 1}")
        except InputError:
            return None  # the walk says what is wrong
        expected = 0 if number == last else page.directory + step
        if number == last and page.following == page.directory + step and page.following + step > reader.size:
            raise cut_off(reader.path, f"after {last + 2} whole pages another should follow")
        if page.following != expected or page.data_offset != second.data_offset + number * step or not _alike(page, first):
            return None
    pages = np.arange(last + 1, dtype=np.int64) * step
    return PageTable(
        reader.path,
        first,
        np.concatenate([[first.directory], second.directory + pages]).astype(np.int64),
        np.concatenate([[first.data_offset], second.data_offset + pages]).astype(np.int64),
    )


def _walk(reader: "DirectoryReader", first: TiffPage) -> PageTable:
    directories, offsets, seen = [first.directory], [first.data_offset], {first.directory}
    page: _Place = first
    pattern = _Pattern.of(reader, first)
    while page.following:
        if page.following >= reader.size:
            raise cut_off(reader.path, f"after {len(seen)} whole pages another should follow")
        if page.following in seen:
            raise InputError(f"page {len(seen) - 1} points back to an earlier page", where=reader.path, advice=COPY_SCAN)
        like = pattern.match(page.following) if pattern else None
        page = like or reader.page(page.following, f"page {len(seen)}")
        if isinstance(page, TiffPage) and not _alike(page, first):
            raise InputError(
                f"page {len(seen)} is {page.height} x {page.width} {page.dtype}, page 0 is {first.height} x {first.width} {first.dtype}",
                where=reader.path,
                advice="A movie has frames of one size and type.",
            )
        seen.add(page.directory)
        directories.append(page.directory)
        offsets.append(page.data_offset)
    return PageTable(reader.path, first, np.array(directories, np.int64), np.array(offsets, np.int64))


def _alike(page: TiffPage, first: TiffPage) -> bool:
    return (page.height, page.width, page.dtype) == (first.height, first.width, first.dtype)


class _Place(Protocol):
    """Where a page lies."""

    @property
    def directory(self) -> int: ...

    @property
    def data_offset(self) -> int: ...

    @property
    def following(self) -> int: ...


class _LikePage(NamedTuple):
    """A page that differs from the first one in nothing but where things lie."""

    directory: int
    data_offset: int
    following: int


@dataclass(frozen=True)
class _Pattern:
    """The first directory's bytes, to know pages like it without parsing them: ten times faster where a walk has to be made.

    Attributes:
        fixed: ranges of the directory that hold no place in the file, and their bytes.
        length: of the directory, with the pointer to the next.
        strip: where the place of the pixels stands in it, and its code; None where pixels are not one plain run of bytes.
    """

    reader: "DirectoryReader"
    first: TiffPage
    fixed: tuple[tuple[int, int, bytes], ...]
    length: int
    strip: tuple[int, str] | None

    @classmethod
    def of(cls, reader: "DirectoryReader", first: TiffPage) -> "_Pattern | None":
        """The pattern, or None where the pixels lie in several strips, whose places have to be read page by page."""
        raw, entry_size, word_size = reader.directory(first.directory, "page 0")
        count_size = 8 if reader.big else 2
        fixed, strip, start = [], None, 0
        for at in range(count_size, len(raw) - word_size, entry_size):
            tag, kind, number = struct.unpack_from(reader.order + ("HHQ" if reader.big else "HHI"), raw, at)
            value = at + entry_size - word_size
            inline = SIZES.get(kind, 9) * number <= word_size
            if tag == STRIP_OFFSETS and not first.compressed:
                if number != 1 or kind not in CODES:
                    return None
                strip = (value, reader.order + CODES[kind])
            if tag in (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES, DESCRIPTION) or not inline:
                # What a place or a number of bytes may be differs from page to page; the size of an uncompressed frame does not.
                if tag == STRIP_BYTES and not first.compressed:
                    continue
                fixed.append((start, at + 4, raw[start : at + 4]))
                start = at + entry_size
        fixed.append((start, len(raw) - word_size, raw[start : len(raw) - word_size]))
        return cls(reader, first, tuple(fixed), len(raw), strip) if first.compressed or strip else None

    def match(self, directory: int) -> _LikePage | None:
        """The page whose directory lies there; None where it has to be parsed, be it different or damaged."""
        raw = os.pread(self.reader.file, self.length, directory)
        if len(raw) != self.length or any(raw[start:stop] != expected for start, stop, expected in self.fixed):
            return None
        word = self.reader.order + ("Q" if self.reader.big else "I")
        (following,) = struct.unpack_from(word, raw, self.length - struct.calcsize(word))
        offset = -1 if self.strip is None else struct.unpack_from(self.strip[1], raw, self.strip[0])[0]
        if offset + self.first.frame_bytes > self.reader.size and self.strip is not None:
            return None
        return _LikePage(directory, offset, following)
