"""What is in a raw session, in a few numbers, for `sensorium inspect`."""

from collections import Counter

import numpy as np
from pydantic import BaseModel

from sensorium_pipeline.recordings.raw_session import ImageSet, RawSession, Role, Track


class SessionSummary(BaseModel):
    """A raw session at a glance.

    Attributes:
        name: `<animal>-<session>-<scan>`.
        planes, volumes: numbers of them.
        frame_shapes: (y, x) pixels, every size that planes have; pixel_sizes: (y, x) um, likewise; plane_depths: um, of every plane;
            plane_corners: (y, x) um, the first pixel of every plane.
        frame_rate: volumes a second; minutes: length of the recording.
        presentations: number of images shown; images: distinct ones in each set; repeats: fewest and most in each set.
        running_fraction: of the time faster than 1 cm/s; pupil_lost_fraction: of the eye camera's frames.
        megabytes: of pixels in all planes.
    """

    name: str
    role: Role
    track: Track | None
    indicator: str
    optics: str
    planes: int
    volumes: int
    frame_shapes: tuple[tuple[int, int], ...]
    pixel_sizes: tuple[tuple[float, float], ...]
    plane_depths: tuple[float, ...]
    plane_corners: tuple[tuple[float, float], ...]
    bidirectional: bool
    frame_rate: float
    minutes: float
    presentations: int
    images: dict[ImageSet, int]
    repeats: dict[ImageSet, tuple[int, int]]
    running_fraction: float
    pupil_lost_fraction: float
    megabytes: float
    warnings: tuple[str, ...]


def describe(session: RawSession) -> SessionSummary:
    """Summarise an opened session; reads no frames."""
    description = session.description
    shown = Counter(int(image) for image in session.stimulus.image_id)
    repeats: dict[ImageSet, list[int]] = {}
    for image, count in shown.items():
        repeats.setdefault(session.image_sets[image], []).append(count)
    return SessionSummary(
        name=session.name,
        role=description.role,
        track=description.track,
        indicator=description.indicator,
        optics=description.optics,
        planes=session.planes,
        volumes=session.volumes,
        frame_shapes=tuple(dict.fromkeys((movie.height, movie.width) for movie in session.movies)),
        pixel_sizes=tuple(dict.fromkeys(plane.pixel_size for plane in description.planes)),
        plane_depths=tuple(plane.depth for plane in description.planes),
        plane_corners=tuple(plane.corner for plane in description.planes),
        bidirectional=session.bidirectional,
        frame_rate=session.frame_rate,
        minutes=session.volumes / session.frame_rate / 60,
        presentations=len(session.stimulus),
        images={name: len(counts) for name, counts in sorted(repeats.items())},
        repeats={name: (min(counts), max(counts)) for name, counts in sorted(repeats.items())},
        running_fraction=float(np.mean(session.treadmill.speed > 1.0)),
        pupil_lost_fraction=float(np.mean(np.isnan(session.pupil.dilation))),
        megabytes=sum(session.volumes * movie.height * movie.width * movie.dtype.itemsize for movie in session.movies) / 1e6,
        warnings=session.warnings,
    )
