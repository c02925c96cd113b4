"""Fields of view of a ScanImage scan: where each lies in the pages of the file, and in the tissue.

A page holds the fields of one depth one above the other, in the order of the regions of interest, with lines between them that were
written while the scanner moved from one field to the next. A region is given by scan fields at some depths: at one depth it reaches
through all depths (unless `discretePlaneMode` ties it to its own), at several it is interpolated between them. Sizes and centres are
degrees of the scan angle, and `SI.objectiveResolution` says how many micrometres a degree is.

Source: the RoiGroups in the Artist tag (https://docs.scanimage.org/Appendix/ScanImage+BigTiff+Specification.html) and how ScanImage
documents regions of interest (https://docs.scanimage.org/Advanced+Features/Multiple+Region+of+Interest+(MROI).html).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.dewarping import dewarped_width
from sensorium_pipeline.recordings.frames import LARGEST_SIDE

AS_WRITTEN = "Give the files as ScanImage wrote them; a copy saved by another program loses these tags."


@dataclass(frozen=True)
class ScanField:
    """One field of view at one depth, which is a plane of the recording.

    Attributes:
        slice: which page of a volume holds it.
        first_line: its first line in that page.
        height, width: pixels.
        depth: z in micrometres as the header gives it; None where it gives none.
        pixel_size: micrometres, (y, x); None where the header does not say it.
        corner: (y, x) of the first pixel's centre in micrometres, relative to the centre of the microscope's field; (0, 0) where the
            scan has one field of view.
        rotation: degrees, from the x axis to the y axis.
        fill_fraction: part of a resonant mirror's half period that the lines cover, where their sweep is still to be undone (see
            `dewarping`); pixel size and corner are those of the dewarped lines. None where pixels are equal already.
    """

    slice: int
    first_line: int
    height: int
    width: int
    depth: float | None
    pixel_size: tuple[float, float] | None
    corner: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    fill_fraction: float | None = None

    def swept(self, fill_fraction: float) -> "ScanField":
        """The same field, to be dewarped."""
        if self.pixel_size is None:
            return replace(self, fill_fraction=fill_fraction)
        y, x = self.pixel_size
        wider = x * self.width / dewarped_width(self.width, fill_fraction)
        turn, step = math.radians(self.rotation), (wider - x) / 2  # from the centre of the first pixel to that of the dewarped one
        corner = (
            (self.corner[0] + step * math.sin(turn), self.corner[1] + step * math.cos(turn)) if self.corner != (0.0, 0.0) else self.corner
        )
        return replace(self, pixel_size=(y, wider), corner=corner, fill_fraction=fill_fraction)


@dataclass(frozen=True)
class _Rectangle:
    """A scan field as ScanImage stores it: x before y, degrees of the scan angle."""

    pixels: tuple[float, float]
    center: tuple[float, float]
    size: tuple[float, float]
    rotation: float


@dataclass(frozen=True)
class _Region:
    """A region of interest: its rectangles at ascending depths."""

    zs: tuple[float, ...]
    rectangles: tuple[_Rectangle, ...]
    discrete: bool

    def at(self, z: float | None) -> _Rectangle | None:
        """The rectangle scanned at a depth; None where the region is not scanned there."""
        if len(self.rectangles) == 1 and not self.discrete:
            return self.rectangles[0]
        if z is None:
            return None
        if self.discrete:
            return next((field for own, field in zip(self.zs, self.rectangles, strict=True) if math.isclose(own, z, abs_tol=1e-3)), None)
        if not self.zs[0] - 1e-3 <= z <= self.zs[-1] + 1e-3:
            return None

        def between(values: Sequence[float]) -> float:
            return float(np.interp(z, self.zs, values))

        def pair(name: str) -> tuple[float, float]:
            return (
                between([getattr(field, name)[0] for field in self.rectangles]),
                between([getattr(field, name)[1] for field in self.rectangles]),
            )

        width, height = pair("pixels")
        rotation = between([field.rotation for field in self.rectangles])
        # ScanImage scans an even number of lines and pixels in between.
        return _Rectangle((round(width / 2) * 2, round(height / 2) * 2), pair("center"), pair("size"), rotation)


def region_count(artist: str) -> int:
    """Number of regions in the Artist tag; 0 where it holds none that can be read."""
    try:
        rois = json.loads(artist)["RoiGroups"]["imagingRoiGroup"]["rois"]
    except (ValueError, KeyError, TypeError):
        return 0
    return len(rois) if isinstance(rois, list) else int(isinstance(rois, dict))


def lay_out_fields(
    artist: str, zs: Sequence[float | None], page: tuple[int, int], um_per_degree: float, fly_to_lines: float | None, path: Path
) -> tuple[ScanField, ...]:
    """The fields of a scan of several regions, slice by slice, in the order scanned.

    Args:
        artist: text of the Artist tag.
        zs: depth of every slice, None where the header gives none.
        page: lines and pixels of a page.
        um_per_degree: micrometres a degree of the scan angle.
        fly_to_lines: lines that the scanner's move between fields takes by the header's times; None where it gives none.
        path: file, for errors.

    Raises:
        InputError: the regions cannot be read, or do not fill the page.
    """
    regions = _regions(artist, path)
    by_slice = [[field for region in regions if (field := region.at(z)) is not None] for z in zs]
    if not any(by_slice):
        raise InputError("RoiGroups: no region of interest is scanned at the depths of SI.hStackManager.zs", where=path, advice=AS_WRITTEN)
    gap = _lines_between(by_slice, page[0], fly_to_lines, path)
    fields = []
    for index, (z, present) in enumerate(zip(zs, by_slice, strict=True)):
        line = 0
        for field in present:
            width, height = int(field.pixels[0]), int(field.pixels[1])
            if width > page[1]:
                raise InputError(
                    f"RoiGroups: a field is {width} pixels wide, and the pages are {page[1]}",
                    where=path,
                    advice="The header is of another scan.",
                )
            fields.append(_placed(field, index, line, z, um_per_degree))
            line += height + gap
    return tuple(fields)


def _placed(field: _Rectangle, index: int, line: int, z: float | None, um_per_degree: float) -> ScanField:
    width, height = int(field.pixels[0]), int(field.pixels[1])
    pixel_x, pixel_y = field.size[0] / width * um_per_degree, field.size[1] / height * um_per_degree
    # From the centre of the field to that of its first pixel, then turned.
    x, y = -pixel_x * (width - 1) / 2, -pixel_y * (height - 1) / 2
    turn = math.radians(field.rotation)
    corner_x = field.center[0] * um_per_degree + math.cos(turn) * x - math.sin(turn) * y
    corner_y = field.center[1] * um_per_degree + math.sin(turn) * x + math.cos(turn) * y
    return ScanField(index, line, height, width, z, (pixel_y, pixel_x), (corner_y, corner_x), field.rotation)


def _lines_between(by_slice: list[list[_Rectangle]], lines: int, fly_to_lines: float | None, path: Path) -> int:
    """Lines between two fields: what the header's times say where that fills the page, else what the page has left to share out.

    The fullest slice fills the page, up to one line that makes the number of lines even.
    """

    def left(gap: int) -> int:
        return lines - max(sum(int(field.pixels[1]) for field in present) + (len(present) - 1) * gap for present in by_slice if present)

    shared = [(lines - sum(int(field.pixels[1]) for field in present)) // (len(present) - 1) for present in by_slice if len(present) > 1]
    timed = [] if fly_to_lines is None else [round(fly_to_lines), math.ceil(fly_to_lines - 1e-6)]
    for candidates in (timed, [min(shared, default=0)]):
        for spare in (0,) if lines % 2 else (0, 1):
            for gap in candidates:
                if gap >= 0 and left(gap) == spare:
                    return gap
    fullest = max(by_slice, key=len)
    heights = " + ".join([str(int(field.pixels[1])) for field in fullest[:12]] + ["..."] * (len(fullest) > 12))
    raise InputError(
        f"pages have {lines} lines, which fields of {heights} lines (RoiGroups) do not fill with equal gaps between them",
        where=path,
        advice="The header is of another scan, or a region of interest was changed while it ran.",
    )


def _regions(artist: str, path: Path) -> list[_Region]:
    try:
        found = json.loads(artist)["RoiGroups"]["imagingRoiGroup"]["rois"]
        regions = [_region(roi) for roi in (found if isinstance(found, list) else [found]) if roi.get("enable", 1)]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise InputError("the fields of view (RoiGroups in the Artist tag) cannot be read", where=path, advice=AS_WRITTEN) from error
    if not regions:
        raise InputError("the Artist tag (RoiGroups) has no region of interest", where=path, advice=AS_WRITTEN)
    return regions


def _region(roi: dict[str, Any]) -> _Region:
    fields = roi["scanfields"] if isinstance(roi["scanfields"], list) else [roi["scanfields"]]
    zs = roi["zs"] if isinstance(roi["zs"], list) else [roi["zs"]]
    if not fields or len(zs) != len(fields):
        raise ValueError("as many depths as scan fields")
    order = np.argsort([float(z) for z in zs], kind="stable")
    rectangles = tuple(_rectangle(fields[index]) for index in order)
    return _Region(tuple(_finite(zs[index]) for index in order), rectangles, bool(roi.get("discretePlaneMode", 0)))


def _rectangle(field: dict[str, Any]) -> _Rectangle:
    pixels, center, size = ((_finite(field[name][0]), _finite(field[name][1])) for name in ("pixelResolutionXY", "centerXY", "sizeXY"))
    if any(not 1 <= value <= LARGEST_SIDE or value != int(value) for value in pixels) or min(size) <= 0:
        raise ValueError("pixels are whole and sizes positive")
    return _Rectangle(pixels, center, size, _finite(field.get("rotationDegrees", 0) or 0))


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number
