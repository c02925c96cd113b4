"""Where the frames of a TIFF file lie: classic and BigTIFF, either byte order, uncompressed.

Written here rather than taken from a library because a recording has 10^5 pages: pages that follow each other at one constant
distance (as ScanImage writes them) are found from three of them, without a walk through the file, and a damaged file ends in
one `InputError` that names the page instead of in whatever the damage leads a general reader to do. Compressed and tiled
files are left to tifffile (`movie.py`).

Source: TIFF 6.0 (Adobe, 1992) and the BigTIFF extension (https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError

WIDTH, HEIGHT, BITS, COMPRESSION, DESCRIPTION, STRIP_OFFSETS = 256, 257, 258, 259, 270, 273
SAMPLES, STRIP_BYTES, SOFTWARE, ARTIST, TILE_OFFSETS, SAMPLE_FORMAT = 277, 279, 305, 315, 324, 339

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_KINDS = {1: "u", 2: "i", 3: "f"}
_MOST_ENTRIES = 1000
_MOST_STRIPS = 1 << 20
_LARGEST_SIDE, _LARGEST_FRAME = 1 << 16, 1 << 28  # pixels, bytes: a damaged size must not ask for all memory
_LONGEST_TEXT = 1 << 26
_COPY = "The file is damaged or was cut off while it was copied: copy it again from the microscope."
FRESH = 120.0
"""Seconds after its last change in which an unfinished file is taken for one that is still being written."""


@dataclass(frozen=True)
class TextPlace:
    """Where a text tag lies in the file, in bytes."""

    offset: int
    count: int


@dataclass(frozen=True)
class TiffPage:
    """One page: its geometry, where its pixels lie, and where the next page's directory is (0 after the last).

    `data_offset` is -1 where the pixels are not one uncompressed run of bytes.
    """

    directory: int
    height: int
    width: int
    dtype: np.dtype[Any]
    data_offset: int
    compressed: bool
    texts: dict[int, TextPlace]
    following: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of the uncompressed frame."""
        return self.height * self.width * self.dtype.itemsize


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
        with _opened(self.path) as file:
            for position, number in enumerate(pages):
                start = int(self.data_offsets[number]) + first_line * line_bytes
                raw = _read_at(file, self.path, start, lines * line_bytes, f"page {number}, pixels")
                out[position] = np.frombuffer(raw, page.dtype).reshape(lines, page.width)[:, :pixels]

    def text(self, number: int, tag: int) -> str:
        """A text tag of one page, "" where the page has none."""
        with _opened(self.path) as file:
            return _read_text(file, self.path, self._page(file, number), tag)

    def texts(self, tag: int) -> Iterator[str]:
        """A text tag of every page: a walk through the file."""
        with _opened(self.path) as file:
            for number in range(len(self)):
                yield _read_text(file, self.path, self._page(file, number), tag)

    def _page(self, file: int, number: int) -> TiffPage:
        return _Reader(file, self.path).page(int(self.directories[number]), f"page {number}")


def read_page_table(path: Path) -> PageTable:
    """Find all pages of a TIFF file.

    Raises:
        InputError: when the file is missing, is not a TIFF, is cut off, or holds frames of several sizes or colours.
    """
    with _opened(path) as file:
        reader = _Reader(file, path)
        first = reader.page(reader.start(), "page 0")
        return _evenly_spaced(reader, first) or _walk(reader, first)


def cut_off(path: Path, problem: str) -> InputError:
    """The error for a file that ends too early: whether to wait or to copy it again, its last change tells."""
    age = time.time() - path.stat().st_mtime
    if 0 <= age < FRESH:
        advice = f"It changed {age:.0f} s ago and is still being written or copied: wait until that has ended, then run this again."
    else:
        advice = "The recording was broken off, or the file cut off while it was copied: copy it again from the microscope."
    return InputError(f"is cut off: {problem}", where=path, advice=advice)


def _evenly_spaced(reader: "_Reader", first: TiffPage) -> PageTable | None:
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


def _walk(reader: "_Reader", first: TiffPage) -> PageTable:
    directories, offsets, seen = [first.directory], [first.data_offset], {first.directory}
    page = first
    while page.following:
        if page.following >= reader.size:
            raise cut_off(reader.path, f"after {len(seen)} whole pages another should follow")
        if page.following in seen:
            raise InputError(f"page {len(seen) - 1} points back to an earlier page", where=reader.path, advice=_COPY)
        page = reader.page(page.following, f"page {len(seen)}")
        if not _alike(page, first):
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


