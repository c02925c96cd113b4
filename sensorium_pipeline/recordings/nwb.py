"""Movies in NWB files: TwoPhotonSeries, read with h5py.

NWB counts the axes of a series as frame, x, y (and z, for a volume): frames are turned to (y, x). The rate is that of the series, or
of its time stamps, or else the imaging plane's. Source: the NWB core schema 2.x, ImageSeries, TwoPhotonSeries and ImagingPlane
(https://nwb-schema.readthedocs.io).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.array_movie import ArrayMovie, unreadable
from sensorium_pipeline.recordings.frames import Frames, check_range, checked_shape
from sensorium_pipeline.recordings.hdf5 import linked_files, not_hdf5, survive_hdf5

_SERIES = ("TwoPhotonSeries", "OnePhotonSeries")
_METRES = {"meters": 1e6, "metres": 1e6, "m": 1e6, "millimeters": 1e3, "mm": 1e3, "micrometers": 1.0, "microns": 1.0, "um": 1.0}


@dataclass(frozen=True)
class NwbMovie(ArrayMovie):
    """One plane of a series of an NWB file; `dataset` is the path of the series inside the file.

    Attributes:
        plane: of a volume; None where the series has one plane without an axis of its own.
        frame_rate: Hz; None where the file does not say it.
        pixel_size: (y, x) in micrometres; None where the file does not say it.
    """

    plane: int | None
    frame_rate: float | None
    pixel_size: tuple[float, float] | None

    def read(self, start: int, stop: int) -> Frames:
        """Frames start..stop-1 (stop - start, y, x)."""
        check_range(self, start, stop, self.path)
        try:
            with h5py.File(self.path, "r") as file:
                data = file[self.dataset]["data"]
                frames = data[start:stop] if self.plane is None else data[start:stop, :, :, self.plane]
                return np.ascontiguousarray(np.asarray(frames, dtype=self.dtype).transpose(0, 2, 1))
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError and more on damaged files
            raise unreadable(self.path, self.dataset, error) from error


def open_nwb(path: Path, dataset: str | None) -> NwbMovie:
    """Open a series of an NWB file.

    Args:
        path: the file.
        dataset: name of the series (`TwoPhotonSeries`, or its whole path), followed by `/plane <number>` for one plane of a volume,
            counted from 0; may be left out where there is only one.

    Raises:
        InputError: when there is no such series, or its frames lie in files of their own.
    """
    wanted, plane = _split(dataset)
    survive_hdf5(path)
    try:
        with h5py.File(path, "r") as file:
            return _open(file, path, wanted, plane)
    except InputError:
        raise
    except Exception as error:  # see NwbMovie.read
        raise not_hdf5(path, error) from error


def _split(dataset: str | None) -> tuple[str | None, int | None]:
    if dataset is None:
        return None, None
    name, _, last = dataset.strip("/").rpartition("/")
    if last.startswith("plane ") and last[6:].isdigit():
        return name or None, int(last[6:])
    return dataset.strip("/"), None


def _open(file: h5py.File, path: Path, wanted: str | None, plane: int | None) -> NwbMovie:
    found: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Group) and _text(item.attrs.get("neurodata_type")) in _SERIES:
            found.append(name)

    file.visititems(note)
    names = sorted(name for name in found if wanted is None or wanted in (name, name.rpartition("/")[2]))
    if len(names) != 1:
        problem = f"has no TwoPhotonSeries {wanted!r}" if wanted else f"has {len(found)} TwoPhotonSeries"
        raise InputError(problem, where=path, advice=f"It has: {', '.join(sorted(found)) or 'none'}." if wanted else _one_of(sorted(found)))
    name = names[0]
    series = file[name]
    if "external_file" in series and len(series["external_file"]):
        files = ", ".join(_text(item) for item in series["external_file"][:3])
        raise InputError(
            f"{name} holds no frames: they lie in {files} (external_file)", where=path, advice="Give those files instead of the NWB file."
        )
    data = series.get("data")
    if not isinstance(data, h5py.Dataset):
        link = series.get("data", getlink=True)
        lost = f", and {link.filename}, where it should be, cannot be read" if isinstance(link, h5py.ExternalLink) else ""
        raise InputError(f"{name} has no data{lost}", where=path, advice="Put that file back." if lost else "Export the file again.")
    linked = linked_files(data, path)
    shape = tuple(data.shape)
    if len(shape) == 4:
        plane = 0 if plane is None and shape[3] == 1 else plane
        if plane is None or plane >= shape[3]:
            names = [f"{name}/plane {index}" for index in range(min(shape[3], 20))]
            raise InputError(f"{name} is a volume of {shape[3]} planes", where=path, advice=_one_of(names))
        shape = shape[:3]
    elif plane is not None:
        raise InputError(f"{name} has one plane", where=path, advice="Leave the plane out.")
    if len(shape) == 3:
        shape = (shape[0], shape[2], shape[1])
    return NwbMovie(
        path,
        name,
        checked_shape(shape, data.dtype, path, name),
        data.dtype.newbyteorder("="),
        linked,
        plane,
        _frame_rate(series),
        _pixel_size(series),
    )


def _frame_rate(series: h5py.Group) -> float | None:
    """Of the series, of its time stamps (the median interval), of the imaging plane."""
    rates: list[float] = []
    if "starting_time" in series:
        rates.append(_number(series["starting_time"].attrs.get("rate")))
    if isinstance(stamps := series.get("timestamps"), h5py.Dataset) and stamps.ndim == 1 and len(stamps) > 1:
        interval = float(np.median(np.diff(stamps[: min(len(stamps), 100_000)].astype(np.float64))))
        rates.append(1 / interval if interval > 0 else math.nan)
    if "imaging_plane" in series and "imaging_rate" in series["imaging_plane"]:
        rates.append(_number(series["imaging_plane"]["imaging_rate"][()]))
    return next((rate for rate in rates if math.isfinite(rate) and rate > 0), None)


def _pixel_size(series: h5py.Group) -> tuple[float, float] | None:
    """From the imaging plane's grid spacing, (x, y) in NWB."""
    spacing = series["imaging_plane"].get("grid_spacing") if "imaging_plane" in series else None
    if not isinstance(spacing, h5py.Dataset) or spacing.size not in (2, 3):
        return None
    factor = _METRES.get(_text(spacing.attrs.get("unit", "meters")).lower())
    x, y = (float(value) for value in spacing[:2])
    if factor is None or not (math.isfinite(x) and math.isfinite(y) and min(x, y) > 0):
        return None
    return y * factor, x * factor


def _number(value: object) -> float:
    try:
        return float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return math.nan


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _one_of(names: list[str]) -> str:
    return f"Name one of: {', '.join(names)}." if names else "Give a file with an acquired movie."
