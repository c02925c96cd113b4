"""Movies that show nothing, show it badly, or meet a full disk: a clear error or an honest result, and nothing half-written."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command_line import assert_one_error
from scipy.ndimage import gaussian_filter, shift
from small_world import SENSORIUM, World

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.extraction_folder import extract_movie
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.ingestion import ingest_plane
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.settings import RootSettings, Settings
from sensorium_pipeline.storage import open_workspace

FRAMES, SIDE = 240, 48
Array = np.ndarray


def living(seed: int = 0, frames: int = FRAMES) -> Array:
    """Three cells that fire now and then in front of a structured background, counted in photons."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    cells = np.stack([np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 14) for y, x in ((12, 13), (30, 34), (37, 14))])
    spikes = generator.random((3, frames)) < 0.03
    calcium = np.stack([np.convolve(row, np.exp(-np.arange(40) / 8))[:frames] for row in spikes])
    still = 120 + 35 * gaussian_filter(generator.standard_normal((SIDE, SIDE)), 2) / 0.14
    return generator.poisson(np.clip(still + 150 * np.einsum("ct,cyx->tyx", calcium, cells), 0, None)).astype(np.int16)


def with_lapses(beyond: float) -> Array:
    """Content that is away by more than `beyond` sides of the field in every tenth stretch of frames."""
    movie = living().astype(np.float32)
    for start in range(50, FRAMES, 60):
        movie[start : start + 4] = [shift(frame, (0, beyond * SIDE), order=1, mode="wrap") for frame in movie[start : start + 4]]
    return movie.astype(np.int16)


def spoilt(frames: slice, value: float) -> Array:
    movie = living().astype(np.float32)
    movie[frames] = value
    return movie


