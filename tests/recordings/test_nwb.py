"""NWB files are read as others write them: axes, rates, planes, and frames that lie elsewhere."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import open_movie, open_with_rate
from sensorium_pipeline.recordings.nwb import open_nwb


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(3).integers(-50, 3000, (20, 12, 17)).astype(np.int16)


def write(
    path: Path,
    data: np.ndarray | None,
    *,
    name: str = "TwoPhotonSeries",
    rate: float | None = 30.0,
    stamps: np.ndarray | None = None,
    imaging_rate: float | None = None,
    spacing: tuple[float, ...] | None = (2e-6, 1.5e-6),
    external: list[str] | None = None,
) -> Path:
    """A series with frames (frames, y, x) or volumes (frames, y, x, z), as the NWB schema lays it out: x before y."""
    with h5py.File(path, "a") as file:
        series = file.create_group(f"acquisition/{name}")
        series.attrs["neurodata_type"] = "TwoPhotonSeries"
        series["data"] = np.zeros((0, 0, 0), np.uint8) if data is None else np.moveaxis(data, 1, 2)
        if rate is not None:
            series["starting_time"] = 0.0
            series["starting_time"].attrs["rate"] = rate
        if stamps is not None:
            series["timestamps"] = stamps
        if external is not None:
            series["external_file"] = external
        plane = file.require_group(f"general/optophysiology/{name}")
        if imaging_rate is not None:
            plane["imaging_rate"] = imaging_rate
        if spacing is not None:
            plane["grid_spacing"] = spacing
            plane["grid_spacing"].attrs["unit"] = "meters"
        series["imaging_plane"] = h5py.SoftLink(plane.name)
        masks = file.require_group("processing/ophys")
        if "image_mask" not in masks:
            masks["image_mask"] = np.zeros((3, 12, 17))  # three dimensions, and no movie
    return path


def test_frames_are_turned_to_lines_and_pixels(tmp_path: Path, frames: np.ndarray) -> None:
    opened = open_with_rate(write(tmp_path / "a.nwb", frames))
    movie = opened.movie
    assert (movie.frames, movie.height, movie.width, movie.dtype) == (20, 12, 17, np.int16)
    np.testing.assert_array_equal(movie.read(3, 9), frames[3:9])
    assert opened.frame_rate == 30.0
    assert opened.pixel_size == pytest.approx((1.5, 2.0))  # y, x


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({"rate": None, "stamps": np.arange(20) / 8.0}, 8.0),
        ({"rate": None, "imaging_rate": 6.5}, 6.5),
        ({"rate": float("nan"), "imaging_rate": 6.5}, 6.5),
        ({"rate": None}, None),
        ({"rate": 0.0, "spacing": None}, None),
    ],
)
def test_where_the_rate_stands(tmp_path: Path, frames: np.ndarray, options: dict[str, Any], rate: float | None) -> None:
    assert open_with_rate(write(tmp_path / "a.nwb", frames, **options)).frame_rate == (None if rate is None else pytest.approx(rate))


def test_series_and_planes_are_chosen_by_name(tmp_path: Path, frames: np.ndarray) -> None:
    path = write(tmp_path / "two.nwb", frames, name="green")
    volumes = np.random.default_rng(0).integers(0, 99, (5, 12, 17, 3)).astype(np.uint16)
    write(path, volumes, name="stack")
    with pytest.raises(InputError, match=r"2 TwoPhotonSeries.*Name one of: acquisition/green, acquisition/stack"):
        open_movie(path)
    np.testing.assert_array_equal(open_movie(path, "green").read(0, 20), frames)
    np.testing.assert_array_equal(open_movie(path, "/acquisition/green").read(0, 20), frames)
    with pytest.raises(InputError, match=r"volume of 3 planes.*acquisition/stack/plane 0, acquisition/stack/plane 1"):
        open_movie(path, "stack")
    np.testing.assert_array_equal(open_movie(path, "stack/plane 2").read(1, 4), volumes[1:4, :, :, 2])
    with pytest.raises(InputError, match="volume of 3 planes"):
        open_movie(path, "stack/plane 3")
    with pytest.raises(InputError, match="green has one plane"):
        open_movie(path, "green/plane 0")
    with pytest.raises(InputError, match="no TwoPhotonSeries 'red'"):
        open_movie(path, "red")


def test_frames_in_files_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nwb", None, external=["movie_1.tif", "movie_2.tif"])
    with pytest.raises(InputError, match=r"lie in movie_1.tif, movie_2.tif \(external_file\). Give those files"):
        open_movie(path)


def test_files_without_a_movie(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "none.nwb", "w") as file:
        file["processing/image_mask"] = np.zeros((3, 4, 5))
    with pytest.raises(InputError, match="has 0 TwoPhotonSeries"):
        open_movie(tmp_path / "none.nwb")
    (tmp_path / "empty.nwb").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read as an HDF5 file"):
        open_movie(tmp_path / "empty.nwb")


def test_a_file_that_is_open_for_writing(tmp_path: Path, frames: np.ndarray) -> None:
    path = write(tmp_path / "a.nwb", frames)
    holding = "import sys, h5py; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", holding, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        with pytest.raises(InputError, match=r"open for writing in another program. Wait until the recording has ended"):
            open_movie(path)
        program.communicate("")
    np.testing.assert_array_equal(open_movie(path).read(0, 20), frames)


def test_against_pynwb_and_roiextractors(tmp_path: Path, frames: np.ndarray) -> None:
    """A file written by pynwb; the frames that roiextractors reads from it."""
    pynwb = pytest.importorskip("pynwb", reason="pynwb is not installed")
    from pynwb.ophys import OpticalChannel, TwoPhotonSeries

    file = pynwb.NWBFile("a movie", "one", datetime(2026, 1, 12, tzinfo=UTC))
    device = file.create_device("microscope")
    plane = file.create_imaging_plane(
        name="plane",
        optical_channel=OpticalChannel(name="green", description="GCaMP6s", emission_lambda=510.0),
        description="layer 2/3",
        device=device,
        excitation_lambda=920.0,
        imaging_rate=12.5,
        indicator="GCaMP6s",
        location="V1",
        grid_spacing=[1.1e-6, 1.3e-6],
        grid_spacing_unit="meters",
    )
    file.add_acquisition(TwoPhotonSeries(name="movie", data=frames.transpose(0, 2, 1), imaging_plane=plane, rate=12.5, unit="counts"))
    path = tmp_path / "pynwb.nwb"
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    opened = open_nwb(path, None)
    assert (opened.frame_rate, opened.pixel_size) == (12.5, pytest.approx((1.3, 1.1)))
    np.testing.assert_array_equal(opened.read(0, 20), frames)
    extractors = pytest.importorskip("roiextractors", reason="roiextractors is not installed")
    other = extractors.NwbImagingExtractor(path, optical_series_name="movie")
    assert other.get_image_shape() == (opened.height, opened.width)
    np.testing.assert_array_equal(np.asarray(other.get_series(2, 7)).reshape(5, 12, 17), opened.read(2, 7))
    assert other.get_sampling_frequency() == opened.frame_rate
