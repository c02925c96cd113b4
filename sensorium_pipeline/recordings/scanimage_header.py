"""What ScanImage writes about a scan into the tags of its TIFF files.

The Software tag holds lines `SI.<name> = <value in MATLAB's spelling>`, the Artist tag the fields of view (`RoiGroups`) as JSON, and
the ImageDescription of every page its frame number and time stamps. Source: ScanImage's TIFF format (BigTIFF version 3 and 4),
https://docs.scanimage.org/Appendix/ScanImage+BigTiff+Specification.html.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from sensorium_pipeline.errors import InputError

Value = float | bool | str | list["Value"]

_LINE = re.compile(r"^(SI\.[\w.]+) = (.*)$", re.MULTILINE)
_FRAME = re.compile(r"^(\w+) = +(\S*)", re.MULTILINE)
_ADVICE = "Give the files as ScanImage wrote them; a copy saved by another program loses these tags."


def parse_value(text: str) -> Value:
    """A value in MATLAB's spelling: number, true or false, quoted string, or (nested) matrix as a flat list; else the text itself."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("'") and text.endswith("'") and len(text) >= 2:
        return text[1:-1]
    if text.startswith(("[", "{")) and text.endswith(("]", "}")):
        return [parse_value(part) for part in re.findall(r"'[^']*'|[^\s,;\[\]{}]+", text[1:-1])]
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class ScanHeader:
    """What the header says of a scan.

    Attributes:
        channels: numbers of the saved channels.
        planes: planes of a volume.
        frames_per_volume: frames of a volume as written, flyback frames included (they come last).
        depths: z of every plane in micrometres, as the header gives them; empty where it gives none.
        frame_rate: frames a second, over all planes.
        volume_rate: volumes a second.
        line_period: seconds from line to line.
        bidirectional: whether every other line was scanned backwards.
        lines, pixels: size of a frame (y, x).
        pixel_size: (y, x) in micrometres from the field of view; None where the header lacks it.
        planned_volumes: volumes that were asked for; None when the scan ran until it was stopped.
    """

    channels: tuple[int, ...]
    planes: int
    frames_per_volume: int
    depths: tuple[float, ...]
    frame_rate: float
    volume_rate: float
    line_period: float
    bidirectional: bool
    lines: int
    pixels: int
    pixel_size: tuple[float, float] | None
    planned_volumes: int | None


@dataclass(frozen=True)
class FrameDescription:
    """What the description of one page says: its frame number, from 1 and over all files, and its time stamp in seconds."""

    number: int
    timestamp: float


def parse_frame_description(text: str, path: Path, page: int) -> FrameDescription:
    """Read the description of a page; `InputError` where it lacks the frame number or time stamp."""
    fields = dict(_FRAME.findall(text))
    try:
        number, stamp = int(fields["frameNumbers"]), float(fields["frameTimestamps_sec"])
    except (KeyError, ValueError) as error:
        raise InputError(f"page {page} lacks frameNumbers or frameTimestamps_sec", where=path, advice=_ADVICE) from error
    if not math.isfinite(stamp):
        raise InputError(f"page {page}: frameTimestamps_sec is {stamp}", where=path, advice=_ADVICE)
    return FrameDescription(number, stamp)


