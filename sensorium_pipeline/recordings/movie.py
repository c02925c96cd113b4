"""Opening a movie of any kind: TIFF, ScanImage, NWB, HDF5 or zarr."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.array_movie import open_hdf5, open_zarr, zarr_attributes
from sensorium_pipeline.recordings.frames import Movie
from sensorium_pipeline.recordings.nwb import open_nwb
from sensorium_pipeline.recordings.scanimage import ScanImageRecording, is_scanimage, open_scanimage
from sensorium_pipeline.recordings.tiff import read_page_table
from sensorium_pipeline.recordings.tiff_movie import choose_plane, open_tiff, open_tiffs

__all__ = ["Movie", "OpenedMovie", "movie_files", "open_movie", "open_with_rate"]

_HDF5_SUFFIXES = (".h5", ".hdf5", ".mat")
_NWB_SUFFIX = ".nwb"
_TIFF_SUFFIXES = (".tif", ".tiff", ".btf")


@dataclass(frozen=True)
class OpenedMovie:
    """A movie and what its file says of it.

    Attributes:
        movie: the frames.
        frame_rate: Hz; None where the file does not say it.
        pixel_size: (y, x) in micrometres; None where the file does not say it.
        bidirectional: whether every other line was scanned backwards; None where the file does not say it.
        linked: files beside its own that it takes frames from, with the dataset in each.
    """

    movie: Movie
    frame_rate: float | None = None
    pixel_size: tuple[float, float] | None = None
    bidirectional: bool | None = None
    linked: tuple[tuple[Path, str], ...] = ()


def open_movie(path: Path, dataset: str | None = None) -> Movie:
    """Open a movie (frames, y, x): a TIFF file, a folder of TIFF files (a ScanImage recording, or parts of one movie), a series of an NWB
    file, a dataset of an HDF5 file, or a zarr array or group.

    Args:
        path: the file or folder.
        dataset: which movie, where there are several: name of an HDF5 dataset, zarr array or NWB series; `plane <number>` of a
            ScanImage recording or another TIFF file, with `channel <number>` behind a slash where several were saved.

    Raises:
        InputError: when there is nothing, or nothing that is a movie; says what there is to choose from.
    """
    return open_with_rate(path, dataset).movie


def open_with_rate(path: Path, dataset: str | None = None) -> OpenedMovie:
    """Open a movie as `open_movie` does, with the frame rate and pixel size that its file gives."""
    path = Path(path)
    if not path.exists():
        raise InputError("does not exist", where=path, advice="Check the path.")
    suffix = path.suffix.lower()
    if not path.is_dir() and not path.is_file():
        raise InputError("is neither a file nor a folder", where=path, advice="Give a movie that lies on a disk.")
    if path.is_dir():
        scans = _scans(path)
        return _of_folder(scans, dataset) if scans else _of_zarr(path, dataset)
    if suffix == _NWB_SUFFIX:
        series = open_nwb(path, dataset)
        return OpenedMovie(series, series.frame_rate, series.pixel_size, linked=series.linked)
    if suffix in _HDF5_SUFFIXES:
        array = open_hdf5(path, dataset)
        return OpenedMovie(array, linked=array.linked)
    if suffix in _TIFF_SUFFIXES:
        table = read_page_table(path)
        if is_scanimage(table):
            return _of_recording(open_scanimage([path], part=True), dataset)
        movie = open_tiff(table, dataset)
        return OpenedMovie(movie, movie.frame_rate)
    raise InputError(
        f"has the suffix {suffix!r}, which is not that of a movie",
        where=path,
        advice=f"Give {', '.join((*_TIFF_SUFFIXES, _NWB_SUFFIX, *_HDF5_SUFFIXES))}, a zarr folder or a folder of TIFF files.",
    )


def movie_files(path: Path) -> list[Path]:
    """Files of a movie that is one file or a folder, sorted: the TIFF files of the folder, or else all below it, links followed."""
    if not path.is_dir():
        return [path]
    if scans := _scans(path):
        return scans
    files: list[Path] = []
    seen: set[str] = set()
    for folder, below, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder that holds it
            below.clear()
            continue
        seen.add(real)
        files += [file for name in names if (file := Path(folder) / name).is_file() or not file.exists()]
    return sorted(files)


def _scans(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _TIFF_SUFFIXES and not file.is_dir() and not file.is_fifo())


def _of_folder(files: list[Path], dataset: str | None) -> OpenedMovie:
    """The TIFF files of a folder: a ScanImage recording, or else parts of one movie."""
    if any(is_scanimage(read_page_table(file)) for file in (files[0], files[-1])):
        return _of_recording(open_scanimage(files), dataset)
    movie = open_tiffs(files, dataset)
    return OpenedMovie(movie, movie.parts[0].frame_rate)


def _of_zarr(path: Path, dataset: str | None) -> OpenedMovie:
    """A zarr array; the attributes are those that an archived plane has."""
    movie, attributes = open_zarr(path, dataset), zarr_attributes(path)
    size, both = attributes.get("pixel_size"), attributes.get("bidirectional")
    sides = [_positive(side) for side in size] if isinstance(size, list) else []
    return OpenedMovie(
        movie,
        _positive(attributes.get("frame_rate")),
        (sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None,
        both if isinstance(both, bool) else None,
    )


def _positive(value: object) -> float | None:
    """A number of JSON, None where it is something else or no frame rate and no size can be it."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf else None


def _of_recording(recording: ScanImageRecording, dataset: str | None) -> OpenedMovie:
    """One plane of a ScanImage recording, chosen by name where there are several."""
    header = recording.header
    plane, channel = choose_plane(len(header.fields), header.channels, dataset, recording.tables[0].path)
    return OpenedMovie(
        recording.plane(plane, channel), header.volume_rate, header.fields[plane].pixel_size, bidirectional=header.bidirectional
    )
