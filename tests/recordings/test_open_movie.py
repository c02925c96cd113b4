"""Movies of TIFF, HDF5 and zarr are read a few frames at a time, and bad ones end in one clear error."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import Movie, open_movie, open_session, open_with_rate


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(1).integers(-50, 3000, (20, 12, 17)).astype(np.int16)


def write(path: Path, frames: np.ndarray, how: str) -> Path:
    if how == "hdf5":
        path = path / "movie.h5"
        with h5py.File(path, "w") as file:
            file["group/movie"] = frames
            file["means"] = frames.mean(axis=(1, 2))
        return path
    if how == "zarr":
        path = path / "movie.zarr"
        array = zarr.create_array(str(path), shape=frames.shape, dtype=frames.dtype, chunks=(5, *frames.shape[1:]))
        array[:] = frames
        return path
    if how == "zarr v2":
        path = path / "old.zarr"
        array = zarr.create_array(str(path), shape=frames.shape, dtype=frames.dtype, chunks=(5, 7, 17), zarr_format=2)
        array[:] = frames
        return path
    if how == "zarr sharded":
        path = path / "sharded.zarr"
        array = zarr.create_array(str(path), shape=frames.shape, dtype=frames.dtype, chunks=(2, 12, 17), shards=(8, 12, 17))
        array[:] = frames
        return path
    if how == "zarr group":
        path = path / "group.zarr"
        group = zarr.create_group(str(path))
        group.create_array("movie", data=frames)
        group.create_array("other", data=np.zeros(3))
        return path
    options: dict = {
        "plain": {"metadata": None},
        "shaped": {},
        "bigtiff": {"bigtiff": True},
        "big endian": {"byteorder": ">"},
        "imagej": {"imagej": True},
        "imagej in one": {"imagej": True, "contiguous": True},
        "compressed": {"compression": "zlib"},
        "compressed big endian": {"compression": "zlib", "byteorder": ">", "predictor": True},
        "tiled": {"tile": (16, 16)},
        "strips": {"rowsperstrip": 5, "metadata": None},
    }[how]
    path = path / "movie.tif"
    tifffile.imwrite(path, frames, photometric="minisblack", **options)
    return path


KINDS = ["hdf5", "zarr", "zarr v2", "zarr sharded", "zarr group", "plain", "shaped", "bigtiff", "big endian", "imagej", "imagej in one"]
KINDS += ["compressed", "compressed big endian", "tiled", "strips"]


@pytest.mark.parametrize("how", KINDS)
def test_frames_come_back_bitwise(tmp_path: Path, frames: np.ndarray, how: str) -> None:
    movie = pickle.loads(pickle.dumps(open_movie(write(tmp_path, frames, how))))  # a movie travels to workers
    assert isinstance(movie, Movie)
    assert (movie.frames, movie.height, movie.width, movie.dtype) == (20, 12, 17, np.int16)
    np.testing.assert_array_equal(movie.read(3, 11), frames[3:11])
    np.testing.assert_array_equal(movie.read(19, 20), frames[19:])
    assert movie.read(5, 5).shape == (0, 12, 17)
    assert movie.read(0, 2).dtype == np.int16
    with pytest.raises(InputError, match="there are 20"):
        movie.read(10, 21)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("how", ["plain", "hdf5", "zarr"])
def test_pixel_types(tmp_path: Path, frames: np.ndarray, dtype: type, how: str) -> None:
    typed = np.abs(frames).astype(dtype)
    movie = open_movie(write(tmp_path, typed, how))
    assert movie.dtype == dtype
    np.testing.assert_array_equal(movie.read(0, 20), typed)


def test_dataset_is_chosen_by_name(tmp_path: Path, frames: np.ndarray) -> None:
    path = tmp_path / "two.h5"
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = frames, frames[::-1]
    with pytest.raises(InputError, match=r"2 datasets.*Name one of: a, b"):
        open_movie(path)
    np.testing.assert_array_equal(open_movie(path, "/b").read(0, 20), frames[::-1])
    with pytest.raises(InputError, match=r"no dataset 'c'.*a \(20"):
        open_movie(path, "c")


def test_links_are_followed_and_what_they_miss_is_named(tmp_path: Path, frames: np.ndarray) -> None:
    other = write(tmp_path, frames, "hdf5")
    layout = h5py.VirtualLayout(frames.shape, frames.dtype)
    layout[:] = h5py.VirtualSource("movie.h5", "group/movie", frames.shape)
    with h5py.File(tmp_path / "soft.h5", "w") as file:
        file["data/raw"] = frames
        file["mov"] = h5py.SoftLink("/data/raw")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file["mov"] = h5py.ExternalLink("movie.h5", "group/movie")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("mov", layout)
    for name in ("soft", "external", "virtual"):
        for dataset in (None, "mov"):
            np.testing.assert_array_equal(open_movie(tmp_path / f"{name}.h5", dataset).read(0, 20), frames)
    other.unlink()
    with pytest.raises(InputError, match=r"external.h5.*It has: nothing"):
        open_movie(tmp_path / "external.h5")
    with pytest.raises(InputError, match=r"values from movie.h5, which is missing"):  # HDF5 itself reads zeros
        open_movie(tmp_path / "virtual.h5")


def test_a_folder_of_tiff_files_is_one_movie(tmp_path: Path, frames: np.ndarray) -> None:
    lengths = [1, 2, 3, 1, 1, 1, 1, 1, 1, 3, 5]  # file 10 comes after file 9
    start = 0
    for number, length in enumerate(lengths):
        options = {"compression": "zlib"} if number == 4 else {"byteorder": ">"} if number == 2 else {}
        tifffile.imwrite(tmp_path / f"part_{number}.tif", frames[start : start + length], photometric="minisblack", **options)
        start += length
    movie = pickle.loads(pickle.dumps(open_movie(tmp_path)))
    assert isinstance(movie, Movie)
    assert (movie.frames, movie.height, movie.width, movie.dtype) == (20, 12, 17, np.int16)
    for span in ((0, 20), (2, 3), (5, 14), (19, 20), (7, 7)):
        np.testing.assert_array_equal(movie.read(*span), frames[slice(*span)])
    with pytest.raises(InputError, match="no datasets"):
        open_movie(tmp_path, "plane 0")
    tifffile.imwrite(tmp_path / "part_11.tif", frames[:2, :8], photometric="minisblack")
    with pytest.raises(InputError, match=r"part_11.tif: frames are 8 x 17 int16, those of part_0.tif 12 x 17"):
        open_movie(tmp_path)


def test_bad_movies_say_what_is_wrong(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_movie(tmp_path / "none.tif")
    (tmp_path / "movie.avi").write_bytes(b"x")
    with pytest.raises(InputError, match="suffix"):
        open_movie(tmp_path / "movie.avi")
    for name in ("empty.tif", "empty.h5"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=name):
            open_movie(tmp_path / name)
    with h5py.File(tmp_path / "rank.h5", "w") as file:
        file["flat"] = np.zeros((4, 5))
        file["none"] = np.zeros((0, 5, 5))
        file["text"] = [["a"]]
    with pytest.raises(InputError, match="three"):
        open_movie(tmp_path / "rank.h5", "flat")
    with pytest.raises(InputError, match="no frames"):
        open_movie(tmp_path / "rank.h5", "none")
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((3, 8, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="3 colours"):
        open_movie(tmp_path / "colour.tif")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        file.write(np.zeros((8, 8), np.int16), metadata=None)
        file.write(np.zeros((8, 9), np.int16), metadata=None)
    with pytest.raises(InputError, match="page 1 is 8 x 9"):
        open_movie(tmp_path / "sizes.tif")
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(200))
    with pytest.raises(InputError, match="is a MATLAB file of version 5"):
        open_movie(tmp_path / "old.mat")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="not a readable zarr"):
        open_movie(tmp_path / "folder")


@pytest.mark.parametrize("how", ["plain", "bigtiff", "hdf5", "compressed"])
def test_truncated_movies(tmp_path: Path, frames: np.ndarray, how: str) -> None:
    path = write(tmp_path, frames, how)
    whole = path.read_bytes()
    for fraction in (0.05, 0.5, 0.98):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(InputError, match=path.name):
            open_movie(path).read(0, 20)


def test_file_that_shrinks_after_it_was_opened(tmp_path: Path, frames: np.ndarray) -> None:
    path = write(tmp_path, frames, "plain")
    movie = open_movie(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut off"):
        movie.read(0, 20)


def test_imagej_file_of_more_than_4_gigabytes(tmp_path: Path) -> None:
    """ImageJ then writes one directory and the frames behind it, beyond what classic TIFF can address; the file here is sparse."""
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, np.zeros((9, 512, 512), ">u2"), imagej=True, byteorder=">", metadata={"finterval": 0.125})
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]
    frames = 8300  # 4.35 GB
    head = bytearray(path.read_bytes()[:offset].replace(b"images=9\nchannels=9\n", b"images=8300\nmin=0.0\n"))
    directory = int.from_bytes(head[4:8], "big")
    following = directory + 2 + 12 * int.from_bytes(head[directory : directory + 2], "big")
    head[following : following + 4] = bytes(4)
    path.write_bytes(head)
    last = np.arange(512 * 512, dtype=">u2").reshape(512, 512)
    with path.open("r+b") as file:
        file.seek(offset + (frames - 1) * last.nbytes)
        file.write(last.tobytes())
    opened = open_with_rate(path)
    assert (opened.movie.frames, opened.frame_rate) == (frames, 8.0)
    np.testing.assert_array_equal(opened.movie.read(frames - 1, frames)[0], last)
    assert not opened.movie.read(4000, 4001).any()
    with path.open("r+b") as file:
        file.truncate(offset + (frames - 1) * last.nbytes)
    with pytest.raises(InputError, match=f"its {frames} frames end at byte"):
        open_movie(path)


STACKS: dict[str, tuple[dict[str, Any], str]] = {
    "imagej": ({"imagej": True}, "TZC"),
    "ome": ({"ome": True}, "TZC"),
    "ome, channels last": ({"ome": True}, "CTZ"),
    "ome, depths last": ({"ome": True}, "ZTC"),
    "tifffile": ({}, "TZC"),
    "tifffile, one directory": ({"truncate": True}, "CTZ"),
    "compressed": ({"imagej": True, "compression": "zlib"}, "TZC"),
}


@pytest.mark.parametrize("how", STACKS)
@pytest.mark.parametrize(("planes", "channels"), [(1, 2), (3, 1), (3, 2)])
def test_channels_and_planes_that_take_turns(tmp_path: Path, frames: np.ndarray, how: str, planes: int, channels: int) -> None:
    options, order = STACKS[how]
    lengths = {"T": 5, "Z": planes, "C": channels}
    data = np.random.default_rng(2).integers(0, 3000, [*(lengths[axis] for axis in order), 12, 17]).astype(np.uint16)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, data, metadata={"axes": f"{order}YX"}, photometric="minisblack", **options)
    by_plane = np.moveaxis(data, [order.index(axis) for axis in "ZCT"], [0, 1, 2])
    names = [
        f"plane {plane}" + (f"/channel {channel + 1}" if channels > 1 else "") for plane in range(planes) for channel in range(channels)
    ]
    with pytest.raises(InputError, match=f"{planes} planes and {channels} channels. Name one of: {', '.join(names)}"):
        open_movie(path)
    for name, expected in zip(names, by_plane.reshape(-1, 5, 12, 17), strict=True):
        np.testing.assert_array_equal(open_movie(path, name).read(0, 5), expected)
    with pytest.raises(InputError, match="no dataset 'plane 9'"):
        open_movie(path, "plane 9")
    shutil.copy(path, tmp_path / "stack_2.tif")
    np.testing.assert_array_equal(open_movie(tmp_path, names[-1]).read(5, 10), by_plane[-1, -1])


@pytest.mark.parametrize("how", ["imagej", "ome"])
def test_time_under_another_name(tmp_path: Path, how: str) -> None:
    """Frames as planes, as programs that do not know time write them."""
    data = np.random.default_rng(2).integers(0, 3000, (1, 20, 2, 12, 17)).astype(np.uint16)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, data[:, :, :1], metadata={"axes": "TZCYX"}, photometric="minisblack", **{how: True})
    np.testing.assert_array_equal(open_movie(path).read(0, 20), data[0, :, 0])
    tifffile.imwrite(path, data, metadata={"axes": "TZCYX"}, photometric="minisblack", **{how: True})
    np.testing.assert_array_equal(open_movie(path, "plane 0/channel 2").read(0, 20), data[0, :, 1])


def test_images_of_which_nobody_says_how_they_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.zeros((5, 2, 12, 17), np.uint16), photometric="minisblack")
    with pytest.raises(InputError, match=r"holds 10 images and is described as 5 x 2, .* Save one channel"):
        open_movie(path)
    tifffile.imwrite(path, np.zeros((5, 2, 12, 17), np.uint16), photometric="minisblack", ome=True, metadata={"axes": "TCYX"})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'SizeC="2"', b'SizeC="4"', 1))
    with pytest.raises(InputError, match="holds 10 images and is described as 5 x 4"):
        open_movie(path)
    moved = whole.replace(b'<TiffData IFD="0" PlaneCount="10"/>', b'<TiffData IFD="4" FirstC="1"/>     ')
    assert moved != whole
    path.write_bytes(moved)
    with pytest.raises(InputError, match="does not say how channels"):
        open_movie(path, "plane 0/channel 1")


@pytest.mark.parametrize(
    ("attributes", "rate", "size"),
    [
        ({"frame_rate": 8, "pixel_size": [1, 1.5], "bidirectional": True}, 8.0, (1.0, 1.5)),
        ({"frame_rate": True, "pixel_size": ["a", 2], "bidirectional": 1}, None, None),
        ({"frame_rate": "8", "pixel_size": [[1], [2]]}, None, None),
        ({"frame_rate": -8, "pixel_size": [1, 0]}, None, None),
        ({"frame_rate": float("inf"), "pixel_size": [float("nan"), 1]}, None, None),
    ],
)
def test_what_a_zarr_array_says_of_itself(
    tmp_path: Path, frames: np.ndarray, attributes: dict[str, Any], rate: float | None, size: tuple[float, float] | None
) -> None:
    path = write(tmp_path, frames, "zarr")
    zarr.open_array(str(path)).attrs.update(attributes)
    opened = open_with_rate(path)
    assert (opened.frame_rate, opened.pixel_size, opened.bidirectional) == (rate, size, True if rate else None)


def test_rates_in_tiff_files(tmp_path: Path, frames: np.ndarray) -> None:
    path = tmp_path / "movie.tif"
    for options, rate in (
        ({"imagej": True, "metadata": {"finterval": 0.04}}, 25.0),
        ({"imagej": True, "metadata": {"fps": 7.5}}, 7.5),
        ({"ome": True, "metadata": {"axes": "TYX", "TimeIncrement": 0.1, "TimeIncrementUnit": "s"}}, 10.0),
        ({"ome": True, "metadata": {"axes": "TYX", "TimeIncrement": 50, "TimeIncrementUnit": "ms"}}, 20.0),
        ({"metadata": None}, None),
    ):
        tifffile.imwrite(path, frames.astype(np.uint16), photometric="minisblack", **options)
        opened = open_with_rate(path)
        assert opened.movie.frames == 20
        assert opened.frame_rate == (None if rate is None else pytest.approx(rate))


def test_scanimage_files_and_folders(small_session: Path, tmp_path: Path) -> None:
    session = open_session(small_session)
    scans = small_session / "scans"
    with pytest.raises(InputError, match=r"2 planes and 1 channels.*Name one of: plane 0, plane 1"):
        open_movie(scans)
    opened = open_with_rate(scans, "plane 1")
    np.testing.assert_array_equal(opened.movie.read(0, 30), session.plane(1).read(0, 30))
    assert (opened.frame_rate, opened.bidirectional) == (8.0, True)
    assert opened.pixel_size == pytest.approx((1.3, 1.3))
    with pytest.raises(InputError, match="no dataset 'plane 2'"):
        open_movie(scans, "plane 2")
    part = open_movie(sorted(scans.glob("*.tif"))[1], "plane 0")  # 100 volumes of 3 frames a file
    np.testing.assert_array_equal(part.read(0, 10), session.plane(0).read(100, 110))


def test_real_movies(test_data: Path) -> None:
    folder = test_data / "twophoton" / "movies"
    mouse = open_movie(folder / "thunder_mouse_64x64x500.tif")
    assert (mouse.frames, mouse.height, mouse.width) == (500, 64, 64)
    np.testing.assert_array_equal(mouse.read(100, 120), tifffile.imread(folder / "thunder_mouse_64x64x500.tif", key=range(100, 120)))
    allen = open_movie(folder / "792757260_test_data.h5")  # among four datasets one is a movie
    assert (allen.frames, allen.height, allen.width, allen.dtype) == (100, 100, 100, np.int16)
    resonant = open_movie(folder / "dewarping_regression_test_input.h5")
    assert resonant.read(0, 5).dtype == np.dtype("=u2")
    with pytest.raises(InputError, match="three dimensions"):
        open_movie(folder / "neuropil_traces.h5")
