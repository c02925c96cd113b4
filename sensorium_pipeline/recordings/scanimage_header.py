"""What ScanImage writes about a scan into the tags of its TIFF files.

The Software tag holds lines `SI.<name> = <value in MATLAB's spelling>`, the Artist tag the fields of view (`RoiGroups`) as JSON, and
the ImageDescription of every page its frame number and time stamps. Source: ScanImage's TIFF format (BigTIFF version 3 and 4),
https://docs.scanimage.org/Appendix/ScanImage+BigTiff+Specification.html.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.frames import LARGEST_SIDE
from sensorium_pipeline.recordings.scan_fields import AS_WRITTEN, ScanField, lay_out_fields, region_count

Value = float | bool | str | list["Value"]

_LINE = re.compile(r"^(SI\.[\w.]+) = (.*)$", re.MULTILINE)
_FRAME = re.compile(r"^(\w+) = +(\S*)", re.MULTILINE)


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
        slices: pages of a volume that hold an image, which is its number of depths.
        frames_per_volume: frames of a volume as written, flyback frames included (they come last).
        fields: the planes of the recording, slice by slice: one in each slice, or several in a scan of several regions of interest.
        several_regions: whether the pages hold several fields of view.
        frame_rate: frames a second, over all slices.
        volume_rate: volumes a second.
        line_period: seconds from line to line.
        bidirectional: whether every other line was scanned backwards.
        planned_volumes: volumes that were asked for; None when the scan ran until it was stopped.
    """

    channels: tuple[int, ...]
    slices: int
    frames_per_volume: int
    fields: tuple[ScanField, ...]
    several_regions: bool
    frame_rate: float
    volume_rate: float
    line_period: float
    bidirectional: bool
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
        raise InputError(f"page {page} lacks frameNumbers or frameTimestamps_sec", where=path, advice=AS_WRITTEN) from error
    if not math.isfinite(stamp):
        raise InputError(f"page {page}: frameTimestamps_sec is {stamp}", where=path, advice=AS_WRITTEN)
    return FrameDescription(number, stamp)


def parse_header(software: str, artist: str, page: tuple[int, int], path: Path, dewarp: bool | None = None) -> ScanHeader:
    """Read the Software and Artist tags of a file's first page.

    Args:
        software, artist: texts of the tags.
        page: lines and pixels of the page.
        path: file, for errors.
        dewarp: whether lines are still to be dewarped; None decides by the header: a resonant mirror swept them while their pixels were
            cut at equal times (`SI.hScan2D.uniformSampling`).

    Raises:
        InputError: naming the file and the field that is missing, unreadable or not supported.
    """
    header = _Header(dict(_LINE.findall(software)), path)
    if not header.fields:
        raise InputError("has no ScanImage header (the Software tag)", where=path, advice=AS_WRITTEN)
    channels = header.numbers("SI.hChannels.channelSave")
    volumetric = header.flag("SI.hStackManager.enable", False) or header.flag("SI.hFastZ.enable", False)
    slices = header.whole("SI.hStackManager.numSlices") if volumetric else 1
    _check_order_of_frames(header, slices)
    written = slices
    for name in ("SI.hStackManager.numFramesPerVolumeWithFlyback", "SI.hFastZ.numFramesPerVolume"):
        if volumetric and name in header.fields and (value := header.numbers(name)):
            written = int(value[0])
            break
    if written < slices:
        raise InputError(f"{written} frames a volume are fewer than {slices} slices", where=path, advice=AS_WRITTEN)
    frame_rate = header.positive("SI.hRoiManager.scanFrameRate")
    volume_rate = header.positive("SI.hRoiManager.scanVolumeRate")
    if not math.isclose(frame_rate, volume_rate * written, rel_tol=0.01):
        raise InputError(
            f"SI.hRoiManager.scanFrameRate is {frame_rate:g} Hz, and scanVolumeRate {volume_rate:g} Hz x {written} frames a volume is not",
            where=path,
            advice=AS_WRITTEN,
        )
    several = header.flag("SI.hRoiManager.mroiEnable", False)
    line_period = header.positive("SI.hRoiManager.linePeriod")
    given = header.numbers("SI.hStackManager.zs")
    depths: list[float | None] = list(given) if len(given) == slices else [None] * slices
    fields = _several_fields(header, artist, depths, page, line_period) if several else _one_field(header, artist, depths, page)
    fill = _fill_fraction(header, dewarp)
    return ScanHeader(
        channels=tuple(int(channel) for channel in channels) or (1,),
        slices=slices,
        frames_per_volume=written,
        fields=fields if fill is None else tuple(field.swept(fill) for field in fields),
        several_regions=several,
        frame_rate=frame_rate,
        volume_rate=volume_rate,
        line_period=line_period,
        bidirectional=header.flag("SI.hScan2D.bidirectional", False),
        planned_volumes=_planned(header, volumetric),
    )


