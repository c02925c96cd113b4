"""Movies on disk, read a few frames at a time: TIFF, HDF5 and zarr behind one protocol.

A movie holds no open file, so it can be pickled to a worker, and each `read` touches only the frames that it returns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.tiff import DESCRIPTION, PageTable, read_page_table

Frames = NDArray[Any]

_HDF5_SUFFIXES = (".h5", ".hdf5", ".nwb", ".mat")
_TIFF_SUFFIXES = (".tif", ".tiff", ".btf")
_COPY = "The file is damaged or was cut off while it was copied: copy it again."


@runtime_checkable
class Movie(Protocol):
    """Frames of one plane over time, on disk."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def height(self) -> int:
        """Lines of a frame (y)."""
        ...

    @property
    def width(self) -> int:
        """Pixels of a line (x)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel as `read` returns it: any integer or floating-point type, in native byte order."""
        ...

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 as a new array (stop - start, y, x).

        Raises:
            InputError: when the movie has no such frames, or the file does not hold them any more.
        """
        ...


def open_movie(path: Path, dataset: str | None = None) -> Movie:
    """Open a movie (frames, y, x): a TIFF file, a dataset of an HDF5 file, or a zarr array or group.

    Args:
        path: the file or zarr folder.
        dataset: name of the dataset inside an HDF5 file or zarr group; may be left out where only one has three dimensions.

    Raises:
        InputError: when there is nothing, or nothing that is a movie; says which datasets there are to choose from.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("does not exist", where=path, advice="Check the path.")
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_zarr(path, dataset)
    if suffix in _HDF5_SUFFIXES:
        return _open_hdf5(path, dataset)
    if suffix in _TIFF_SUFFIXES:
        if dataset is not None:
            raise InputError("is a TIFF file, which has no datasets", where=path, advice="Leave the dataset out.")
        return _open_tiff(path)
    raise InputError(
        f"has the suffix {suffix!r}, which is not that of a movie",
        where=path,
        advice=f"Give {', '.join(_TIFF_SUFFIXES + _HDF5_SUFFIXES)} or a zarr folder.",
    )


def check_range(movie: Movie, start: int, stop: int, where: object) -> None:
    """Raise `InputError` unless frames start..stop-1 exist."""
    if not 0 <= start <= stop <= movie.frames:
        raise InputError(f"frames {start} to {stop} were asked for, and there are {movie.frames}", where=where)


@dataclass(frozen=True)
class PlainTiffMovie:
    """An uncompressed TIFF file whose every page is a frame."""

    table: PageTable

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
        self.table.read_frames(np.arange(start, stop), out)
        return out


