"""Writing BigTIFF files as ScanImage writes them, for simulated recordings.

The order of bytes in a file: BigTIFF header; ScanImage's own header (magic number, version, sizes) with the scan's header and
its fields of view; then every page as directory, description, pixels. All pages have one size, and all point to the one copy of
the scan's header.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

_MAGIC, _VERSION = 117637889, 4
_TAGS = 14
_DIRECTORY = 8 + 20 * _TAGS + 8
FLY_TO_LINES = 8
"""Lines that the scanner loses on its way from one field of a page to the next."""

UM_PER_DEGREE = 157.5
"""Micrometres a degree of the scan angle: the two-photon random access mesoscope's objective."""

_DESCRIPTION = 512  # the text padded with zeros, so that all pages have one size


@dataclass(frozen=True)
class WrittenField:
    """A field of view, scanned at every depth: its size in pixels and its centre (y, x) in micrometres."""

    height: int
    width: int
    center: tuple[float, float] = (0.0, 0.0)


def page_shape(fields: Sequence[WrittenField]) -> tuple[int, int]:
    """Lines and pixels of the pages that hold these fields, one above the other with lines between them."""
    return sum(field.height for field in fields) + FLY_TO_LINES * (len(fields) - 1), max(field.width for field in fields)


def first_lines(fields: Sequence[WrittenField]) -> list[int]:
    """The line of the page at which each field begins."""
    return [sum(field.height + FLY_TO_LINES for field in fields[:index]) for index in range(len(fields))]


def header_text(
    *,
    fields: Sequence[WrittenField],
    channels: Sequence[int],
    planes: int,
    frames_per_volume: int,
    depths: Sequence[float],
    volume_rate: float,
    line_period: float,
    bidirectional: bool,
    pixel_size: float,
    volumes: int,
) -> str:
    """The scan's header: the lines that matter of the many that ScanImage writes; units as there (Hz, s, um).

    Args:
        fields: one, or several regions of interest.
        planes: depths.
    """
    several = len(fields) > 1
    half_y, half_x = fields[0].height * pixel_size / 2, fields[0].width * pixel_size / 2
    corners = " ".join(f"{x:g} {y:g};" for x, y in ((-half_x, -half_y), (half_x, -half_y), (half_x, half_y), (-half_x, half_y)))
    frame_rate = volume_rate * frames_per_volume
    saved = f"[{' '.join(str(channel) for channel in channels)}]" if len(channels) > 1 else channels[0]
    values = {
        "SI.TIFF_FORMAT_VERSION": _VERSION,
        "SI.VERSION_MAJOR": 2022,
        "SI.VERSION_MINOR": 1,
        "SI.acqState": "'grab'",
        "SI.hChannels.channelName": "{'Channel 1' 'Channel 2' 'Channel 3' 'Channel 4'}",
        "SI.hChannels.channelSave": saved,
        "SI.hChannels.channelsActive": saved,
        "SI.hFastZ.enable": _flag(planes > 1),
        "SI.hFastZ.numFramesPerVolume": frames_per_volume,
        "SI.hFastZ.numVolumes": volumes,
        "SI.hFastZ.discardFlybackFrames": _flag(frames_per_volume > planes),
        "SI.hFastZ.numDiscardFlybackFrames": frames_per_volume - planes,
        # With regions of interest ScanImage leaves the field empty, and keeps the size of the default region as it was.
        "SI.hRoiManager.imagingFovUm": "[]" if several else f"[{corners[:-1]}]",
        "SI.hRoiManager.linePeriod": f"{line_period:.12g}",
        "SI.hRoiManager.linesPerFrame": 512 if several else fields[0].height,
        "SI.hRoiManager.pixelsPerLine": 512 if several else fields[0].width,
        "SI.hRoiManager.mroiEnable": int(several),
        "SI.hRoiManager.scanFrameRate": f"{frame_rate:.12g}",
        "SI.hRoiManager.scanVolumeRate": f"{volume_rate:.12g}",
        "SI.hScan2D.bidirectional": _flag(bidirectional),
        "SI.hScan2D.fillFractionTemporal": 0.9,
        "SI.hScan2D.flybackTimePerFrame": 0.001,
        "SI.hScan2D.flytoTimePerScanfield": f"{FLY_TO_LINES * line_period:.12g}",
        "SI.hScan2D.logAverageFactor": 1,
        "SI.hScan2D.scannerFrequency": "NaN",
        "SI.hScan2D.scannerType": "'GG'",
        "SI.hScan2D.uniformSampling": 0,
        "SI.hStackManager.actualNumSlices": planes,
        "SI.hStackManager.actualNumVolumes": volumes if planes > 1 else 1,
        "SI.hStackManager.enable": _flag(planes > 1),
        "SI.hStackManager.framesPerSlice": 1 if planes > 1 else volumes,
        "SI.hStackManager.numFramesPerVolume": planes,
        "SI.hStackManager.numFramesPerVolumeWithFlyback": frames_per_volume,
        "SI.hStackManager.numSlices": planes,
        "SI.hStackManager.stackMode": "'fast'",
        "SI.hStackManager.zs": f"[{' '.join(f'{depth:g}' for depth in depths)}]",
        "SI.objectiveResolution": UM_PER_DEGREE,
    }
    return "\n".join(f"{name} = {value}" for name, value in values.items())


