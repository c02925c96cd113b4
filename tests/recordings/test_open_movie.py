"""Movies of TIFF, HDF5 and zarr are read a few frames at a time, and bad ones end in one clear error."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import Movie, open_movie


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
        "compressed": {"compression": "zlib"},
        "tiled": {"tile": (16, 16)},
        "strips": {"rowsperstrip": 5, "metadata": None},
    }[how]
    path = path / "movie.tif"
    tifffile.imwrite(path, frames, photometric="minisblack", **options)
    return path


@pytest.mark.parametrize(
    "how", ["hdf5", "zarr", "zarr group", "plain", "shaped", "bigtiff", "big endian", "imagej", "compressed", "tiled", "strips"]
)
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
