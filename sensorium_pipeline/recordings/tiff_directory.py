"""Directories of a TIFF file: what one page says of its size, and where its pixels, texts and the next page lie.

Classic and BigTIFF, either byte order. A damaged file ends in one `InputError` that names the page, and never in a request for memory
that no frame needs. Source: TIFF 6.0 (Adobe, 1992) and the BigTIFF extension (https://www.awaresystems.be/imaging/tiff/bigtiff.html).
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

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.frames import LARGEST_FRAME, LARGEST_SIDE

WIDTH, HEIGHT, BITS, COMPRESSION, DESCRIPTION, STRIP_OFFSETS = 256, 257, 258, 259, 270, 273
SAMPLES, STRIP_BYTES, SOFTWARE, ARTIST, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 277, 279, 305, 315, 324, 325, 339

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_KINDS = {1: "u", 2: "i", 3: "f"}
_MOST_ENTRIES = 1000
_MOST_STRIPS = 1 << 20
_LONGEST_TEXT = 1 << 26
COPY_SCAN = "The file is damaged or was cut off while it was copied: copy it again from the microscope."
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


def cut_off(path: Path, problem: str) -> InputError:
    """The error for a file that ends too early: whether to wait or to copy it again, its last change tells."""
    age = time.time() - path.stat().st_mtime
    if 0 <= age < FRESH:
        advice = f"It changed {age:.0f} s ago and is still being written or copied: wait until that has ended, then run this again."
    else:
        advice = "The recording was broken off, or the file cut off while it was copied: copy it again from the microscope."
    return InputError(f"is cut off: {problem}", where=path, advice=advice)


class DirectoryReader:
    """Parses directories of one open file."""

    def __init__(self, file: int, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file).st_size
        head = os.pread(file, 16, 0)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        version = struct.unpack(self.order + "H", head[2:4])[0] if self.order and len(head) >= 8 else 0
        if version not in (42, 43) or (version == 43 and len(head) < 16):
            advice = "Give a .tif file as the microscope wrote it." if self.size else COPY_SCAN
            raise InputError("is empty" if not self.size else "is not a TIFF file", where=path, advice=advice)
        self.big = version == 43
        self.head = head

    def start(self) -> int:
        """Offset of the first directory."""
        offset = struct.unpack(self.order + ("Q" if self.big else "I"), self.head[8:16] if self.big else self.head[4:8])[0]
        if offset == 0:
            raise InputError("holds no frames", where=self.path, advice=COPY_SCAN)
        return int(offset)

    def page(self, directory: int, name: str) -> TiffPage:
        """Parse the directory at an offset."""
        block, entry_size, word_size = self.directory(directory, name)
        word = self.order + ("Q" if self.big else "I")
        entries: dict[int, tuple[int, int, bytes]] = {}
        for start in range(8 if self.big else 2, len(block) - word_size, entry_size):
            tag, kind = struct.unpack_from(self.order + "HH", block, start)
            entries[tag] = (kind, struct.unpack_from(word, block, start + 4)[0], block[start + 4 + word_size : start + entry_size])
        following = struct.unpack_from(word, block, len(block) - word_size)[0]
        return self._page(entries, directory, int(following), name)

    def directory(self, offset: int, name: str) -> tuple[bytes, int, int]:
        """The bytes of a directory, of one of its entries, and of a place in the file: the number of entries, these, the next directory."""
        count_size, entry_size, word_size = (8, 20, 8) if self.big else (2, 12, 4)
        count = struct.unpack(self.order + ("Q" if self.big else "H"), self._bytes(offset, count_size, name))[0]
        if not 0 < count <= _MOST_ENTRIES:
            raise InputError(f"{name} has a directory of {count} entries", where=self.path, advice=COPY_SCAN)
        return self._bytes(offset, count_size + count * entry_size + word_size, name), entry_size, word_size

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
            raise InputError(f"{name} is {height} x {width} pixels", where=self.path, advice=COPY_SCAN)
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
        if frame_bytes > LARGEST_FRAME or max(height, width) > LARGEST_SIDE:
            raise InputError(f"{name} is {height} x {width} pixels, which no microscope scans", where=self.path, advice=COPY_SCAN)
        offset = -1 if compressed else self._strips(entries, frame_bytes, name)
        return TiffPage(directory, height, width, dtype, offset, compressed, texts, following)

    def _strips(self, entries: dict[int, tuple[int, int, bytes]], frame_bytes: int, name: str) -> int:
        """Offset of the frame's bytes when its strips follow each other, else -1."""
        offsets, counts = self._numbers(entries, STRIP_OFFSETS, name), self._numbers(entries, STRIP_BYTES, name)
        if not offsets or len(offsets) != len(counts):
            raise InputError(f"{name} does not say where its pixels lie", where=self.path, advice=COPY_SCAN)
        if sum(counts) != frame_bytes:
            raise InputError(f"{name} holds {sum(counts)} bytes of pixels instead of {frame_bytes}", where=self.path, advice=COPY_SCAN)
        for offset, count in zip(offsets, counts, strict=True):
            if offset + count > self.size:
                raise cut_off(self.path, f"the pixels of {name} end at byte {offset + count}, the file at byte {self.size}")
        following = all(a + n == b for a, n, b in zip(offsets, counts, offsets[1:], strict=False))
        return offsets[0] if following else -1

    def _numbers(self, entries: dict[int, tuple[int, int, bytes]], tag: int, name: str) -> list[int]:
        if tag not in entries:
            return []
        kind, number, value = entries[tag]
        size = SIZES.get(kind, 0)
        if kind not in CODES or not 0 < number <= _MOST_STRIPS:
            raise InputError(f"{name}, tag {tag}, is not readable", where=self.path, advice=COPY_SCAN)
        raw = value[: size * number] if size * number <= len(value) else self._bytes(self._word(value), size * number, f"{name}, tag {tag}")
        return list(struct.unpack(f"{self.order}{number}{CODES[kind]}", raw))

    def _one(self, entries: dict[int, tuple[int, int, bytes]], tag: int, name: str, default: int | None = None) -> int:
        numbers = self._numbers(entries, tag, name)
        if numbers:
            return numbers[0]
        if default is None:
            raise InputError(f"{name} lacks tag {tag}", where=self.path, advice=COPY_SCAN)
        return default

    def _word(self, value: bytes) -> int:
        return int(struct.unpack(self.order + ("Q" if self.big else "I"), value)[0])

    def _bytes(self, offset: int, count: int, name: str) -> bytes:
        return read_at(self.file, self.path, offset, count, name)


def read_text(file: int, path: Path, page: TiffPage, tag: int) -> str:
    """A text tag of a page, "" where it has none."""
    place = page.texts.get(tag)
    if place is None:
        return ""
    if place.count > _LONGEST_TEXT:
        raise InputError(f"text tag {tag} has {place.count} bytes", where=path, advice=COPY_SCAN)
    raw = read_at(file, path, place.offset, place.count, f"text tag {tag}")
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def read_at(file: int, path: Path, offset: int, count: int, name: str) -> bytes:
    """So many bytes of an open file; `InputError` naming what was looked for where the file ends before them."""
    size = os.fstat(file).st_size
    if offset + count > size:
        raise cut_off(path, f"{name} ends at byte {offset + count}, the file at byte {size}")
    raw = os.pread(file, count, offset)
    if len(raw) != count:
        raise InputError(f"{name} could not be read whole", where=path, advice=COPY_SCAN)
    return raw


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The descriptor of a file opened to be read; errors of the file system become `InputError`."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})", where=path, advice="Check the path and its permissions.") from error
    try:
        yield file
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, advice=COPY_SCAN) from error
    finally:
        os.close(file)