def fields_text(fields: Sequence[WrittenField], pixel_size: float) -> str:
    """The fields of view as JSON: regions of interest that reach through all depths; centres and sizes in degrees, x first."""
    rois = [_region(number, field, pixel_size / UM_PER_DEGREE) for number, field in enumerate(fields, 1)]
    group = {
        "ver": 1,
        "classname": "scanimage.mroi.RoiGroup",
        "name": "MROI Imaging ROI Group" if len(rois) > 1 else "Default Imaging ROI Group",
        "rois": rois if len(rois) > 1 else rois[0],
    }
    return json.dumps({"RoiGroups": {"imagingRoiGroup": group, "photostimRoiGroups": None}}, indent=2)


def _region(number: int, field: WrittenField, pixel: float) -> dict[str, object]:
    y, x = (value / UM_PER_DEGREE for value in field.center)
    height, width = field.height * pixel, field.width * pixel
    left, top = x - width / 2, y - height / 2
    rectangle = {
        "ver": 1,
        "classname": "scanimage.mroi.scanfield.fields.RotatedRectangle",
        "name": "",
        "centerXY": [x, y],
        "sizeXY": [width, height],
        "rotationDegrees": 0,
        "enable": 1,
        "pixelResolutionXY": [field.width, field.height],
        "pixelToRefTransform": [[pixel, 0, left - pixel / 2], [0, pixel, top - pixel / 2], [0, 0, 1]],
        "affine": [[width, 0, left], [0, height, top], [0, 0, 1]],
    }
    name = f"ROI {number}"
    return {
        "ver": 1,
        "classname": "scanimage.mroi.Roi",
        "name": name,
        "zs": 0,
        "scanfields": rectangle,
        "discretePlaneMode": 0,
        "enable": 1,
    }


class ScanImageWriter:
    """Writes the files of one recording, page after page, beginning a new file every `pages_per_file` pages.

    Args:
        folder: where the files go; they are named `<stem>_00001.tif` and on.
        shape: of a frame (y, x).
        header, fields: the texts for the Software and Artist tags.
        channels: pages that share one frame number.
    """

    def __init__(
        self, folder: Path, stem: str, shape: tuple[int, int], header: str, fields: str, *, pages_per_file: int, channels: int = 1
    ) -> None:
        self.folder, self.stem, self.shape = folder, stem, shape
        self.header, self.fields = header.encode() + b"\0", fields.encode() + b"\0"
        self.pages_per_file, self.channels = pages_per_file, channels
        self.pages = 0
        self.files = 0
        self._file: BinaryIO | None = None
        self._last = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end_file()

    def write(self, frames: NDArray[np.int16], timestamps: NDArray[np.float64]) -> None:
        """Append pages (pages, y, x) with their time stamps (pages,) in seconds since the start of the scan."""
        page_bytes = self.shape[0] * self.shape[1] * 2
        for frame, timestamp in zip(frames.astype("<i2", copy=False), timestamps, strict=True):
            if self.pages % self.pages_per_file == 0:
                self._end_file()
                self._file = self._begin_file()
            if self._file is None:
                raise ValueError("the writer is closed")
            place = self._file.tell()
            self._last = place
            self._file.write(self._directory(place, place + _DIRECTORY + _DESCRIPTION + page_bytes))
            self._file.write(self._description(float(timestamp)))
            self._file.write(frame.tobytes())
            self.pages += 1

    def _begin_file(self) -> BinaryIO:
        self.files += 1
        file = (self.folder / f"{self.stem}_{self.files:05d}.tif").open("wb")
        start = 16 + 16 + len(self.header) + len(self.fields)
        start += -start % 8
        head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start)
        head += struct.pack("<IIII", _MAGIC, _VERSION, len(self.header), len(self.fields)) + self.header + self.fields
        file.write(head.ljust(start, b"\0"))
        return file

    def _end_file(self) -> None:
        if self._file is None:
            return
        self._file.seek(self._last + _DIRECTORY - 8)
        self._file.write(struct.pack("<Q", 0))  # no page follows the last
        self._file.close()
        self._file = None

    def _directory(self, place: int, following: int) -> bytes:
        height, width = self.shape
        text = place + _DIRECTORY
        entries = (
            (254, 4, 1, 0),
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 1, 16),
            (259, 3, 1, 1),  # not compressed
            (262, 3, 1, 1),  # zero is black
            (270, 2, _DESCRIPTION, text),
            (273, 16, 1, text + _DESCRIPTION),
            (277, 3, 1, 1),
            (278, 4, 1, height),
            (279, 16, 1, height * width * 2),
            (305, 2, len(self.header), 32),
            (315, 2, len(self.fields), 32 + len(self.header)),
            (339, 3, 1, 2),  # signed integers
        )
        packed = b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
        return struct.pack("<Q", len(entries)) + packed + struct.pack("<Q", following)

    def _description(self, timestamp: float) -> bytes:
        number = self.pages // self.channels + 1
        text = (
            f"frameNumbers = {number}\nacquisitionNumbers = 1\nframeNumberAcquisition = {number}\n"
            f"frameTimestamps_sec = {timestamp:.9f}\nacqTriggerTimestamps_sec = 0.000000000\nnextFileMarkerTimestamps_sec = -1.000000000\n"
            "endOfAcquisition = 0\nendOfAcquisitionMode = 0\ndcOverVoltage = 0\nepoch = [2026  1 12 9 30 0.000]\n"
            "auxTrigger0 = []\nauxTrigger1 = []\nauxTrigger2 = []\nauxTrigger3 = []\nI2CData = {}\n"
        )
        return text.encode().ljust(_DESCRIPTION, b"\0")


def _flag(value: bool) -> str:
    return "true" if value else "false"