NOTHING = "every sampled frame is blank or has values that are not finite"
REFUSED: dict[str, tuple[Callable[[], Array], str]] = {
    "all zero": (lambda: np.zeros((FRAMES, SIDE, SIDE), np.int16), NOTHING),
    "constant": (lambda: np.full((FRAMES, SIDE, SIDE), 137, np.uint16), NOTHING),
    "saturated": (lambda: np.full((FRAMES, SIDE, SIDE), 4095, np.int16), NOTHING),
    "not a number": (lambda: np.full((FRAMES, SIDE, SIDE), np.nan, np.float32), NOTHING),
    "a single frame": (lambda: living()[:1], "has no motion to correct"),
    "too small": (lambda: living()[:, :10, :10], "too small"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_movies_that_cannot_be_used(sensorium, tmp_path: Path, what: str) -> None:
    make, message = REFUSED[what]
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, make())
    assert_one_error(sensorium("extract", path, tmp_path / "out", "--frame-rate", "8"), str(path), message)
    assert [file.name for file in tmp_path.iterdir()] == ["movie.tif"]


def test_frames_of_changing_size(sensorium, tmp_path: Path) -> None:
    path = tmp_path / "movie.tif"
    with tifffile.TiffWriter(path) as writer:
        for index, frame in enumerate(living()[:40]):
            writer.write(frame if index < 30 else frame[:32], contiguous=False)
    assert_one_error(sensorium("extract", path, tmp_path / "out", "--frame-rate", "8"), str(path), "page 30", "32")
    assert [file.name for file in tmp_path.iterdir()] == ["movie.tif"]


HONEST: dict[str, tuple[Callable[[], Array], Callable[[dict[str, float]], bool]]] = {
    "no cells": (
        lambda: np.random.default_rng(0).poisson(30, (FRAMES, SIDE, SIDE)).astype(np.int16),
        lambda metrics: metrics["kept_cells"] == 0 and metrics["motion_pooled"] == 0,
    ),
    "mostly saturated": (
        lambda: np.where(np.random.default_rng(0).random((FRAMES, SIDE, SIDE)) < 0.9, 4095, 4000).astype(np.int16),
        lambda metrics: metrics["saturated_fraction"] > 0.9 and metrics["kept_cells"] == 0,
    ),
    "some frames not numbers": (
        lambda: spoilt(slice(60, 70), np.nan),
        lambda metrics: metrics["flagged_fraction"] == pytest.approx(10 / FRAMES, abs=0.01) and metrics["kept_cells"] > 0,
    ),
    "some frames blank": (
        lambda: spoilt(slice(60, 70), 0),
        lambda metrics: metrics["flagged_fraction"] == pytest.approx(10 / FRAMES, abs=0.01) and metrics["kept_cells"] > 0,
    ),
    "some frames far too bright": (
        lambda: living() + np.where(np.arange(FRAMES) % 5, 0, 2000).astype(np.int16)[:, None, None],
        lambda metrics: metrics["flagged_fraction"] == pytest.approx(0.2, abs=0.01) and abs(metrics["bleaching"]) < 0.1,
    ),
    "motion beyond half the field": (
        lambda: with_lapses(0.55),
        lambda metrics: metrics["flagged_fraction"] == pytest.approx(16 / FRAMES, abs=0.02) and metrics["largest_shift"] < SIDE / 2,
    ),
}


@pytest.mark.parametrize("what", HONEST)
def test_movies_of_which_the_result_says_what_is_wrong(sensorium, tmp_path: Path, what: str) -> None:
    make, expected = HONEST[what]
    tifffile.imwrite(tmp_path / "movie.tif", make())
    said = sensorium("extract", tmp_path / "movie.tif", tmp_path / "out", "--frame-rate", "8", "--json")
    assert said.code == 0, said.error
    metrics = json.loads(said.out)
    assert expected(metrics), metrics
    assert (tmp_path / "out" / "report.md").is_file()


def test_missing_frame_time_stamps(sensorium, world: World, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(world.raw(SENSORIUM), tmp_path / "raw"))
    scan = sorted((raw / "scans").glob("*.tif"))[0]
    content = scan.read_bytes()
    assert b"frameTimestamps_sec" in content
    scan.write_bytes(content.replace(b"frameTimestamps_sec", b"frameTimestamps_xyz"))
    assert_one_error(sensorium("inspect", raw), scan.name, "frameTimestamps_sec")
    with pytest.raises(InputError, match="frameTimestamps_sec"):
        ingest_plane(open_workspace(Settings(root=str(tmp_path / "workspace"))), raw, 0, ImagingParameters())
    assert not (tmp_path / "workspace").exists()


def test_a_movie_that_is_still_being_written(tmp_path: Path) -> None:
    """Its frames of the first minutes are a whole TIFF file, and were taken for all that there is."""
    path, whole = tmp_path / "movie.tif", living()
    tifffile.imwrite(path, whole[:200], metadata=None)
    told: set[str] = set()

    def write_more(step: Progress) -> None:
        if step.stage == "motion" and not told:
            told.add(step.stage)
            tifffile.imwrite(path, whole[200:], append=True, metadata=None)

    with pytest.raises(InputError, match=r"movie.tif: grew from \d+ to \d+ bytes while it was worked on. Wait until"):
        extract_movie(path, tmp_path / "out", frame_rate=8, progress=write_more)
    assert not (tmp_path / "out").exists()
    assert extract_movie(path, tmp_path / "out", frame_rate=8).frames == FRAMES


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A real file system of a given size, which may be asked for again with another one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def of_size(size: str) -> Path:
        nonlocal mounted
        option = f"remount,size={size}" if mounted else f"size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted = True
        return folder

    if shutil.which("mount") is None or os.getuid() != 0:
        pytest.skip("no file system can be mounted here: not root")
    yield of_size
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_takes_no_large_file(sensorium, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "movie.tif", living())
    command = ["extract", tmp_path / "movie.tif", tmp_path / "out", "--frame-rate", "8"]
    with largest_file(FRAMES * SIDE * SIDE):
        assert_one_error(sensorium(*command), "corrected movie", code=2)
    assert not (tmp_path / "out").exists()
    assert sensorium(*command).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["movie.tif", "out"]


@pytest.mark.parametrize("size", ["400k", "1300k"])  # what has no room: the corrected movie, the binned one
def test_a_full_disk_and_then_room(sensorium, small_disk: Callable[[str], Path], tmp_path: Path, size: str) -> None:
    tifffile.imwrite(tmp_path / "movie.tif", living())
    disk = small_disk(size)
    command = ["extract", tmp_path / "movie.tif", disk / "out", "--frame-rate", "8"]
    assert_one_error(sensorium(*command), "disk is full", str(disk), code=2)
    assert not (disk / "out").exists()
    small_disk("100m")
    assert sensorium(*command).code == 0
    assert [path.name for path in disk.iterdir()] == ["out"]
    assert sensorium("extract", tmp_path / "movie.tif", tmp_path / "undisturbed", "--frame-rate", "8").code == 0
    for file in (disk / "out").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "undisturbed" / file.relative_to(disk / "out")).read_bytes(), file


def test_a_full_lab_store_and_full_scratch(
    world: World, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("300k")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = Settings(root=str(tmp_path / "workspace"))
    full = settings.model_copy(update={"lab": RootSettings(url=str(disk / "lab"))})
    with pytest.raises(PlatformError, match="disk is full"):
        ingest_plane(open_workspace(full), world.raw(SENSORIUM), 0, ImagingParameters())
    assert not (disk / "lab" / "results" / "planes").exists()
    small_disk("100m")
    first = ingest_plane(open_workspace(full), world.raw(SENSORIUM), 0, ImagingParameters())

    small_disk("100m")
    (disk / "filling").write_bytes(bytes(100 * 2**20 - 2**21))
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    with pytest.raises(PlatformError, match="disk is full"):
        ingest_plane(open_workspace(settings), world.raw(SENSORIUM), 0, ImagingParameters())
    (disk / "filling").unlink()
    assert ingest_plane(open_workspace(settings), world.raw(SENSORIUM), 0, ImagingParameters()) == first
