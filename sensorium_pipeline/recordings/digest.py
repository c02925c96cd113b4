"""The digest of a raw recording: which bytes exactly were read."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sensorium_pipeline.errors import InputError

BLOCK = 1 << 20


def digest_of_files(folder: Path, relative_paths: Iterable[str]) -> str:
    """sha256 over "<path> <size> <sha256>" of every file, in sorted order; files are read in blocks of one mebibyte.

    Raises:
        InputError: when a file is gone or cannot be read.
    """
    whole = hashlib.sha256()
    for relative in sorted(relative_paths):
        path = folder / relative
        part, size = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    part.update(block)
                    size += len(block)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=path, advice="Copy the recording again.") from error
        whole.update(f"{relative} {size} {part.hexdigest()}\n".encode())
    return whole.hexdigest()