def _check_order_of_frames(header: "_Header", slices: int) -> None:
    """Refuse scans whose frames do not come volume by volume."""
    if (averaged := header.numbers("SI.hScan2D.logAverageFactor")) and averaged[0] > 1:
        raise InputError(
            f"SI.hScan2D.logAverageFactor is {averaged[0]:g}: frames were averaged while they were saved",
            where=header.path,
            advice="Record every frame; averages have lost the time of their frames.",
        )
    per_slice = header.numbers("SI.hStackManager.framesPerSlice")
    if slices > 1 and (header.text("SI.hStackManager.stackMode") == "slow" or (per_slice and per_slice[0] > 1)):
        raise InputError(
            f"the scan is a stack of {slices} slices, each scanned {per_slice[0] if per_slice else 1:g} times before the next "
            "(SI.hStackManager.framesPerSlice), and not volume by volume",
            where=header.path,
            advice="Give a recording over time: one frame a slice.",
        )


def _fill_fraction(header: "_Header", dewarp: bool | None) -> float | None:
    """The part of the resonant mirror's half period that lines cover, where they are to be dewarped."""
    scanner = (header.text("SI.hScan2D.scanMode") + header.text("SI.hScan2D.scannerType")).lower()
    swept = header.flag("SI.hScan2D.uniformSampling", False) and scanner.startswith(("res", "rg"))
    if not (swept if dewarp is None else dewarp):
        return None
    fill = header.positive("SI.hScan2D.fillFractionTemporal")
    if fill >= 1:
        raise InputError(f"SI.hScan2D.fillFractionTemporal is {fill:g}, and not a part of a period", where=header.path, advice=AS_WRITTEN)
    return fill


def _planned(header: "_Header", volumetric: bool) -> int | None:
    names = ("SI.hStackManager.actualNumVolumes", "SI.hFastZ.numVolumes") if volumetric else ("SI.hStackManager.framesPerSlice",)
    planned = next((numbers[0] for name in names if (numbers := header.numbers(name))), 0.0)
    return int(planned) if planned > 1 else None


def _one_field(header: "_Header", artist: str, depths: list[float | None], page: tuple[int, int]) -> tuple[ScanField, ...]:
    lines, pixels = header.whole("SI.hRoiManager.linesPerFrame"), header.whole("SI.hRoiManager.pixelsPerLine")
    if page != (lines, pixels):
        raise InputError(
            f"frames are {page[0]} x {page[1]} pixels, and SI.hRoiManager says {lines} lines of {pixels} pixels",
            where=header.path,
            advice="The file is not the one that this header was written for.",
        )
    size = _pixel_size(header.numbers("SI.hRoiManager.imagingFovUm"), artist, lines, pixels)
    return tuple(ScanField(index, 0, lines, pixels, depth, size) for index, depth in enumerate(depths))


def _several_fields(
    header: "_Header", artist: str, depths: list[float | None], page: tuple[int, int], line_period: float
) -> tuple[ScanField, ...]:
    fly_to = header.numbers("SI.hScan2D.flytoTimePerScanfield")
    lines = fly_to[0] / line_period if fly_to and 0 <= fly_to[0] < 1 else None
    return lay_out_fields(artist, depths, page, header.positive("SI.objectiveResolution"), lines, header.path)


def _pixel_size(corners: list[float], artist: str, lines: int, pixels: int) -> tuple[float, float] | None:
    """Micrometres a pixel from the corners of the field (x, y pairs), when the fields in the Artist tag agree with one field."""
    if len(corners) != 8 or region_count(artist) > 1:
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
            raise InputError(f"the ScanImage header lacks {name}", where=self.path, advice=AS_WRITTEN)
        return parse_value(self.fields[name])

    def numbers(self, name: str) -> list[float]:
        """The finite numbers of a number or matrix, flat; empty where the field is absent or not numeric."""
        value = parse_value(self.fields[name]) if name in self.fields else []
        values = value if isinstance(value, list) else [value]
        return [float(item) for item in values if isinstance(item, float) and math.isfinite(item)]

    def positive(self, name: str) -> float:
        value = self._value(name)
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
            raise InputError(f"{name} is {value!r}, not a positive number", where=self.path, advice=AS_WRITTEN)
        return value

    def whole(self, name: str) -> int:
        value = self.positive(name)
        if value != int(value) or value > LARGEST_SIDE:
            raise InputError(f"{name} is {value:g}, not a whole number up to {LARGEST_SIDE}", where=self.path, advice=AS_WRITTEN)
        return int(value)

    def text(self, name: str) -> str:
        """A quoted text; "" where the field is absent or something else."""
        value = parse_value(self.fields[name]) if name in self.fields else ""
        return value if isinstance(value, str) else ""

    def flag(self, name: str, default: bool) -> bool:
        if name not in self.fields:
            return default
        value = parse_value(self.fields[name])
        return bool(value) if isinstance(value, (bool, float)) else default
