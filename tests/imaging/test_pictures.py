"""Pictures: real PNG files, the same every time, also where there is nothing to show."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, simulate_plane
from PIL import Image

from sensorium_pipeline.imaging.extraction import extract_plane
from sensorium_pipeline.imaging.pictures import CAPTIONS, draw_all
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction

# Nothing is squeezed to nothing, and no range is empty, whatever there is to draw.
# Files that another test's library left open may be collected, with a warning, while one of these runs.
pytestmark = pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> PlaneExtraction:
    return extract_plane(
        simulate_plane([(15, 15), (30, 40), (44, 14)], (58, 56), 400).movie, frame_rate=RATE, scratch=tmp_path_factory.mktemp("s")
    )


def test_pictures_are_png_and_the_same_every_time(plane: PlaneExtraction) -> None:
    first, second = draw_all(plane), draw_all(plane)
    assert first == second
    assert set(first) == set(CAPTIONS)
    for name, picture in first.items():
        with Image.open(io.BytesIO(picture)) as image:
            assert image.format == "PNG", name
            assert min(image.size) > 200
            assert np.ptp(np.asarray(image.convert("L"))) > 100


def test_footprints_are_drawn(plane: PlaneExtraction) -> None:
    none = replace(plane, kept=np.zeros_like(plane.kept))
    assert draw_all(none)["cells.png"] != draw_all(plane)["cells.png"]


def test_a_plane_without_cells_has_pictures(tmp_path: Path) -> None:
    empty = extract_plane(simulate_plane([], (50, 50), 200).movie, frame_rate=RATE, scratch=tmp_path)
    assert all(picture.startswith(b"\x89PNG") for picture in draw_all(empty).values())


def test_flagged_frames_and_missing_samples(plane: PlaneExtraction) -> None:
    flagged = np.zeros(len(plane.flagged), bool)
    flagged[20:] = True
    lost = np.where(flagged, np.nan, plane.dff).astype(np.float32)
    draw_all(replace(plane, flagged=flagged, dff=lost, activity=lost))
    nothing = np.empty(0, np.float32)
    draw_all(replace(plane, residual_frame=nothing, residual_shifts=np.empty((0, 1, 1, 2), np.float32), brightness=nothing,
                     sampled_frame=nothing, group_mean=nothing, group_variance=nothing, pixel_size=0.8))  # fmt: skip
    draw_all(replace(plane, flagged=~np.zeros_like(flagged), dff=lost * np.nan, activity=lost * np.nan))


@pytest.mark.parametrize("shape", [(16, 300), (300, 16)])
def test_fields_of_any_shape(shape: tuple[int, int], plane: PlaneExtraction) -> None:
    image = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)
    images = dict.fromkeys(("mean_before", "mean_after", "max_before", "max_after"), image)
    empty = {name: getattr(plane, name)[:0] for name in ("footprint_neuron", "footprint_pixel", "footprint_weight")}
    for picture in draw_all(replace(plane, **images, **empty)).values():
        with Image.open(io.BytesIO(picture)) as drawn:
            assert drawn.height > 60
            assert drawn.width > 400  # titles beside each other are not written over each other
