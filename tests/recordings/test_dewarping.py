"""Resonant scans: the mirror's sweep is undone, in simulated lines exactly and in real frames as the Allen Institute does it."""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import open_movie
from sensorium_pipeline.recordings.dewarping import DewarpedMovie, dewarped_width, dewarping_matrix
from sensorium_pipeline.recordings.geometry import PlaneGeometry
from sensorium_pipeline.recordings.scan_fields import ScanField
from sensorium_pipeline.recordings.scanimage import open_scanimage
from sensorium_pipeline.recordings.scanimage_writer import ScanImageWriter, WrittenField, fields_text, header_text


@dataclass(frozen=True)
class Held:
    data: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.data)

    @property
    def height(self) -> int:
        return self.data.shape[1]

    @property
    def width(self) -> int:
        return self.data.shape[2]

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.data[start:stop].copy()


def scanned(tissue, width: int, fill: float) -> np.ndarray:
    """Mean of a function of the place (-1..1 in the line) over the time of each of `width` pixels."""
    time = (np.arange(width * 64) + 0.5) / (width * 64) * 2 - 1
    angle = math.pi / 2 * fill
    return tissue(np.sin(angle * time) / math.sin(angle)).reshape(width, 64).mean(1)


@pytest.mark.parametrize("fill", [0.3, 0.55, 0.713, 0.9])
@pytest.mark.parametrize("width", [64, 512, 511])
def test_a_swept_grating_becomes_even(fill: float, width: int) -> None:
    def tissue(x: np.ndarray) -> np.ndarray:
        return 100 + 30 * np.sin(2 * np.pi * width / 85 * x)

    weights = dewarping_matrix(width, fill)
    new = len(weights)
    assert new == dewarped_width(width, fill) <= width
    centers = (np.arange(new) + 0.5) / new * 2 - 1
    # Pixels at the ends of the old line are finer than the new ones, those in its middle as fine.
    np.testing.assert_allclose(weights @ scanned(tissue, width, fill), tissue(centers), atol=0.03 * 30)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)  # a flat field stays flat
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-5)


def test_real_frames(test_data: Path) -> None:
    """Five frames and the Allen Institute's version of them: everywhere along the line ours agrees, and the raw frames do not."""
    folder = test_data / "twophoton/movies"
    raw = open_movie(folder / "dewarping_regression_test_input.h5")
    theirs = open_movie(folder / "dewarping_regression_test_output.h5").read(0, 5).astype(float)
    movie = DewarpedMovie(raw, 0.55)
    assert (movie.frames, movie.height, movie.width, movie.dtype) == (5, 512, theirs.shape[2], np.uint16)
    ours, before = movie.read(0, 5).astype(float), raw.read(0, 5).astype(float)

    def apart(frames: np.ndarray) -> list[tuple[int, float]]:
        """Where along the line each window of their frames is found in other frames, and how alike it is."""
        image, their_image = (gaussian_filter(item.mean(0), 1.0) for item in (frames, theirs))
        found = []
        for start in range(0, theirs.shape[2] - 63, 43):
            window = their_image[:, start : start + 64].ravel()
            places = [place for place in range(start - 12, start + 13) if 0 <= place <= image.shape[1] - 64]
            alike = [float(np.corrcoef(image[:, place : place + 64].ravel(), window)[0, 1]) for place in places]
            found.append((abs(places[int(np.argmax(alike))] - start), max(alike)))
        return found

    assert max(shift for shift, _ in apart(ours)) <= 3
    assert min(alike for _, alike in apart(ours)) > 0.75
    assert min(alike for _, alike in apart(before[:, :, 30:-31])) < 0.5
    assert ours.mean() == pytest.approx(before.mean(), rel=0.01)


def test_integers_are_rounded_and_movies_pickle() -> None:
    data = np.random.default_rng(0).integers(-500, 3000, (3, 8, 40)).astype(np.int16)
    movie = pickle.loads(pickle.dumps(DewarpedMovie(Held(data), 0.7)))
    expected = data.astype(np.float64) @ dewarping_matrix(40, 0.7).T.astype(np.float64)
    assert movie.read(1, 3).dtype == np.int16
    assert np.abs(movie.read(1, 3) - expected[1:3]).max() <= 0.5 + 1e-3
    np.testing.assert_allclose(DewarpedMovie(Held(data.astype(np.float32)), 0.7).read(0, 3), expected, rtol=1e-4, atol=1e-2)
    for fill in (0.0, 1.0, -0.2):
        with pytest.raises(ValueError, match="part of the half period"):
            dewarping_matrix(40, fill)


def test_a_dewarped_field_stays_where_it_was() -> None:
    field = ScanField(0, 0, 50, 60, 0.0, (2.0, 1.5), (10.0, -30.0), 30.0)
    swept = field.swept(0.7)
    width = dewarped_width(60, 0.7)
    places = [
        PlaneGeometry(depth=0, pixel_size=item.pixel_size, corner=item.corner, rotation=item.rotation).positions(
            np.array([[24.5, (n - 1) / 2]])
        )
        for item, n in ((field, 60), (swept, width))
    ]
    np.testing.assert_allclose(*places, atol=1e-9)
    assert swept.pixel_size[1] * width == pytest.approx(1.5 * 60)


@pytest.mark.parametrize(
    ("mode", "uniform", "asked", "dewarped"),
    [
        ("'resonant'", "1", None, True),
        ("'resonant'", "0", None, False),  # ScanImage has done it
        ("'linear'", "1", None, False),
        ("'resonant'", "1", False, False),
        ("'resonant'", "0", True, True),
    ],
)
def test_the_header_says_whether_to_dewarp(tmp_path: Path, mode: str, uniform: str, asked: bool | None, dewarped: bool) -> None:
    field = WrittenField(12, 60)
    header = header_text(
        fields=[field],
        channels=[1],
        planes=1,
        frames_per_volume=1,
        depths=[100],
        volume_rate=30.0,
        line_period=1e-4,
        bidirectional=True,
        pixel_size=1.0,
        volumes=5,
    )
    header = header.replace("uniformSampling = 0", f"uniformSampling = {uniform}\nSI.hScan2D.scanMode = {mode}")
    header = header.replace("fillFractionTemporal = 0.9", "fillFractionTemporal = 0.712867")
    frames = np.random.default_rng(1).integers(0, 999, (5, 12, 60)).astype(np.int16)
    with ScanImageWriter(tmp_path, "scan", (12, 60), header, fields_text([field], 1.0), pages_per_file=10) as writer:
        writer.write(frames, np.arange(5) / 30)
    recording = open_scanimage([tmp_path / "scan_00001.tif"], dewarp=asked)
    movie, size = recording.plane(0), recording.header.fields[0].pixel_size
    if not dewarped:
        np.testing.assert_array_equal(movie.read(0, 5), frames)
        assert size == pytest.approx((1.0, 1.0))
        return
    np.testing.assert_array_equal(movie.read(0, 5), DewarpedMovie(Held(frames), 0.712867).read(0, 5))
    assert movie.width == 48
    assert size == pytest.approx((1.0, 60 / 48))
    path = tmp_path / "scan_00001.tif"
    path.write_bytes(path.read_bytes().replace(b"fillFractionTemporal = 0.712867", b"fillFractionTemporal = 1.712867"))
    with pytest.raises(InputError, match=r"fillFractionTemporal is 1.71287"):
        open_scanimage([path], dewarp=asked)