class _Reader:
    """Parses directories of one open file."""

    def __init__(self, file: int, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file).st_size
        head = os.pread(file, 16, 0)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        version = struct.unpack(self.order + "H", head[2:4])[0] if self.order and len(head) >= 8 else 0
        if version not in (42, 43) or (version == 43 and len(head) < 16):
            advice = "Give a .tif file as the microscope wrote it." if self.size else _COPY
            raise InputError("is empty" if not self.size else "is not a TIFF file", where=path, advice=advice)
        self.big = version == 43
        self.head = head

    def start(self) -> int:
        """Offset of the first directory."""
        offset = struct.unpack(self.order + ("Q" if self.big else "I"), self.head[8:16] if self.big else self.head[4:8])[0]
        if offset == 0:
            raise InputError("holds no frames", where=self.path, advice=_COPY)
        return int(offset)

    def page(self, directory: int, name: str) -> TiffPage:
        """Parse the directory at an offset."""
        count_size, entry_size, word = (8, 20, "Q") if self.big else (2, 12, "I")
        count = struct.unpack(self.order + ("Q" if self.big else "H"), self._bytes(directory, count_size, name))[0]
        if not 0 < count <= _MOST_ENTRIES:
            raise InputError(f"{name} has a directory of {count} entries", where=self.path, advice=_COPY)
        word_size = struct.calcsize(word)
        block = self._bytes(directory + count_size, count * entry_size + word_size, name)
        entries: dict[int, tuple[int, int, bytes]] = {}
        for start in range(0, count * entry_size, entry_size):
            tag, kind, number = struct.unpack(self.order + "HH" + word, block[start : start + 4 + word_size])
            entries[tag] = (kind, number, block[start + 4 + word_size : start + entry_size])
        following = struct.unpack(self.order + word, block[-word_size:])[0]
        return self._page(entries, directory, int(following), name)

    def _page(self, entries: dict[int, tuple[int, int, bytes]], directory: int, following: int, name: str) -> TiffPage:
        width, height = self._one(entries, WIDTH, name), self._one(entries, HEIGHT, name)
        bits, kind = self._one(entries, BITS, name, 1), self._one(entries, SAMPLE_FORMAT, name, 1)
        samples = self._one(entries, SAMPLES, name, 1)
        if samples != 1:
            raise InputError(f"{name} has {samples} colours in each pixel", where=self.path, advice="Give a movie of one channel.")
        if kind not in _KINDS or bits not in (8, 16, 32, 64) or (kind == 3 and bits == 8):
            raise InputError(
                f"{name} has pixels of {bits} bits in sample format {kind}",
                where=self.path,
                advice="Give integers of 8 to 64 bits or floating-point numbers.",
            )
        dtype = np.dtype(f"{self.order}{_KINDS[kind]}{bits // 8}")
        if not width or not height:
            raise InputError(f"{name} is {height} x {width} pixels", where=self.path, advice=_COPY)
        texts = {}
        for tag in (DESCRIPTION, SOFTWARE, ARTIST):
            if tag in entries and entries[tag][0] in (1, 2, 7):
                number, value = entries[tag][1:]
                inline = number <= len(value)
                # A text short enough to stand inside the directory is rare enough to be left out.
                if not inline:
                    texts[tag] = TextPlace(self._word(value), number)
        compressed = self._one(entries, COMPRESSION, name, 1) != 1 or TILE_OFFSETS in entries
        frame_bytes = height * width * dtype.itemsize
        if frame_bytes > _LARGEST_FRAME or max(height, width) > _LARGEST_SIDE:
            raise InputError(f"{name} is {height} x {width} pixels, which no microscope scans", where=self.path, advice=_COPY)
        offset = -1 if compressed else self._strips(entries, frame_bytes, name)
        return TiffPage(directory, height, width, dtype, offset, compressed, texts, following)

    def _strips(self, entries: dict[int, tuple[int, int, bytes]], frame_bytes: int, name: str) -> int:
        """Offset of the frame's bytes when its strips follow each other, else -1."""
        offsets, counts = self._numbers(entries, STRIP_OFFSETS, name), self._numbers(entries, STRIP_BYTES, name)
        if not offsets or len(offsets) != len(counts):
            raise InputError(f"{name} does not say where its pixels lie", where=self.path, advice=_COPY)
        if sum(counts) != frame_bytes:
            raise InputError(f"{name} holds {sum(counts)} bytes of pixels instead of {frame_bytes}", where=self.path, advice=_COPY)
        for offset, count in zip(offsets, counts, strict=True):
            if offset + count > self.size:
                raise cut_off(self.path, f"the pixels of {name} end at byte {offset + count}, the file at byte {self.size}")
        following = all(a + n == b for a, n, b in zip(offsets, counts, offsets[1:], strict=False))
        return offsets[0] if following else -1

    def _numbers(self, entries: dict[int, tuple[int, int, bytes]], tag: int, name: str) -> list[int]:
        if tag not in entries:
            return []
        kind, number, value = entries[tag]
        size = _SIZES.get(kind, 0)
        if kind not in _CODES or not 0 < number <= _MOST_STRIPS:
            raise InputError(f"{name}, tag {tag}, is not readable", where=self.path, advice=_COPY)
        raw = value[: size * number] if size * number <= len(value) else self._bytes(self._word(value), size * number, f"{name}, tag {tag}")
        return list(struct.unpack(f"{self.order}{number}{_CODES[kind]}", raw))

    def _one(self, entries: dict[int, tuple[int, int, bytes]], tag: int, name: str, default: int | None = None) -> int:
        numbers = self._numbers(entries, tag, name)
        if numbers:
            return numbers[0]
        if default is None:
            raise InputError(f"{name} lacks tag {tag}", where=self.path, advice=_COPY)
        return default

    def _word(self, value: bytes) -> int:
        return int(struct.unpack(self.order + ("Q" if self.big else "I"), value)[0])

    def _bytes(self, offset: int, count: int, name: str) -> bytes:
        return _read_at(self.file, self.path, offset, count, name)


def _read_text(file: int, path: Path, page: TiffPage, tag: int) -> str:
    place = page.texts.get(tag)
    if place is None:
        return ""
    if place.count > _LONGEST_TEXT:
        raise InputError(f"text tag {tag} has {place.count} bytes", where=path, advice=_COPY)
    raw = _read_at(file, path, place.offset, place.count, f"text tag {tag}")
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _read_at(file: int, path: Path, offset: int, count: int, name: str) -> bytes:
    size = os.fstat(file).st_size
    if offset + count > size:
        raise cut_off(path, f"{name} ends at byte {offset + count}, the file at byte {size}")
    raw = os.pread(file, count, offset)
    if len(raw) != count:
        raise InputError(f"{name} could not be read whole", where=path, advice=_COPY)
    return raw


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})", where=path, advice="Check the path and its permissions.") from error
    try:
        yield file
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, advice=_COPY) from error
    finally:
        os.close(file)
