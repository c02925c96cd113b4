"""The digest of a movie covers every file that its frames come from, and nothing else."""

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.movie_digest import MovieDigest
from sensorium_pipeline.progress import silent
from sensorium_pipeline.recordings import open_with_rate

FRAMES = np.random.default_rng(1).integers(0, 3000, (6, 12, 17)).astype(np.uint16)


def digest(path: Path, dataset: str | None = None) -> str:
    with MovieDigest(path, dataset) as made:
        return made.wait(silent, open_with_rate(path, dataset).linked)


def write_hdf5(path: Path, frames: np.ndarray = FRAMES) -> Path:
    with h5py.File(path, "w") as file:
        file["movie"], file["other"] = frames, frames[::-1]
    return path


def link(path: Path, source: str) -> Path:
    with h5py.File(path, "w") as file:
        file["movie"] = h5py.ExternalLink(*source.split(":"))
    return path


def virtual(path: Path, source: str) -> Path:
    layout = h5py.VirtualLayout(FRAMES.shape, FRAMES.dtype)
    if "%b" in source:
        for frame in range(len(FRAMES)):
            layout[frame] = h5py.VirtualSource(source.replace("%b", str(frame)), "movie", FRAMES.shape)[0]
    else:
        layout[:] = h5py.VirtualSource(source, "movie", FRAMES.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("movie", layout)
    return path


def of_plain_bytes(path: Path, source: str) -> Path:
    FRAMES.tofile(path.parent / source)
    with h5py.File(path, "w") as file:
        file.create_dataset("movie", FRAMES.shape, FRAMES.dtype, external=[(str(path.parent / source), 0, FRAMES.nbytes)])
    return path


def series(path: Path, source: str) -> Path:
    with h5py.File(path, "w") as file:
        made = file.create_group("acquisition/movie")
        made.attrs["neurodata_type"] = "TwoPhotonSeries"
        made["data"] = h5py.ExternalLink(*source.split(":"))
    return path


MADE = {
    "external link": lambda folder: link(folder / "movie.h5", "source.h5:/movie"),
    "chain of links": lambda folder: link(link(folder / "between.h5", "source.h5:/movie").with_name("movie.h5"), "between.h5:/movie"),
    "virtual": lambda folder: virtual(folder / "movie.h5", "source.h5"),
    "virtual of a virtual": lambda folder: virtual(virtual(folder / "between.h5", "source.h5").with_name("movie.h5"), "between.h5"),
    "plain bytes": lambda folder: of_plain_bytes(folder / "movie.h5", "source.h5"),
    "NWB": lambda folder: series(folder / "movie.nwb", "source.h5:/movie"),
}


@pytest.mark.parametrize("how", MADE)
def test_files_that_a_file_takes_frames_from(tmp_path: Path, how: str) -> None:
    write_hdf5(tmp_path / "source.h5")
    path = MADE[how](tmp_path)
    first = digest(path)
    elsewhere = Path(shutil.copytree(tmp_path, tmp_path / "elsewhere"))
    assert digest(elsewhere / path.name) == first
    raw = bytearray((tmp_path / "source.h5").read_bytes())
    at = raw.index(FRAMES.tobytes())
    raw[at] ^= 1
    (tmp_path / "source.h5").write_bytes(raw)
    assert digest(path) != first


def test_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "source.h5")
    between = link(tmp_path / "between.h5", "source.h5:/movie")
    path = link(tmp_path / "movie.h5", "between.h5:/movie")
    first = digest(path)
    link(between, "source.h5:/other")
    assert digest(path) != first


def test_a_folder_of_tiff_files_counts_without_what_else_lies_in_it(tmp_path: Path) -> None:
    for part in range(2):
        tifffile.imwrite(tmp_path / f"part_{part}.tif", FRAMES, photometric="minisblack")
    first = digest(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.md").write_text("of an extraction into a folder below the movie")
    (tmp_path / "notes.txt").write_text("x")
    assert digest(tmp_path) == first
    tifffile.imwrite(tmp_path / "part_2.tif", FRAMES, photometric="minisblack")
    assert digest(tmp_path) != first


def test_chunks_behind_links_to_folders(tmp_path: Path) -> None:
    path = tmp_path / "movie.zarr"
    zarr.create_array(str(path), shape=FRAMES.shape, dtype=FRAMES.dtype, chunks=(2, 12, 17))[:] = FRAMES
    (path / "c").rename(tmp_path / "large disk")
    (path / "c").symlink_to(tmp_path / "large disk")
    (tmp_path / "large disk" / "back").symlink_to(path)  # a loop, which must end
    np.testing.assert_array_equal(open_with_rate(path).movie.read(0, 6), FRAMES)
    first = digest(path)
    chunk = sorted(file for file in (tmp_path / "large disk").rglob("*") if file.is_file() and "back" not in file.parts)[-1]
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    assert digest(path) != first


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tif"
    os.mkfifo(pipe)
    with MovieDigest(pipe, None) as made, pytest.raises(InputError, match=r"pipe.tif: cannot be read \(Invalid argument"):
        made.wait(silent)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        open_with_rate(pipe)
    folder = tmp_path / "movie.zarr"
    zarr.create_array(str(folder), shape=FRAMES.shape, dtype=FRAMES.dtype)[:] = FRAMES
    first = digest(folder)
    os.mkfifo(folder / "pipe")
    assert digest(folder) == first


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "movie.zarr").mkdir()
    os.symlink("nowhere", tmp_path / "movie.zarr" / "zarr.json")
    with MovieDigest(tmp_path / "movie.zarr", None) as made, pytest.raises(InputError, match=r"zarr.json: cannot be read \(No such file"):
        made.wait(silent)
