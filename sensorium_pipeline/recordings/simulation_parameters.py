"""What a simulated recording is made of."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sensorium_pipeline.recordings.raw_session import Role, Track
from sensorium_pipeline.recordings.scanimage_writer import WrittenField, page_shape


class SimulationParameters(BaseModel):
    """Size, timing and noise of a simulated session; the defaults suit a demonstration on two cores.

    Attributes:
        seed: of everything but the images.
        image_seed: of the images; sessions that share it show the same test images.
        animal, session, scan: its name.
        role, track: as in session.toml. Images of the final test are shown in competition sessions alone.
        single_images: shown once each; test_images, final_test_images: shown `repeats` times each, less what is lost.
        lost_presentations: fraction of the test presentations that were never shown.
        timeline: CSV file of a real session (columns modality, start_time_s, end_time_s) whose presentation times are used; None draws
            them as SENSORIUM 2022 did (31 frames of 1/60 s on, 0.367 to 0.600 s blank).
        planes: depths scanned; height, width: of a field of view; pixel_size in micrometres; volume_rate in Hz.
        fields: fields of view at each depth, as a mesoscope scans them; with several, some are a little smaller than the first.
        flyback_frames: frames of a volume that the scan loses while it moves back.
        volumes_per_file: volumes after which a new TIFF file begins.
        neurons_per_plane: somata in each field of each depth.
        orientations, wavelengths: the shared set of filters; wavelengths in pixels of the 144 x 256 image.
        spikes: mean number of spikes of a presentation.
        photons: of the background, for each pixel and frame; soma_photons: those that a silent soma adds at its brightest.
        motion: standard deviation of the brain's slow motion in micrometres.
        line_phase: displacement of the odd lines in pixels, as in a bidirectional scan.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=1, ge=0)
    image_seed: int = Field(default=2022, ge=0)
    animal: int = Field(default=1, ge=0)
    session: int = Field(default=1, ge=0)
    scan: int = Field(default=1, ge=0)
    role: Role = "open"
    track: Track | None = None
    single_images: int = Field(default=800, ge=1)
    test_images: int = Field(default=30, ge=1)
    final_test_images: int = Field(default=30, ge=1)
    repeats: int = Field(default=8, ge=2)
    lost_presentations: float = Field(default=0.02, ge=0, lt=0.5)
    timeline: Path | None = None
    planes: int = Field(default=2, ge=1, le=20)
    fields: int = Field(default=1, ge=1, le=12)
    height: int = Field(default=100, ge=48, le=1024)
    width: int = Field(default=100, ge=48, le=1024)
    pixel_size: float = Field(default=1.3, gt=0.3, lt=5)
    volume_rate: float = Field(default=8.0, ge=2, le=60)
    flyback_frames: int = Field(default=0, ge=0, le=4)
    volumes_per_file: int = Field(default=3000, ge=1)
    neurons_per_plane: int = Field(default=50, ge=1)
    orientations: int = Field(default=8, ge=1)
    wavelengths: tuple[float, ...] = (24.0, 40.0)
    spikes: float = Field(default=0.8, gt=0)
    photons: float = Field(default=30.0, ge=30)
    soma_photons: float = Field(default=35.0, gt=0)
    motion: float = Field(default=1.5, ge=0, le=3)
    line_phase: float = Field(default=0.7, ge=-3, le=3)

    @model_validator(mode="after")
    def _track_of_role(self) -> Self:
        if (self.role == "competition") != (self.track is not None):
            raise ValueError("a competition session belongs to one track, an open one to none")
        return self

    @property
    def name(self) -> str:
        """`<animal>-<session>-<scan>`."""
        return f"{self.animal}-{self.session}-{self.scan}"

    @property
    def frames_per_volume(self) -> int:
        """Frames of a volume, flyback included."""
        return self.planes + self.flyback_frames

    @property
    def written_fields(self) -> tuple[WrittenField, ...]:
        """Size and centre of the fields of view, which stand beside each other and differ a little in size."""
        return tuple(
            WrittenField(
                self.height - 4 * (field % 3),
                self.width - 6 * (field % 2),
                ((field % 2) * 120.0, 1.2 * self.width * self.pixel_size * (field - (self.fields - 1) / 2)),
            )
            for field in range(self.fields)
        )

    @property
    def line_period(self) -> float:
        """Seconds from line to line: the lines fill 98 % of a frame."""
        return 0.98 / (self.volume_rate * self.frames_per_volume * page_shape(self.written_fields)[0])
