"""HDF5 files that may be damaged, which make the library crash or run for ever, and files that others take their values from."""

import glob
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import h5py

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.frames import COPY_AGAIN, brief

# Attributes, first and last frames, vectors and scalars wholly. What raises an exception must not spare the rest.
_LOOK = """
import sys, h5py

def look(name, item):
    try:
        if item is None:
            return
        for key in item.attrs:
            item.attrs[key]
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return
        if item.ndim == 0:
            item[()]
        elif item.ndim == 1:
            for start in range(0, item.size, 1 << 20):
                item[start : start + (1 << 20)]
        else:
            item[:1], item[-1:]
    except Exception:
        pass

for path in sys.argv[1:]:
    print(path, flush=True)
    try:
        with h5py.File(path, "r") as file:
            look("", file)
            file.visititems(look)
            follow = lambda name, link: look(name, file.get(name)) if isinstance(link, h5py.ExternalLink) else None
            file.visititems_links(follow)
    except Exception:
        pass
"""
_LOOK_SECONDS = 120.0


def survive_hdf5(*paths: Path) -> None:
    """Look at HDF5 files in a process of its own; files that have not changed since they were looked at are not looked at again.

    Raises:
        InputError: when the library crashed or did not end; what is missing, or what it merely refuses, opening the file says.
    """
    present = [(path, path.stat()) for path in paths if path.is_file()]
    _look(tuple((str(path), state.st_size, state.st_mtime_ns) for path, state in present))


@lru_cache(maxsize=64)
def _look(files: tuple[tuple[str, int, int], ...]) -> None:
    try:
        looked = subprocess.run(
            [sys.executable, "-c", _LOOK, *(path for path, _, _ in files)], capture_output=True, timeout=_LOOK_SECONDS, check=False
        )
        code, begun = looked.returncode, looked.stdout
    except subprocess.TimeoutExpired as error:
        code, begun = None, error.stdout or b""
    if code is None or code < 0:
        problem = "the HDF5 library does not come to an end" if code is None else "it makes the HDF5 library crash"
        where = begun.decode(errors="surrogateescape").splitlines()[-1:] or [files[0][0]]
        raise InputError(f"cannot be read: {problem}", where=where[0], advice=COPY_AGAIN)


def linked_files(data: h5py.Dataset, path: Path) -> tuple[tuple[Path, str], ...]:
    """Files beside its own from which a dataset takes its values, with the dataset in each: through external links, as a virtual
    dataset, or from files of plain bytes.

    Args:
        data: of a file that is open.
        path: the file that was opened, which is not counted.

    Raises:
        InputError: a source of a virtual dataset is missing, in whose place HDF5 would give zeros.
    """
    found: set[tuple[Path, str]] = set()
    _note_files(data, found)
    return tuple(sorted(each for each in found if each[0] != path))


def _note_files(data: h5py.Dataset, found: set[tuple[Path, str]]) -> None:
    here, name = Path(data.file.filename), str(data.name)
    if (here, name) in found:
        return
    found.add((here, name))
    plain = [Path(file) for file, _, _ in data.external or ()]
    found.update((file, "") for file in plain)
    _check_present(plain, here, name)
    for source in data.virtual_sources() if data.is_virtual else ():
        pattern = re.sub(r"%\d*b", "*", source.file_name)  # numbered files, as many as there are
        beside = os.path.join(glob.escape(str(here.parent)), pattern)
        files = [here] if pattern == "." else [*map(Path, sorted(glob.glob(beside)))] if "*" in pattern else [here.parent / pattern]
        _check_present(files, here, name)
        for file in files:
            survive_hdf5(file)
            with h5py.File(file, "r") as other:
                item = other.get(source.dset_name)
                if isinstance(item, h5py.Dataset):
                    _note_files(item, found)
                else:
                    found.add((file, source.dset_name))


def _check_present(files: Sequence[Path], here: Path, name: str) -> None:
    for file in files:
        if not file.is_file():
            problem = f"dataset {name.strip('/')!r} takes values from {file.name}, which is {'no file' if file.exists() else 'missing'}"
            raise InputError(problem, where=here, advice="Put that file beside this one.")


def not_hdf5(path: Path, error: Exception) -> InputError:
    """The error for a file that the HDF5 library refuses to open."""
    if isinstance(error, BlockingIOError) or "unable to lock file" in str(error):
        return InputError("is still open for writing in another program", where=path, advice="Wait until the recording has ended.")
    with suppress(OSError), path.open("rb") as file:
        if file.read(10) == b"MATLAB 5.0":
            return InputError(
                "is a MATLAB file of version 5 to 7", where=path, advice="Save it with `save(..., '-v7.3')`, which writes HDF5."
            )
    return InputError(f"cannot be read as an HDF5 file ({brief(error)})", where=path, advice=COPY_AGAIN)
