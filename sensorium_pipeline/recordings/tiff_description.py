"""What the first page of a TIFF file says of the whole: axes and rate, as ImageJ, tifffile and OME write them.

ImageJ: lines `images=`, `channels=`, `slices=`, `frames=`, `finterval=` (s), `fps=`, channels fastest, then slices; tifffile: JSON with
the shape and perhaps the axes; OME: an XML text with SizeC, SizeZ, SizeT, DimensionOrder and TimeIncrement. They matter because a file
may hold one directory for many frames, or channels and planes that take turns.
"""

import json
import math
import re
from dataclasses import dataclass

_IMAGEJ = re.compile(r"^(images|channels|slices|frames|finterval|fps|tunit)=(\S+)", re.MULTILINE)
_OME = re.compile(r'\b(SizeC|SizeZ|SizeT|DimensionOrder|TimeIncrement|TimeIncrementUnit)="([^"]*)"')
_OME_IMAGES = re.compile(r"<TiffData\b([^<>]*)>")
_OME_PLACE = re.compile(r'\b(IFD|FirstC|FirstZ|FirstT)="(\d{1,12})"')
_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "msec": 1e-3, "µs": 1e-6, "min": 60.0, "": 1.0}
_MOST_PIXELS = 1 << 62
TIME, CHANNEL, DEPTH = "TCZ"

Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class TiffDescription:
    """Axes and rate of a file.

    Attributes:
        images: frames that one directory stands for; 1 where every frame has its own.
        turns: axes that take turns, their letters (`TIME`, `CHANNEL`, `DEPTH`, or another that nobody explains) and lengths, the fastest
            first; empty where all images are one movie.
        frame_rate: Hz; None where nothing says it.
    """

    images: int = 1
    turns: Axes = ()
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
        turns = _turns([(axis, _count(fields.get(name))) for axis, name in zip("CZT", ("channels", "slices", "frames"), strict=True)])
        return TiffDescription(_count(fields.get("images")) if pages == 1 else 1, turns, _first(rates))
    if "<OME" in text[:2000]:
        fields = dict(reversed(_OME.findall(text)))  # the first image counts
        interval = _number(fields.get("TimeIncrement")) * _SECONDS.get(fields.get("TimeIncrementUnit", "s"), math.nan)
        return TiffDescription(1, _turns(_ome_axes(text, fields)), _first([1 / interval if interval > 0 else math.nan]))
    if text.startswith("{"):
        try:
            described = json.loads(text)
            shape = [int(length) for length in described["shape"]]
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return TiffDescription()
        if len(shape) > 2 and tuple(shape[-2:]) == frame and min(shape) > 0 and math.prod(shape) < _MOST_PIXELS:
            named = described.get("axes")
            names = named[:-2] if isinstance(named, str) and len(named) == len(shape) else "?" * (len(shape) - 2)
            turns = _turns([*zip(names, shape[:-2], strict=True)][::-1])
            return TiffDescription(math.prod(shape[:-2]) if pages == 1 else 1, turns)
    return TiffDescription()


def _ome_axes(text: str, fields: dict[str, str]) -> list[tuple[str, int]]:
    """Axes in the order of the images; under names that nobody explains where images do not stand in the order that is said."""
    order = fields.get("DimensionOrder", "")[2:]
    if sorted(order) != ["C", "T", "Z"]:
        order = "CZT"
    lengths = [(axis, _count(fields.get(f"Size{axis}"))) for axis in order]
    for entry in _OME_IMAGES.findall(text):
        places = {name: int(number) for name, number in _OME_PLACE.findall(entry)}
        expected, step = 0, 1
        for axis, length in lengths:
            expected += step * places.get(f"First{axis}", 0)
            step *= length
        if places.get("IFD", 0) != expected:
            return [("?", length) for _, length in lengths]
    return lengths


def _turns(axes: list[tuple[str, int]]) -> Axes:
    """The axes that take turns; time goes under another name where there is no such axis, as often happens."""
    long = [(axis, length) for axis, length in axes if length > 1]
    names = [axis for axis, _ in long]
    if len(long) < 2:
        return ()
    if TIME not in names and names.count(DEPTH) == 1:
        long = [(TIME if axis == DEPTH else axis, length) for axis, length in long]
    return tuple(long)


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() and 0 < len(text) < 12 and int(text) > 0 else 1


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _first(rates: list[float]) -> float | None:
    return next((rate for rate in rates if math.isfinite(rate) and rate > 0), None)
