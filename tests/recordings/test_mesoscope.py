"""Scans of several fields of view: cut from their tall pages, placed in the tissue and in time."""

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings import SimulationParameters, open_session, simulate_recording, truth_folder
from sensorium_pipeline.recordings.geometry import PlaneGeometry
from sensorium_pipeline.recordings.scan_fields import lay_out_fields
from sensorium_pipeline.recordings.scanimage import ScanImageRecording, open_scanimage
from sensorium_pipeline.recordings.scanimage_writer import (
    FLY_TO_LINES,
    UM_PER_DEGREE,
    ScanImageWriter,
    WrittenField,
    fields_text,
    header_text,
    page_shape,
)

FIELDS = (WrittenField(20, 16, (50.0, -300.0)), WrittenField(14, 18, (0.0, 0.0)), WrittenField(17, 12, (-40.0, 310.0)))
PIXEL = 2.0
VOLUMES, DEPTHS, PER_VOLUME, CHANNELS = 7, 2, 3, 2
SHAPE = page_shape(FIELDS)


def write(folder: Path, frames: np.ndarray, fields: str | None = None, **changes: object) -> list[Path]:
    options: dict = {
        "fields": FIELDS,
        "channels": [1, 3],
        "planes": DEPTHS,
        "frames_per_volume": PER_VOLUME,
        "depths": [180, 240],
        "volume_rate": 5.0,
        "line_period": 1e-3,
        "bidirectional": True,
        "pixel_size": PIXEL,
        "volumes": VOLUMES,
    } | changes
    text = fields if fields is not None else fields_text(FIELDS, PIXEL)
    folder.mkdir(exist_ok=True)
    with ScanImageWriter(folder, "scan", SHAPE, header_text(**options), text, pages_per_file=20, channels=CHANNELS) as writer:
        writer.write(frames.reshape(-1, *SHAPE), np.repeat(np.arange(VOLUMES * PER_VOLUME) / 15.0, CHANNELS))
    return sorted(folder.glob("*.tif"))


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(2).integers(-300, 3000, (VOLUMES, PER_VOLUME, CHANNELS, *SHAPE)).astype(np.int16)


def test_fields_are_cut_from_their_pages(tmp_path: Path, frames: np.ndarray) -> None:
    recording = open_scanimage(write(tmp_path, frames))
    assert len(recording.header.fields) == DEPTHS * len(FIELDS)
    index = 0
    for depth in range(DEPTHS):
        line = 0
        for field in FIELDS:
            for channel in range(CHANNELS):
                movie = recording.plane(index, channel)
                assert (movie.frames, movie.height, movie.width) == (VOLUMES, field.height, field.width)
                expected = frames[:, depth, channel, line : line + field.height, : field.width]
                np.testing.assert_array_equal(movie.read(0, VOLUMES), expected)
                np.testing.assert_array_equal(movie.read(3, 4), expected[3:4])
            line += field.height + FLY_TO_LINES
            index += 1
    with pytest.raises(InputError, match="plane 6, channel 0 was asked for, and there are 6 and 2"):
        recording.plane(6)