def parse_header(software: str, artist: str, path: Path) -> ScanHeader:
    """Read the Software and Artist tags of a file's first page.

    Raises:
        InputError: naming the file and the field that is missing, unreadable or not supported.
    """
    header = _Header(dict(_LINE.findall(software)), path)
    if not header.fields:
        raise InputError("has no ScanImage header (the Software tag)", where=path, advice=_ADVICE)
    if header.flag("SI.hRoiManager.mroiEnable", False):
        raise InputError(
            "SI.hRoiManager.mroiEnable is true: pages with several fields of view are not read yet",
            where=path,
            advice="Cut the fields into one file each, and give those.",
        )
    channels = header.numbers("SI.hChannels.channelSave")
    volumetric = header.flag("SI.hStackManager.enable", False) or header.flag("SI.hFastZ.enable", False)
    planes = header.whole("SI.hStackManager.numSlices") if volumetric else 1
    written = planes
    for name in ("SI.hStackManager.numFramesPerVolumeWithFlyback", "SI.hFastZ.numFramesPerVolume"):
        if volumetric and name in header.fields and (value := header.numbers(name)):
            written = int(value[0])
            break
    if written < planes:
        raise InputError(f"{written} frames a volume are fewer than {planes} slices", where=path, advice=_ADVICE)
    planned = header.numbers("SI.hStackManager.actualNumVolumes") or header.numbers("SI.hFastZ.numVolumes")
    lines, pixels = header.whole("SI.hRoiManager.linesPerFrame"), header.whole("SI.hRoiManager.pixelsPerLine")
    depths = tuple(header.numbers("SI.hStackManager.zs")) if volumetric else ()
    frame_rate = header.positive("SI.hRoiManager.scanFrameRate")
    volume_rate = header.positive("SI.hRoiManager.scanVolumeRate")
    if not math.isclose(frame_rate, volume_rate * written, rel_tol=0.01):
        raise InputError(
            f"SI.hRoiManager.scanFrameRate is {frame_rate:g} Hz, and scanVolumeRate {volume_rate:g} Hz x {written} frames a volume is not",
            where=path,
            advice=_ADVICE,
        )
    return ScanHeader(
        channels=tuple(int(channel) for channel in channels) or (1,),
        planes=planes,
        frames_per_volume=written,
        depths=depths if len(depths) == planes else (),
        frame_rate=frame_rate,
        volume_rate=volume_rate,
        line_period=header.positive("SI.hRoiManager.linePeriod"),
        bidirectional=header.flag("SI.hScan2D.bidirectional", False),
        lines=lines,
        pixels=pixels,
        pixel_size=_pixel_size(header.numbers("SI.hRoiManager.imagingFovUm"), artist, lines, pixels),
        planned_volumes=int(planned[0]) if planned and math.isfinite(planned[0]) and planned[0] > 1 else None,
    )


def _pixel_size(corners: list[float], artist: str, lines: int, pixels: int) -> tuple[float, float] | None:
    """Micrometres a pixel from the corners of the field (x, y pairs), when the fields in the Artist tag agree with one field."""
    if len(corners) != 8 or not all(math.isfinite(corner) for corner in corners):
        return None
    try:
        rois = json.loads(artist)["RoiGroups"]["imagingRoiGroup"]["rois"] if artist.strip() else None
    except (ValueError, KeyError, TypeError):
        rois = None
    if isinstance(rois, list) and len(rois) > 1:
        return None
    xs, ys = corners[0::2], corners[1::2]
    size = ((max(ys) - min(ys)) / lines, (max(xs) - min(xs)) / pixels)
    return size if min(size) > 0 else None


@dataclass(frozen=True)
class _Header:
    fields: dict[str, str]
    path: Path

    def _value(self, name: str) -> Value:
        if name not in self.fields:
            raise InputError(f"the ScanImage header lacks {name}", where=self.path, advice=_ADVICE)
        return parse_value(self.fields[name])

    def numbers(self, name: str) -> list[float]:
        """A number or matrix as a flat list; empty where the field is absent or not numeric."""
        value = parse_value(self.fields[name]) if name in self.fields else []
        values = value if isinstance(value, list) else [value]
        return [float(item) for item in values if isinstance(item, float)]

    def positive(self, name: str) -> float:
        value = self._value(name)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
            raise InputError(f"{name} is {value!r}, not a positive number", where=self.path, advice=_ADVICE)
        return value

    def whole(self, name: str) -> int:
        value = self.positive(name)
        if value != int(value):
            raise InputError(f"{name} is {value:g}, not a whole number", where=self.path, advice=_ADVICE)
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        if name not in self.fields:
            return default
        value = parse_value(self.fields[name])
        return bool(value) if isinstance(value, (bool, float)) else default
