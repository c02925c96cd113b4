"""What a raw session holds once it is read: its movies, and every table on one clock.

All times are seconds on the FRAME clock: zero is the time stamp of the first frame of the first volume. A pixel on line `y` of
plane `k` of volume `v` was scanned at `frame_times[v] + plane_delays[k] + y * line_period`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sensorium_pipeline.recordings.digest import digest_of_files
from sensorium_pipeline.recordings.frames import Movie
from sensorium_pipeline.recordings.geometry import PlaneGeometry

Role = Literal["open", "competition"]
Track = Literal["sensorium", "sensorium+"]
ImageSet = Literal["single", "test", "final_test"]

IMAGE_HEIGHT = 144
IMAGE_WIDTH = 256


class RecordingDescription(BaseModel):
    """What is known of a recording beside its samples, from session.toml and the scan headers.

    Attributes:
        animal: number of the animal.
        session: number of the session of this animal.
        scan: number of the scan of this session.
        indicator: calcium indicator, "GCaMP6s".
        optics: microscope and objective, free text.
        area: brain area, "V1".
        planes: where every plane lies in the tissue, in the order of the movies.
        role: "open" when the whole session is released, "competition" when its hidden tiers are kept back.
        track: of a competition session; None for an open one, which serves both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    animal: int = Field(ge=0)
    session: int = Field(ge=0)
    scan: int = Field(ge=0)
    indicator: str = Field(min_length=1)
    optics: str = ""
    area: str = "V1"
    planes: tuple[PlaneGeometry, ...] = Field(min_length=1)
    role: Role
    track: Track | None = None

    @property
    def name(self) -> str:
        """`<animal>-<session>-<scan>`, as sessions are called everywhere."""
        return f"{self.animal}-{self.session}-{self.scan}"


@dataclass(frozen=True)
class Presentations:
    """What was on the screen and when, in the order shown.

    Shapes: image_id (presentations,) int64; onset and offset (presentations,) float64 seconds on the frame clock, as the photodiode
    saw them.
    """

    image_id: NDArray[np.int64]
    onset: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image_id)


@dataclass(frozen=True)
class StimulusImages:
    """The images shown: image_ids (images,) int64 ascending, and images (images, 144, 256) uint8 grey values in the same order."""

    image_ids: NDArray[np.int64]
    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class Treadmill:
    """Running: time (samples,) seconds on the frame clock, speed (samples,) cm/s, forward positive, at about 100 Hz."""

    time: NDArray[np.float64]
    speed: NDArray[np.float64]


@dataclass(frozen=True)
class Pupil:
    """The eye camera's table, at about 20 Hz.

    Shapes: time (samples,) seconds on the frame clock; center (samples, 2) = x, y and dilation (samples,) in camera pixels, NaN where
    the pupil was lost.
    """

    time: NDArray[np.float64]
    center: NDArray[np.float64]
    dilation: NDArray[np.float64]


@dataclass(frozen=True)
class RawSession:
    """A raw session, opened: descriptions and tables in memory, movies on disk.

    Attributes:
        path: folder it was read from.
        description: what is known of it beside the samples.
        movies: one a plane, in the order scanned; each has `volumes` frames. Planes of a scan of several fields of view may differ in
            size.
        frame_rate: volumes a second.
        frame_times: start of every volume (volumes,), seconds; the first is zero.
        plane_delays: start of every plane's first line after its volume's start (planes,), seconds.
        line_period: seconds from the start of a line to the start of the next.
        bidirectional: whether every other line was scanned backwards.
        stimulus: presentations in the order shown.
        images: the images shown.
        image_sets: for every image id, whether it is shown once, or belongs to the live or the final test.
        treadmill: running speed.
        pupil: pupil position and size.
        warnings: what is unusual about the files but does not stop anything, one sentence each.
        raw_files: the files read, relative to `path`, sorted; the digest covers exactly these.
    """

    path: Path
    description: RecordingDescription
    movies: tuple[Movie, ...]
    frame_rate: float
    frame_times: NDArray[np.float64]
    plane_delays: NDArray[np.float64]
    line_period: float
    bidirectional: bool
    stimulus: Presentations
    images: StimulusImages
    image_sets: Mapping[int, ImageSet]
    treadmill: Treadmill
    pupil: Pupil
    warnings: tuple[str, ...] = ()
    raw_files: tuple[str, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """`<animal>-<session>-<scan>`."""
        return self.description.name

    @property
    def planes(self) -> int:
        """Number of planes."""
        return len(self.movies)

    @property
    def volumes(self) -> int:
        """Number of complete volumes."""
        return len(self.frame_times)

    def plane(self, index: int) -> Movie:
        """The movie of one plane."""
        return self.movies[index]

    @cached_property
    def digest(self) -> str:
        """sha256 over the paths and sha256 of all raw files, read in blocks."""
        return digest_of_files(self.path, self.raw_files)
