"""Named arrays in one .npz file: read without trusting the file, written with the same bytes for the same arrays."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import SubmissionError

# A .npy header of plain arrays is 128 bytes; the format allows more.
HEADER_BYTES = 4096
# The table of contents of a few arrays takes some hundred bytes; one of millions of names would take gigabytes of memory.
LARGEST_CONTENTS = 128 * 1024
# What numpy writes; others allocate what the file says before they find out that it is not so.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
FIXED_TIME = (1980, 1, 1, 0, 0, 0)


def write_arrays(file: Path | BinaryIO, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write arrays of plain numbers; same arrays, same bytes.

    Raises:
        TypeError: an array holds Python objects.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            plain = np.asarray(array)
            if plain.dtype.hasobject:
                raise TypeError(f"array {name!r} holds Python objects, only numbers can be kept")
            with archive.open(zipfile.ZipInfo(f"{name}.npy", FIXED_TIME), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, plain, allow_pickle=False)


def read_arrays(path: Path, where: str, expected: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, NDArray[np.generic]]:
    """Read exactly the expected arrays from an untrusted .npz file.

    Nothing is unpacked before the sizes that the file announces are known to be those of the expected arrays, and no more than that
    is ever read; nothing is unpickled.

    Args:
        path: the file.
        where: how to name it in errors.
        expected: name -> (shape, kinds of dtype that are accepted, such as "if").

    Raises:
        SubmissionError: naming the file and the array that is missing, unknown, of another type or shape, or broken.
    """
    try:
        with _Opening(path) as file, zipfile.ZipFile(file) as archive:
            file.largest = None
            entries = {entry.filename: entry for entry in archive.infolist()}
            names = {f"{name}.npy" for name in expected}
            if len(entries) != len(archive.infolist()) or set(entries) != names:
                advice = f"It must hold exactly the arrays {', '.join(sorted(expected))}"
                # The names are the participant's; a few of them, cut short, are enough to recognise the mistake.
                found = ", ".join(sorted(name[:40] for name in entries)[:5]) or "nothing"
                raise SubmissionError(f"it holds {found!a}", where=where, advice=advice)
            return {
                name: _read_array(archive, entries[f"{name}.npy"], f"{where}, {name}", shape, kinds)
                for name, (shape, kinds) in expected.items()
            }
    except (SubmissionError, MemoryError):
        raise
    except Exception as error:
        # zipfile and numpy raise whatever hostile bytes make them stumble over, IndexError and errors of decompressors among it.
        raise SubmissionError(
            f"not a readable .npz file ({type(error).__name__})", where=where, advice="Write it with numpy.savez(..., allow_pickle=False)"
        ) from error


class _Opening(io.FileIO):
    """A file of which nothing larger than a table of contents can be read at once, until `largest` is None."""

    largest: int | None = LARGEST_CONTENTS

    def read(self, size: int | None = -1, /) -> bytes:
        if self.largest is not None and size is not None and size > self.largest:
            raise zipfile.BadZipFile("too long a table of contents")
        return super().read(size)


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str, shape: tuple[int, ...], kinds: str) -> NDArray[np.generic]:
    largest = int(np.prod(shape, dtype=np.int64)) * 8 + HEADER_BYTES
    if entry.compress_type not in COMPRESSIONS:
        raise SubmissionError("its compression is unknown", where=where, advice="Write it with numpy.savez")
    if entry.file_size > largest:
        raise SubmissionError(f"{entry.file_size} bytes, more than {shape} can take", where=where, advice=f"Its shape must be {shape}")
    with archive.open(entry) as file:
        content = io.BytesIO(file.read(largest + 1))
    version = np.lib.format.read_magic(content)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found, fortran, dtype = reader(content, max_header_size=HEADER_BYTES)
    if dtype.kind not in kinds or dtype.hasobject or dtype.itemsize > 8:
        advice = "Save float32" if "f" in kinds else "Save int64"
        raise SubmissionError(f"its dtype is {str(dtype)[:40]}", where=where, advice=advice)
    if found != shape:
        raise SubmissionError(f"its shape is {found}", where=where, advice=f"Its shape must be {shape}")
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    values = np.frombuffer(content.getbuffer(), dtype, count, content.tell())
    return values.reshape(shape, order="F" if fortran else "C")
