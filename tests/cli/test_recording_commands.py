"""Commands on movies and traces: a real movie, a tiny HDF5 file, traces from elsewhere."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from command_line import assert_one_error


@pytest.fixture
def tiny_movie(tmp_path: Path) -> Path:
    """Two blinking cells on a noisy background, in a file with two datasets."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :48]
    activity = np.zeros((2, 400))
    activity[0, 30::70] = activity[1, 60::70] = 1
    kernel = np.exp(-np.arange(40) / 8)
    calcium = np.stack([np.convolve(trace, kernel)[:400] for trace in activity])
    cells = np.stack([np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 12) for y, x in ((16, 14), (32, 33))])
    movie = 60 + 40 * cells.sum(0) + 150 * np.einsum("ct,cyx->tyx", calcium, cells)
    path = tmp_path / "tiny.h5"
    with h5py.File(path, "w") as file:
        file["imaging/movie"] = generator.poisson(movie).astype(np.int16)
        file["imaging/other"] = np.zeros((5, 48, 48), np.int16)
    return path


def test_extract_a_real_movie(sensorium, test_data: Path, tmp_path: Path) -> None:
    movie, out = test_data / "twophoton/movies/thunder_mouse_64x64x500.tif", tmp_path / "out"
    said = sensorium("extract", movie, out, "--frame-rate", "8", "--json")
    assert said.code == 0, said.error
    metrics = json.loads(said.out)
    assert metrics["frames"] == 500
    assert metrics["kept_cells"] >= 1
    with xr.open_zarr(out / "extraction.zarr") as data:
        assert data.attrs["movie"] == movie.name
        assert data.sizes["frame"] == 500
    report = (out / "report.md").read_text()
    assert movie.name in report
    pictures = [line.split("](")[1].rstrip(")") for line in report.splitlines() if line.startswith("![")]
    assert pictures
    assert all((out / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1.5", "0.0013", "1300", "1e-300"])
def test_a_pixel_size_that_is_none(sensorium, tiny_movie: Path, tmp_path: Path, size: str) -> None:
    options = ("--frame-rate", "10", "--dataset", "imaging/movie", "--pixel-size", size)
    assert_one_error(sensorium("extract", tiny_movie, tmp_path / "out", *options), "pixel_size", "micrometres")


def test_a_raw_session_is_no_movie(sensorium, tmp_path: Path) -> None:
    (tmp_path / "raw" / "scans").mkdir(parents=True)
    assert_one_error(sensorium("extract", tmp_path / "raw", tmp_path / "out", "--frame-rate", "10"), "raw", "scans/")


def test_extract_a_dataset_of_an_hdf5_file(sensorium, tiny_movie: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = sensorium("extract", tiny_movie, out, "--frame-rate", "10")
    assert_one_error(said, str(tiny_movie), "imaging/movie", "imaging/other")
    assert not out.exists()
    said = sensorium("extract", tiny_movie, out, "--frame-rate", "10", "--dataset", "imaging/movie", "--pixel-size", "1.5")
    assert said.code == 0, said.error
    with xr.open_zarr(out / "extraction.zarr") as data:
        centroids = np.asarray(data["centroids"])
        np.testing.assert_allclose(data["position"], 1.5 * centroids[:, ::-1], rtol=1e-6)
        assert data["position"].attrs["units"] == "um"
        assert [name for name, array in data.variables.items() if not {"units", "long_name"} <= set(array.attrs)] == []
        assert "NaN in flagged frames" in data["activity"].attrs["long_name"]
        assert (np.diff(data["detection_snr"]) <= 0).all()
    for cell in ((16, 14), (32, 33)):
        assert np.linalg.norm(centroids - cell, axis=1).min() < 2
    again = sensorium("extract", tiny_movie, out, "--frame-rate", "10", "--dataset", "imaging/movie")
    assert_one_error(again, str(out), "something lies there already", "Name a new folder")


def test_extract_with_a_segmenter_that_is_not_there(sensorium, tiny_movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENSORIUM_SUITE2P_PYTHON", raising=False)
    options = ["--frame-rate", "10", "--dataset", "imaging/movie", "--segmenter"]
    assert_one_error(sensorium("extract", tiny_movie, tmp_path / "out", *options, "suite2p"), "SENSORIUM_SUITE2P_PYTHON", "pip install")
    assert [path.name for path in tmp_path.iterdir()] == [tiny_movie.name]


def test_deconvolve(sensorium, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    spikes = generator.random((3, 600)) < 0.03
    kernel = np.exp(-np.arange(60) / 10)
    dff = np.stack([np.convolve(each, kernel)[:600] for each in spikes]) + generator.normal(0, 0.05, (3, 600))
    np.save(tmp_path / "dff.npy", dff.astype(np.float32))
    out = tmp_path / "activity.npy"
    said = sensorium("deconvolve", tmp_path / "dff.npy", out, "--frame-rate", "10", "--json")
    assert said.code == 0, said.error
    summary = json.loads(said.out)
    assert (summary["neurons"], summary["frames"]) == (3, 600)
    assert 0.04 < summary["median_noise"] < 0.08
    assert 0.6 < summary["median_decay"] < 1.4
    assert summary["median_rise"] < 0.05
    assert summary["warning"] is None
    activity = np.load(out)
    assert activity.shape == (3, 600)
    assert activity.min() >= 0
    assert min(np.corrcoef(found, true)[0, 1] for found, true in zip(activity, spikes, strict=True)) > 0.7


def test_deconvolve_warns_of_a_transposed_table(sensorium, tmp_path: Path) -> None:
    dff = np.random.default_rng(0).normal(2e6, 1, (300, 20))
    np.save(tmp_path / "dff.npy", dff)
    said = sensorium("deconvolve", tmp_path / "dff.npy", tmp_path / "activity.npy", "--frame-rate", "10", "--json")
    assert said.code == 0, said.error
    assert "transposed" in said.error
    summary = json.loads(said.out)
    assert "transposed" in summary["warning"]
    assert 0.5 < summary["median_noise"] < 1.5  # a large offset does not take the precision
    assert np.load(tmp_path / "activity.npy").shape == (300, 20)


def test_deconvolve_says_that_traces_show_nothing(sensorium, tmp_path: Path) -> None:
    dff = np.random.default_rng(0).normal(size=(3, 200))
    dff[0], dff[1] = 7.0, np.nan
    np.save(tmp_path / "dff.npy", dff)
    said = sensorium("deconvolve", tmp_path / "dff.npy", tmp_path / "activity.npy", "--frame-rate", "10", "--json")
    assert said.code == 0
    assert 0.5 < json.loads(said.out)["median_noise"] < 1.5
    assert "2 of 3 traces are constant or NaN" in said.error
    activity = np.load(tmp_path / "activity.npy")
    assert (activity[0] == 0).all()
    assert np.isnan(activity[1]).all()


def test_deconvolve_works_in_blocks_of_neurons(sensorium, tmp_path: Path) -> None:
    """One long file gives what its parts give, whatever the order of its bytes, and an error names the neurons."""
    dff = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32)
    np.save(tmp_path / "dff.npy", np.asfortranarray(dff))
    np.save(tmp_path / "last.npy", dff[280:])
    for name in ("dff", "last"):
        assert sensorium("deconvolve", tmp_path / f"{name}.npy", tmp_path / f"{name}-activity.npy", "--frame-rate", "10").code == 0
    assert np.array_equal(np.load(tmp_path / "dff-activity.npy")[280:], np.load(tmp_path / "last-activity.npy"))
    dff[270, 3] = np.inf
    np.save(tmp_path / "infinite.npy", dff)
    said = sensorium("deconvolve", tmp_path / "infinite.npy", tmp_path / "none.npy", "--frame-rate", "10")
    assert_one_error(said, "neurons 256 to 299", "infinity")
    assert not (tmp_path / "none.npy").exists()


def test_simulate_a_recording_and_look_at_it(sensorium, tmp_path: Path) -> None:
    out = tmp_path / "raw"
    arguments = ["--planes", "1", "--neurons", "3", "--size", "48", "--images", "10", "--animal", "42"]
    assert sensorium("simulate-recording", out, *arguments).code == 0
    summary = json.loads(sensorium("inspect", out, "--json").out)
    assert (summary["name"], summary["role"], summary["images"]["single"]) == ("42-1-1", "open", 10)
    assert_one_error(sensorium("simulate-recording", out, *arguments), str(out))
    assert_one_error(sensorium("simulate-recording", tmp_path / "other", "--role", "competition"), "track")
    assert not (tmp_path / "other").exists()


def test_pixels_that_are_not_square(sensorium, tiny_movie: Path, tmp_path: Path) -> None:
    with h5py.File(tiny_movie) as file:
        array = zarr.create_array(str(tmp_path / "movie.zarr"), data=file["imaging/movie"][:])
    array.attrs.update({"frame_rate": 10, "pixel_size": [1.0, 2.25]})
    said = sensorium("extract", tmp_path / "movie.zarr", tmp_path / "out", "--json")
    assert said.code == 0, said.error
    with xr.open_zarr(tmp_path / "out" / "extraction.zarr") as data:
        np.testing.assert_allclose(data["position"], np.asarray(data["centroids"])[:, ::-1] * [2.25, 1.0], rtol=1e-6)
        assert data.attrs["pixel_size"] == 1.5  # of a square of the same area, by which cells are judged


def test_extract_takes_the_frame_rate_from_the_file(sensorium, tiny_movie: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_one_error(sensorium("extract", tiny_movie, out, "--dataset", "imaging/movie"), str(tiny_movie), "--frame-rate")
    path = tmp_path / "tiny.nwb"
    with h5py.File(tiny_movie) as movie, h5py.File(path, "w") as file:
        series = file.create_group("acquisition/TwoPhotonSeries")
        series.attrs["neurodata_type"] = "TwoPhotonSeries"
        series["data"] = movie["imaging/movie"][:].transpose(0, 2, 1)  # frame, x, y
        series["starting_time"] = 0.0
        series["starting_time"].attrs["rate"] = 10.0
    said = sensorium("extract", path, out)
    assert said.code == 0, said.error
    with xr.open_zarr(out / "extraction.zarr") as data:
        centroids = np.asarray(data["centroids"])
    for cell in ((16, 14), (32, 33)):
        assert np.linalg.norm(centroids - cell, axis=1).min() < 2
    assert "10 frames/s" in (out / "report.md").read_text()