def test_fields_lie_where_scanimage_says(tmp_path: Path, frames: np.ndarray) -> None:
    """Against ScanImage's own transform of pixels, which counts from one."""
    recording = open_scanimage(write(tmp_path, frames))
    rois = json.loads(fields_text(FIELDS, PIXEL))["RoiGroups"]["imagingRoiGroup"]["rois"]
    points = np.array([[0, 0], [3.5, 7.25], [12, 1]])
    for index, field in enumerate(recording.header.fields):
        assert field.pixel_size is not None
        geometry = PlaneGeometry(depth=field.depth, pixel_size=field.pixel_size, corner=field.corner, rotation=field.rotation)
        transform = np.array(rois[index % 3]["scanfields"]["pixelToRefTransform"])
        expected = (transform @ np.column_stack([points[:, 1] + 1, points[:, 0] + 1, np.ones(3)]).T)[:2].T * UM_PER_DEGREE
        np.testing.assert_allclose(geometry.positions(points)[:, :2], expected, atol=1e-6)
        assert geometry.depth == (180, 240)[index // 3]
    assert recording.header.fields[0].pixel_size == pytest.approx((PIXEL, PIXEL))


def roi(
    pixels: Sequence[int] = (64, 100),
    center: Sequence[float] = (0, 0),
    size: Sequence[float] = (2, 3),
    rotation: float = 0,
    zs: object = 0,
    discrete: int = 0,
    enable: int = 1,
) -> dict:
    field = {"pixelResolutionXY": pixels, "centerXY": center, "sizeXY": size, "rotationDegrees": rotation}
    return {"zs": zs, "scanfields": field, "discretePlaneMode": discrete, "enable": enable}


def lay_out(
    rois: list[dict] | dict, lines: int, zs: Sequence[float | None] = (0.0,), fly_to: float | None = 10.0, um: float = 100.0
) -> tuple:
    text = json.dumps({"RoiGroups": {"imagingRoiGroup": {"rois": rois}}})
    return lay_out_fields(text, zs, (lines, 64), um, fly_to, Path("scan.tif"))


def test_a_turned_field() -> None:
    (field,) = lay_out(roi(center=(1, 2), rotation=90), 100)
    geometry = PlaneGeometry(depth=0, pixel_size=field.pixel_size, corner=field.corner, rotation=field.rotation)
    middle = geometry.positions(np.array([[49.5, 31.5]]))
    np.testing.assert_allclose(middle, [[100, 200, 0]], atol=1e-9)
    right = geometry.positions(np.array([[49.5, 32.5]])) - middle  # ScanImage turns the x axis towards the y axis
    np.testing.assert_allclose(right, [[0, 200 / 64, 0]], atol=1e-9)


def test_regions_at_some_depths_only() -> None:
    """Through all depths, tied to one depth, and between two depths; a disabled region is not scanned."""
    between = {
        "zs": [10, 30],
        "discretePlaneMode": 0,
        "scanfields": [roi(pixels=(60, 40), center=(0, 0))["scanfields"], roi(pixels=(64, 50), center=(4, 0))["scanfields"]],
    }
    rois = [roi(), roi(zs=20, discrete=1, pixels=(32, 30)), between, roi(enable=0)]
    fields = lay_out(rois, 100 + 10 + 30 + 10 + 44, zs=(10, 20, 40))
    assert [(field.slice, field.first_line, field.height, field.width) for field in fields] == [
        (0, 0, 100, 64),
        (0, 110, 40, 60),
        (1, 0, 100, 64),
        (1, 110, 30, 32),
        (1, 150, 44, 62),
        (2, 0, 100, 64),
    ]
    assert fields[4].corner[1] == pytest.approx(200 - 100 * 61 / 62)


@pytest.mark.parametrize(
    ("heights", "lines", "fly_to", "first"),
    [
        ([464] * 9, 5152, 122.0003, [586 * n for n in range(9)]),  # a real mesoscope scan
        ([464] * 9, 5152, None, [586 * n for n in range(9)]),
        ([224, 224], 464, 15.84, [0, 240]),  # rounded to the nearest line
        ([224, 224], 464, 15.2, [0, 240]),  # rounded up
        ([20, 15], 46, 10.0, [0, 30]),  # a line that makes the number of lines even
        ([30, 20, 10], 100, 3.0, [0, 50, 90]),  # the times are wrong, what is left is shared
    ],
)
def test_lines_between_fields(heights: list[int], lines: int, fly_to: float | None, first: list[int]) -> None:
    fields = lay_out([roi(pixels=(64, height)) for height in heights], lines, fly_to=fly_to)
    assert [field.first_line for field in fields] == first


@pytest.mark.parametrize(
    ("rois", "lines", "message"),
    [
        ([roi(pixels=(64, 30)), roi(pixels=(64, 30)), roi(pixels=(64, 30))], 113, "do not fill"),
        ([roi(pixels=(64, 60)), roi(pixels=(64, 60))], 90, r"fields of 60 \+ 60 lines"),
        ([roi(pixels=(80, 50))], 50, "80 pixels wide"),
        ([roi(zs=7, discrete=1)], 100, "no region of interest is scanned"),
        ([], 100, "no region"),
        ([roi(enable=0)], 100, "no region"),
        ([roi(pixels=(64.5, 50))], 100, "cannot be read"),
        ([roi(pixels=(64, 0))], 100, "cannot be read"),
        ([roi(size=(0, 1))], 100, "cannot be read"),
        ([roi(center=(float("inf"), 1))], 100, "cannot be read"),
        ([roi(zs=[1, 2])], 100, "cannot be read"),
        ([{"zs": 0}], 100, "cannot be read"),
        (["text"], 100, "cannot be read"),
        ({"zs": None, "scanfields": None}, 100, "cannot be read"),
    ],
)
def test_regions_that_make_no_sense(rois: list, lines: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        lay_out(rois, lines)
    assert caught.value.where == "scan.tif"
    assert caught.value.advice


def test_headers_that_do_not_say_enough(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="RoiGroups in the Artist tag"):
        open_scanimage(write(tmp_path / "a", frames, fields="no json"))
    files = write(tmp_path / "b", frames)
    raw = files[0].read_bytes()
    files[0].write_bytes(raw.replace(b"SI.objectiveResolution = 157.5", b"SI.objectiveResolutiom = 157.5"))
    with pytest.raises(InputError, match=r"lacks SI\.objectiveResolution"):
        open_scanimage(files)


@pytest.fixture(scope="module")
def mesoscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mesoscope") / "raw"
    parameters = SimulationParameters(
        single_images=12, test_images=2, repeats=2, height=56, width=60, fields=3, planes=2, neurons_per_plane=4, flyback_frames=1
    )
    simulate_recording(out, parameters)
    return out


def test_a_simulated_mesoscope_session(mesoscope: Path) -> None:
    session = open_session(mesoscope)
    assert session.planes == 6
    assert [(movie.height, movie.width) for movie in session.movies[:3]] == [(56, 60), (52, 54), (48, 60)]
    with h5py.File(truth_folder(mesoscope) / "truth.h5") as truth:
        plane, center = truth["neurons/plane"][:], truth["neurons/center"][:]
        for k in range(6):
            assert truth[f"planes/{k}/footprints"].shape[1:] == (session.plane(k).height, session.plane(k).width)
            found = session.description.planes[k].positions(center[plane == k])
            np.testing.assert_allclose(found, truth["neurons/position"][:][plane == k], atol=1e-6)
            delays = session.plane_delays[k] + center[plane == k, 0] * session.line_period
            np.testing.assert_allclose(delays, truth["neurons/delay"][:][plane == k], atol=2e-4)  # the clock's samples
        # The brain is where the truth says: each field shows its own cells.
        correlations: list[float] = []
        for k in range(6):
            movie = session.plane(k).read(0, session.volumes).astype(float)
            shifts = np.rint(truth[f"planes/{k}/shifts"][:]).astype(int)
            still = np.stack([np.roll(frame, tuple(-shift), (0, 1)) for frame, shift in zip(movie, shifts, strict=True)])
            traces = np.tensordot(truth[f"planes/{k}/footprints"][:], still, axes=([1, 2], [1, 2]))
            correlations += [np.corrcoef(a, b)[0, 1] for a, b in zip(traces, truth[f"planes/{k}/dff"][:], strict=True)]
        assert np.median(correlations) > 0.6


def test_reading_touches_only_the_fields_own_lines(mesoscope: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    session = open_session(mesoscope)
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, offset: read.append(count) or pread(file, count, offset))
    session.plane(1).read(0, 10)
    recording = session.plane(1)
    assert sum(read) == 10 * recording.height * 60 * 2


def test_recordings_pickle(mesoscope: Path) -> None:
    import pickle

    movie = pickle.loads(pickle.dumps(open_session(mesoscope).plane(4)))
    assert movie.read(0, 2).shape == (2, 52, 54)
    assert isinstance(open_scanimage(sorted((mesoscope / "scans").glob("*.tif"))), ScanImageRecording)
