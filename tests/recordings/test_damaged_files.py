"""Hundreds of damaged files of every kind: an `InputError` or frames, and never a crash, a hang or a gigabyte.

The files are read in a child process, which a crash of a library would end, and which a hang would keep past its time.
"""

import json
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import open_movie
from sensorium_pipeline.recordings.scanimage_writer import ScanImageWriter, WrittenField, fields_text, header_text, page_shape

FILES = 250
FILES_OF_HDF5 = 10  # each is looked at in one more process
MEGABYTES = 700
FRAMES = np.random.default_rng(1).integers(0, 3000, (12, 20, 24)).astype(np.uint16)


def write_tiff(**options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tifffile.imwrite(folder / "movie.tif", FRAMES, photometric="minisblack", **options)
        return folder / "movie.tif"

    return write


def write_scan(fields: list[WrittenField]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        header = header_text(
            fields=fields,
            channels=[1, 2],
            planes=2,
            frames_per_volume=3,
            depths=[100, 150],
            volume_rate=6.0,
            line_period=1e-4,
            bidirectional=True,
            pixel_size=1.0,
            volumes=6,
        )
        shape = page_shape(fields)
        pages = np.random.default_rng(7).integers(-500, 5000, (36, *shape)).astype(np.int16)
        with ScanImageWriter(folder, "movie", shape, header, fields_text(fields, 1.0), pages_per_file=99, channels=2) as writer:
            writer.write(pages, np.repeat(np.arange(18) / 18.0, 2))
        return folder / "movie_00001.tif"

    return write


def write_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "movie.h5", "w") as file:
        file.create_dataset("group/movie", data=FRAMES, chunks=(4, 20, 24), compression="gzip", shuffle=True)
        file["times"] = np.arange(12.0)
    return folder / "movie.h5"


def write_nwb(folder: Path) -> Path:
    with h5py.File(folder / "movie.nwb", "w") as file:
        series = file.create_group("acquisition/movie")
        series.attrs["neurodata_type"] = "TwoPhotonSeries"
        series["data"] = FRAMES.transpose(0, 2, 1)
        series["timestamps"] = np.arange(12) / 8.0
        series["imaging_plane/grid_spacing"] = [1e-6, 1e-6]
    return folder / "movie.nwb"


def write_zarr(version: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "movie.zarr"
        array = zarr.create_array(str(path), shape=FRAMES.shape, dtype=FRAMES.dtype, chunks=(4, 20, 24), zarr_format=version)
        array[:] = FRAMES
        return path

    return write


KINDS: dict[str, Callable[[Path], Path]] = {
    "plain": write_tiff(metadata=None),
    "bigtiff": write_tiff(bigtiff=True, byteorder=">"),
    "imagej": write_tiff(imagej=True, metadata={"finterval": 0.1}),
    "ome": write_tiff(ome=True, metadata={"axes": "TYX"}),
    "zlib": write_tiff(compression="zlib", predictor=True),
    "tiled": write_tiff(tile=(16, 16), compression="zlib"),
    "scan": write_scan([WrittenField(20, 24)]),
    "mesoscope": write_scan([WrittenField(20, 24), WrittenField(14, 20, (3.0, 40.0))]),
    "hdf5": write_hdf5,
    "nwb": write_nwb,
    "zarr v2": write_zarr(2),
    "zarr v3": write_zarr(3),
}
DATASETS = {"scan": "plane 1/channel 2", "mesoscope": "plane 3/channel 1"}
EXTREMES = (0, 1, 2, 3, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def damage(whole: bytes, generator: np.random.Generator) -> bytes:
    """Bytes changed, most of them near the beginning or where a word stands; extreme numbers; pieces lost, doubled or appended."""
    raw = bytearray(whole)
    how = int(generator.integers(6))
    if how == 0:
        return bytes(raw[: int(generator.integers(len(raw)))])
    if how == 1:
        start, length = (int(generator.integers(len(raw))) for _ in range(2))
        return bytes(raw[:start] + raw[start + length % 64 :])
    if how == 2:
        start = int(generator.integers(len(raw)))
        return bytes(raw[:start] + raw[start // 2 : start // 2 + 40] + raw[start:])
    for _ in range(int(generator.integers(1, 6))):
        near = min(len(raw), 4096) if generator.random() < 0.7 else len(raw)
        at = int(generator.integers(near))
        if how == 3:
            raw[at] ^= 1 << int(generator.integers(8))
        elif how == 4:
            raw[at] = int(generator.integers(256))
        else:
            size, code = ((2, "H"), (4, "I"), (8, "Q"))[int(generator.integers(3))]
            at -= at % 2
            if at + size <= len(raw):
                number = EXTREMES[int(generator.integers(len(EXTREMES)))] % (1 << 8 * size)
                struct.pack_into("<>"[int(generator.integers(2))] + code, raw, at, number)
    return bytes(raw)


def files_of(kind: str) -> int:
    return FILES_OF_HDF5 if kind in ("hdf5", "nwb") else FILES


def read_damaged(folder: Path, kind: str, seed: int) -> dict[str, int]:
    """Damage and read; what the child process does."""
    path = KINDS[kind](folder)
    parts = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = {part: part.read_bytes() for part in parts}
    generator = np.random.default_rng(seed)
    counts = {"refused": 0, "read": 0, "unnamed": 0}
    open_movie(path, DATASETS.get(kind)).read(0, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(files_of(kind)):
        part = parts[int(generator.integers(len(parts)))]
        part.write_bytes(damage(whole[part], generator))
        try:
            movie = open_movie(path, DATASETS.get(kind))
            frames = movie.read(0, min(2, movie.frames))
            last = movie.read(movie.frames - 1, movie.frames)
            assert frames.shape[1:] == last.shape[1:] == (movie.height, movie.width)
            assert frames.dtype == movie.dtype
            counts["read"] += 1
        except InputError as error:
            counts["refused"] += 1
            counts["unnamed"] += str(folder) not in error.where
        part.write_bytes(whole[part])
    counts["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return counts


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What became of the damaged files of every kind."""
    folder = tmp_path_factory.mktemp("damaged")
    child = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=280, check=False)
    counts = dict(json.loads(line) for line in child.stdout.splitlines())
    assert child.returncode == 0, f"ended after {list(counts)}: {child.stderr[-3000:]}"
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(counted: dict[str, dict[str, int]], kind: str) -> None:
    counts = counted[kind]
    assert counts["refused"] + counts["read"] == files_of(kind)
    assert counts["refused"] >= files_of(kind) // 10
    assert counts["unnamed"] == 0
    assert counts["megabytes"] < MEGABYTES


def test_a_file_that_crashes_the_library(tmp_path: Path) -> None:
    """One byte in the type of an attribute: HDF5 follows it into memory that is not its own, and takes the process with it."""
    path = write_nwb(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"neurodata_type") + 17] = 29
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"movie.nwb"):
        open_movie(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"shape": [' + "2, " * 1000 + "20, 24]}",
        '{"shape": [1' + "0" * 4000 + ', 20, 24], "axes": "TYX"}',
        "<OME>" + '<TiffData IFD="0" ' * 50_000,
    ],
    ids=["more frames than atoms", "a number of thousands of digits", "tags that never end"],
)
def test_a_hostile_description(tmp_path: Path, text: str) -> None:
    """Of memory for all those frames, and of hours in a pattern that begins anew at every tag."""
    tifffile.imwrite(tmp_path / "movie.tif", FRAMES[0], photometric="minisblack", description=text, metadata=None)
    np.testing.assert_array_equal(open_movie(tmp_path / "movie.tif").read(0, 1), FRAMES[:1])


@pytest.mark.parametrize("write", [write_hdf5, write_nwb])
def test_a_file_that_was_cut_off_is_to_be_copied_again(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """HDF5's own words for it hold "lock", as those for a file that another program holds do."""
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cannot be read as an HDF5 file .*copy it again"):
        open_movie(path)


if __name__ == "__main__":
    for number, kind in enumerate(KINDS):
        place = Path(sys.argv[1]) / str(number)
        place.mkdir()
        print(json.dumps([kind, read_damaged(place, kind, seed=number)]), flush=True)
