"""A small recording and its extracted planes, made of arrays, and published into real stores."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.imaging.quality import PlaneMetrics
from sensorium_pipeline.recordings.geometry import PlaneGeometry
from sensorium_pipeline.recordings.raw_session import (
    Presentations,
    Pupil,
    RawSession,
    RecordingDescription,
    Role,
    StimulusImages,
    Track,
    Treadmill,
)
from sensorium_pipeline.sessions.publish import publish_session
from sensorium_pipeline.sessions.records import Provenance, SessionParameters, SessionRecord
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, open_workspace

RATE = 8.0
VOLUMES = 1400
SINGLE, TEST, REPEATS = 120, 4, 3
SIZE = (16, 24)
PROVENANCE = Provenance(code_version="0.1.0", lock_digest="0" * 64)


class FrameCount:
    """A movie of which only the size is asked: extraction is over when a session is made."""

    frames, height, width, dtype = VOLUMES, *SIZE, np.dtype(np.int16)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, *SIZE), np.int16)


def make_raw(folder: Path, role: Role = "competition", track: Track | None = "sensorium", animal: int = 1, seed: int = 0) -> RawSession:
    rng = np.random.default_rng(seed)
    (folder / "session.toml").write_text(f"animal = {animal}")
    sets = (
        dict.fromkeys(range(SINGLE), "single")
        | dict.fromkeys(range(500, 500 + TEST), "test")
        | dict.fromkeys(range(600, 600 + TEST), "final_test")
    )
    shown = rng.permutation(
        np.concatenate([np.arange(SINGLE), np.repeat(np.arange(500, 500 + TEST), REPEATS), np.repeat(np.arange(600, 600 + TEST), REPEATS)])
    )
    onset = 2.0 + 1.1 * np.arange(len(shown)) + rng.uniform(0, 0.2, len(shown))
    times = np.arange(VOLUMES) / RATE
    clock = np.arange(0, VOLUMES / RATE, 0.05)
    ids = np.array(sorted(sets), np.int64)
    return RawSession(
        path=folder,
        description=RecordingDescription(
            animal=animal,
            session=2,
            scan=3,
            indicator="GCaMP6s",
            planes=(PlaneGeometry(depth=200.0, pixel_size=(2.0, 3.0)), PlaneGeometry(depth=225.0, pixel_size=(2.0, 3.0))),
            role=role,
            track=track,
        ),
        movies=(FrameCount(), FrameCount()),
        frame_rate=RATE,
        frame_times=times,
        plane_delays=np.array([0.0, 0.06]),
        line_period=0.001,
        bidirectional=True,
        stimulus=Presentations(shown.astype(np.int64), onset, onset + 0.5),
        images=StimulusImages(ids, rng.integers(0, 256, (len(ids), 144, 256), np.uint8)),
        image_sets=sets,
        treadmill=Treadmill(np.arange(0, VOLUMES / RATE, 0.01), rng.normal(size=int(VOLUMES / RATE * 100)) ** 2),
        pupil=Pupil(clock, rng.normal(50, 5, (len(clock), 2)), rng.normal(20, 2, len(clock))),
        raw_files=("session.toml",),
    )


def make_plane(seed: int, neurons: int = 6, **changes: object) -> PlaneExtraction:
    rng = np.random.default_rng(seed)
    flagged = np.zeros(VOLUMES, bool)
    flagged[[300, 301]] = True
    traces = rng.gamma(0.3, size=(4, neurons, VOLUMES)).astype(np.float32)
    traces[:, :, flagged] = np.nan
    images = rng.gamma(9, 10, (4, *SIZE)).astype(np.float32)
    kept = np.arange(neurons) != 2
    plane = PlaneExtraction(
        frame_rate=RATE,
        pixel_size=2.0,
        mean_before=images[0],
        mean_after=images[1],
        max_before=images[2],
        max_after=images[3],
        raster_phase=0.2,
        shifts=rng.normal(size=(VOLUMES, 2)).astype(np.float32),
        template_correlation=np.full(VOLUMES, 0.9, np.float32),
        block_shifts=np.zeros((VOLUMES, 2, 2, 2), np.float32),
        block_centres=np.array([[[0, 0], [0, 23]], [[15, 0], [15, 23]]], np.float32),
        measured=~flagged,
        flagged=flagged,
        flag_reason=np.where(flagged, "unlike the template", ""),
        depth_drift_first_frame=np.arange(0, VOLUMES, 100),
        depth_drift_template_correlation=np.full(14, 0.9, np.float32),
        depth_drift_correlation=np.full((14, 14), 0.9, np.float32),
        sampled_frame=np.arange(0, VOLUMES, 100),
        brightness=np.full(14, 100, np.float32),
        group_mean=np.arange(50, 150, 5, dtype=np.float32),
        group_variance=np.arange(50, 150, 5, dtype=np.float32) * 3,
        residual_frame=np.arange(50, VOLUMES, 100),
        residual_shifts=np.zeros((14, 1, 1, 2), np.float32),
        footprint_neuron=np.repeat(np.arange(neurons, dtype=np.int32), 2),
        footprint_pixel=np.arange(2 * neurons, dtype=np.int32) * (SIZE[0] * SIZE[1] // (2 * neurons)),
        footprint_weight=np.full(2 * neurons, 0.5**0.5, np.float32),
        centroids=rng.uniform(0, 16, (neurons, 2)).astype(np.float32),
        detection_snr=np.linspace(90, 30, neurons).astype(np.float32),
        fluorescence=traces[0],
        neuropil=traces[1],
        neuropil_coefficient=np.full(neurons, 0.7, np.float32),
        dff=traces[2],
        activity=traces[3],
        denoised=traces[3],
        noise=np.full(neurons, 0.1, np.float32),
        time_constants=np.full((neurons, 2), 0.5, np.float32),
        snr=np.linspace(9, 3, neurons).astype(np.float32),
        kept=kept,
        reason=tuple("" if keep else "too dim" for keep in kept),
        metrics=PlaneMetrics(
            frames=VOLUMES, flagged_fraction=2 / VOLUMES, template_correlation=0.9, shift_rms=1.0, largest_shift=3.0, raster_phase=0.2,
            crispness_before=1.0, crispness_after=1.2, cells=neurons, kept_cells=neurons - 1, median_snr=5.0, median_noise=0.1,
            bleaching=0.05, photons=3.0, saturated_fraction=0.0,
        ),
    )  # fmt: skip
    return replace(plane, **changes)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(Settings(root=str(tmp_path / "workspace")))


@pytest.fixture
def raw_of(tmp_path: Path) -> Callable[..., RawSession]:
    def make(**options: object) -> RawSession:
        folder = tmp_path / f"raw-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return make_raw(folder, **options)

    return make


@pytest.fixture
def plane_of() -> Callable[..., PlaneExtraction]:
    return make_plane


@pytest.fixture
def publish(workspace: Workspace) -> Callable[..., SessionRecord]:
    """Publish a recording with two planes, unless others are given."""

    def run(raw: RawSession, planes: Sequence[PlaneExtraction] | None = None, parameters: SessionParameters | None = None) -> SessionRecord:
        return publish_planes(workspace, raw, planes, parameters)

    return run


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Role, Track | None], tuple[Path, SessionRecord]]:
    """Workspaces with one published session, each made once for all tests."""
    made: dict[tuple[Role, Track | None], tuple[Path, SessionRecord]] = {}

    def template(role: Role, track: Track | None) -> tuple[Path, SessionRecord]:
        if (role, track) not in made:
            folder = tmp_path_factory.mktemp("template")
            (folder / "raw").mkdir()
            workspace = open_workspace(Settings(root=str(folder / "workspace")))
            made[role, track] = folder / "workspace", publish_planes(workspace, make_raw(folder / "raw", role, track))
        return made[role, track]

    return template


@pytest.fixture
def published(workspace: Workspace, tmp_path: Path, templates: Callable[..., tuple[Path, SessionRecord]]) -> Callable[..., SessionRecord]:
    """The workspace holds one published session of this role and track."""

    def run(role: Role = "competition", track: Track | None = "sensorium") -> SessionRecord:
        source, record = templates(role, track)
        shutil.copytree(source, tmp_path / "workspace")
        return record

    return run


def publish_planes(
    workspace: Workspace, raw: RawSession, planes: Sequence[PlaneExtraction] | None = None, parameters: SessionParameters | None = None
) -> SessionRecord:
    found = [make_plane(1), make_plane(2)] if planes is None else planes
    return publish_session(workspace, raw, found, parameters=parameters or SessionParameters(), provenance=PROVENANCE)
