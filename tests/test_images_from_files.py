"""Images for a digital twin: grey values from 0 to 255 or a refusal, never another scale taken for one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.pictures import read_images


def test_arrays_pictures_and_folders_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 20)).astype(np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    (tmp_path / "folder").mkdir()
    for name, picture in zip("ab", pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / "folder" / f"{name}.png")
    names, array = read_images(tmp_path / "images.npy")
    assert names == ["0", "1"]
    np.testing.assert_array_equal(array, pixels)
    names, folder = read_images(tmp_path / "folder")
    assert names == ["a", "b"]
    np.testing.assert_array_equal(folder, pixels)
    np.testing.assert_array_equal(read_images(tmp_path / "folder" / "b.png")[1], pixels[1:])


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.linspace(0, 1, 40).reshape(1, 5, 8), "from 0 to 1"),
        (np.full((1, 5, 8), 60000, np.uint16), "to 60000"),
        (np.full((1, 5, 8), -3.0), "from -3"),
        (np.full((1, 5, 8), np.nan), "nan"),
        (np.zeros((0, 5, 8)), "shape"),
        (np.zeros((2, 0, 8)), "shape"),
        (np.zeros((5, 8)), "shape"),
    ],
)
def test_arrays_on_another_scale_are_refused(tmp_path: Path, array: np.ndarray, problem: str) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(InputError, match=problem):
        read_images(tmp_path / "images.npy")


def test_a_black_image_is_an_image(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((1, 5, 8)))
    assert not read_images(tmp_path / "images.npy")[1].any()


def test_pictures_of_16_bits_are_refused_and_not_made_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 8), 30000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="more than 8 bits"):
        read_images(tmp_path / "deep.png")
