"""What the first page of a TIFF file says of the whole: axes and rate, as ImageJ, tifffile and OME write them.

ImageJ: lines `images=`, `channels=`, `slices=`, `frames=`, `finterval=` (s), `fps=`; tifffile: JSON with the shape; OME: an XML text
with SizeC, SizeZ, SizeT and TimeIncrement. They matter because a file may hold one directory for many frames, or channels and planes
that take turns.
"""

import json
import math
import re
from dataclasses import dataclass

_IMAGEJ = re.compile(r"^(images|channels|slices|frames|finterval|fps|tunit)=(\S+)", re.MULTILINE)
_OME = re.compile(r'\b(SizeC|SizeZ|SizeT|TimeIncrement|TimeIncrementUnit)="([^"]*)"')
_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "msec": 1e-3, "µs": 1e-6, "min": 60.0, "": 1.0}


@dataclass(frozen=True)
class TiffDescription:
    """Axes and rate of a file.

    Attributes:
        images: frames that one directory stands for; 1 where every frame has its own.
        channels, slices: that take turns with time; 1 where there is no such axis.
        frame_rate: Hz; None where nothing says it.
    """

    images: int = 1
    channels: int = 1
    slices: int = 1
    frame_rate: float | None = None


def read_description(text: str, pages: int, frame: tuple[int, int]) -> TiffDescription:
    """Read the description of a file's first page.

    Args:
        text: the ImageDescription.
        pages: directories of the file.
        frame: lines and pixels of the first page.
    """
    if text.startswith("ImageJ="):
        fields = dict(_IMAGEJ.findall(text))
        interval = _number(fields.get("finterval")) * _SECONDS.get(fields.get("tunit", ""), math.nan)
        rates = [1 / interval if interval > 0 else math.nan, _number(fields.get("fps"))]
        channels, slices = _turns(*(_count(fields.get(name)) for name in ("channels", "slices", "frames")))
        return TiffDescription(_count(fields.get("images")) if pages == 1 else 1, channels, slices, _first(rates))
    if "<OME" in text[:2000]:
        fields = dict(reversed(_OME.findall(text)))  # the first image counts
        interval = _number(fields.get("TimeIncrement")) * _SECONDS.get(fields.get("TimeIncrementUnit", "s"), math.nan)
        channels, slices = _turns(*(_count(fields.get(name)) for name in ("SizeC", "SizeZ", "SizeT")))
        return TiffDescription(1, channels, slices, _first([1 / interval if interval > 0 else math.nan]))
    if text.startswith("{") and pages == 1:
        try:
            shape = [int(length) for length in json.loads(text)["shape"]]
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return TiffDescription()
        if len(shape) > 2 and tuple(shape[-2:]) == frame and min(shape) > 0:
            return TiffDescription(math.prod(shape[:-2]))
    return TiffDescription()


def _turns(channels: int, slices: int, frames: int) -> tuple[int, int]:
    """Channels and slices that take turns; an axis that is the only long one is time under another name, as often happens."""
    return (1, 1) if sum(length > 1 for length in (channels, slices, frames)) < 2 else (channels, slices)


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() and 0 < len(text) < 12 and int(text) > 0 else 1


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _first(rates: list[float]) -> float | None:
    return next((rate for rate in rates if math.isfinite(rate) and rate > 0), None)
