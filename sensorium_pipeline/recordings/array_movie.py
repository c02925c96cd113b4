"""Movies that are arrays: datasets of HDF5 files, and zarr of version 2 and 3."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.frames import COPY_AGAIN, Frames, brief, check_range, checked_shape
from sensorium_pipeline.recordings.hdf5 import linked_files, not_hdf5, survive_hdf5

Found = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type of datasets by their names."""


@dataclass(frozen=True)
class ArrayMovie:
    """A dataset (frames, y, x) of a file or folder.

    Attributes:
        linked: other files that it takes frames from, see `linked_files`.
    """

    path: Path
    dataset: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    linked: tuple[tuple[Path, str], ...]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Lines of a frame."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Pixels of a line."""
        return self.shape[2]


@dataclass(frozen=True)
class Hdf5Movie(ArrayMovie):
    """A dataset (frames, y, x) of an HDF5 file."""

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.path)
        try:
            with h5py.File(self.path, "r") as file:
                return np.asarray(file[self.dataset][start:stop], dtype=self.dtype)
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError and more on damaged files
            raise unreadable(self.path, self.dataset, error) from error


@dataclass(frozen=True)
class ZarrMovie(ArrayMovie):
    """A zarr array (frames, y, x)."""

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.path)
        try:
            array = zarr.open_array(str(self.path / self.dataset), mode="r")
            return np.asarray(array[start:stop], dtype=self.dtype)
        except Exception as error:  # zarr and its codecs raise exceptions of every kind on damaged chunks
            raise unreadable(self.path, self.dataset, error) from error


def open_hdf5(path: Path, dataset: str | None) -> Hdf5Movie:
    """Open a dataset of an HDF5 file; see `open_movie`."""
    found: Found = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = (item.shape, item.dtype)

    def follow(name: str, link: object) -> None:  # which `visititems` does not
        if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
            note(name, file.get(name))

    survive_hdf5(path)
    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
            if dataset is not None or not found:  # else the same movie would be found under two names
                file.visititems_links(follow)
            name = choose(path, dataset, found)
            linked = linked_files(file[name], path)
    except InputError:
        raise
    except Exception as error:  # see Hdf5Movie.read
        raise not_hdf5(path, error) from error
    shape, dtype = found[name]
    return Hdf5Movie(path, name, checked_shape(shape, dtype, path, name), dtype.newbyteorder("="), linked)


def open_zarr(path: Path, dataset: str | None) -> ZarrMovie:
    """Open a zarr array, or an array of a zarr group; see `open_movie`."""
    found: Found = {}
    try:
        root = zarr.open(str(path), mode="r")
        if isinstance(root, zarr.Array):
            found[""] = (root.shape, np.dtype(root.dtype))
        else:
            for name, item in root.members(max_depth=None):
                if isinstance(item, zarr.Array):
                    found[name] = (item.shape, np.dtype(item.dtype))
    except Exception as error:  # see ZarrMovie.read
        problem = f"is a folder, and not a readable zarr array or group ({brief(error)})"
        advice = "Give a zarr folder, or one that holds the TIFF files of a movie (scans/ of a raw session)."
        raise InputError(problem, where=path, advice=advice) from error
    name = choose(path, "" if dataset is None and "" in found else dataset, found)
    shape, dtype = found[name]
    return ZarrMovie(path, name, checked_shape(shape, dtype, path, name or "array"), dtype.newbyteorder("="), ())


def zarr_attributes(path: Path) -> dict[str, object]:
    """Attributes of the zarr group or array in a folder that `open_zarr` has opened."""
    try:
        return dict(zarr.open(str(path), mode="r").attrs)
    except Exception as error:  # see ZarrMovie.read
        raise unreadable(path, "attributes", error) from error


def choose(path: Path, dataset: str | None, found: Found) -> str:
    """The name of the dataset that was asked for, or of the only one that is a movie."""
    if dataset is not None:
        name = dataset.strip("/")
        if name not in found:
            raise InputError(f"has no dataset {dataset!r}", where=path, advice=f"It has: {_listed(found)}.")
        return name
    movies = sorted(name for name, (shape, dtype) in found.items() if len(shape) == 3 and dtype.kind in "iuf")
    if len(movies) == 1:
        return movies[0]
    if not movies:
        problem = "has no dataset of three dimensions that holds numbers"
        raise InputError(problem, where=path, advice=f"A movie is (frames, y, x). It has: {_listed(found)}.")
    raise InputError(f"has {len(movies)} datasets of three dimensions", where=path, advice=f"Name one of: {', '.join(movies)}.")


def unreadable(path: Path, dataset: str, error: Exception) -> InputError:
    """The error for a dataset whose frames cannot be read."""
    return InputError(f"dataset {dataset!r} cannot be read ({brief(error)})", where=path, advice=COPY_AGAIN)


def _listed(found: Found) -> str:
    return ", ".join(f"{name or 'array'} {shape} {dtype}" for name, (shape, dtype) in sorted(found.items())) or "nothing"