@dataclass(frozen=True)
class LibraryTiffMovie:
    """A compressed, tiled or one-page TIFF file, read with tifffile; `shape` is (frames, y, x)."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    pages: int

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

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.path)
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        if start == stop:
            return out
        try:
            with tifffile.TiffFile(self.path) as file:
                if self.pages == self.frames:
                    for position, number in enumerate(range(start, stop)):
                        out[position] = file.pages[number].asarray().reshape(self.shape[1:])
                else:  # one directory for the whole movie, as ImageJ writes it
                    out[:] = tifffile.memmap(self.path, mode="r").reshape(self.shape)[start:stop]
        except Exception as error:  # a damaged file leads tifffile and its codecs into exceptions of every kind
            raise InputError(f"frames {start} to {stop} cannot be decoded ({_brief(error)})", where=self.path, advice=_COPY) from error
        return out


@dataclass(frozen=True)
class Hdf5Movie:
    """A dataset (frames, y, x) of an HDF5 file."""

    path: Path
    dataset: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

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

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.path)
        try:
            with h5py.File(self.path, "r") as file:
                return np.asarray(file[self.dataset][start:stop], dtype=self.dtype)
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError and more on damaged files
            raise _unreadable(self.path, self.dataset, error) from error


@dataclass(frozen=True)
class ZarrMovie:
    """A zarr array (frames, y, x)."""

    path: Path
    dataset: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

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

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.path)
        try:
            array = zarr.open_array(str(self.path / self.dataset), mode="r")
            return np.asarray(array[start:stop], dtype=self.dtype)
        except Exception as error:  # zarr and its codecs raise exceptions of every kind on damaged chunks
            raise _unreadable(self.path, self.dataset, error) from error


def _open_tiff(path: Path) -> Movie:
    table = read_page_table(path)
    description = table.text(0, DESCRIPTION)
    whole_in_one = len(table) == 1 and ("ImageJ=" in description or '"shape"' in description)
    if table.uncompressed and not whole_in_one:
        return PlainTiffMovie(table)
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            shape, dtype, pages = tuple(series.shape), np.dtype(series.dtype), len(file.pages)
    except Exception as error:  # see LibraryTiffMovie.read
        raise InputError(f"cannot be read as a TIFF file ({_brief(error)})", where=path, advice=_COPY) from error
    if len(shape) == 2:
        shape = (1, *shape)
    return LibraryTiffMovie(path, _checked_shape(shape, dtype, path, "TIFF"), dtype.newbyteorder("="), pages)


def _open_hdf5(path: Path, dataset: str | None) -> Movie:
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = (item.shape, item.dtype)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
    except Exception as error:  # see Hdf5Movie.read
        raise InputError(f"cannot be read as an HDF5 file ({_brief(error)})", where=path, advice=_COPY) from error
    name = _choose(path, dataset, found)
    shape, dtype = found[name]
    return Hdf5Movie(path, name, _checked_shape(shape, dtype, path, name), dtype.newbyteorder("="))


def _open_zarr(path: Path, dataset: str | None) -> Movie:
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    try:
        root = zarr.open(str(path), mode="r")
        if isinstance(root, zarr.Array):
            found[""] = (root.shape, np.dtype(root.dtype))
        else:
            for name, item in root.members(max_depth=None):
                if isinstance(item, zarr.Array):
                    found[name] = (item.shape, np.dtype(item.dtype))
    except Exception as error:  # see ZarrMovie.read
        raise InputError(f"is a folder, and not a readable zarr array or group ({_brief(error)})", where=path) from error
    name = _choose(path, "" if dataset is None and "" in found else dataset, found)
    shape, dtype = found[name]
    return ZarrMovie(path, name, _checked_shape(shape, dtype, path, name or "array"), dtype.newbyteorder("="))


def _choose(path: Path, dataset: str | None, found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    if dataset is not None:
        name = dataset.strip("/")
        if name not in found:
            raise InputError(f"has no dataset {dataset!r}", where=path, advice=f"It has: {_listed(found)}.")
        return name
    movies = sorted(name for name, (shape, dtype) in found.items() if len(shape) == 3 and dtype.kind in "iuf")
    if len(movies) == 1:
        return movies[0]
    if not movies:
        raise InputError("has no dataset of three dimensions", where=path, advice=f"A movie is (frames, y, x). It has: {_listed(found)}.")
    raise InputError(f"has {len(movies)} datasets of three dimensions", where=path, advice=f"Name one of: {', '.join(movies)}.")


def _checked_shape(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path, name: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise InputError(f"{name} has {len(shape)} dimensions", where=path, advice="A movie has three: frames, y, x.")
    if dtype.kind not in "iuf":
        raise InputError(f"{name} has pixels of type {dtype}", where=path, advice="Give integers or floating-point numbers.")
    if shape[0] == 0:
        raise InputError(f"{name} holds no frames", where=path, advice=_COPY)
    if shape[1] == 0 or shape[2] == 0:
        raise InputError(f"{name} has frames of {shape[1]} x {shape[2]} pixels", where=path, advice=_COPY)
    return (int(shape[0]), int(shape[1]), int(shape[2]))


def _listed(found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    return ", ".join(f"{name or 'array'} {shape}" for name, (shape, _) in sorted(found.items())) or "nothing"


def _unreadable(path: Path, dataset: str, error: Exception) -> InputError:
    return InputError(f"dataset {dataset!r} cannot be read ({_brief(error)})", where=path, advice=_COPY)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
