"""Images from files, and responses to files, for `sensorium predict`."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sensorium_pipeline.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def read_images(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Grey images with values 0..255.

    Args:
        path: .npy (images, y, x), one picture, or a folder of pictures of one size.

    Returns:
        Their names (stems, or numbers), and the pixels (images, y, x).

    Raises:
        InputError: the path holds no such images.
    """
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"not a readable .npy file ({error})", where=path, advice="Save it with numpy.save.") from error
        if array.ndim != 3 or array.dtype.kind not in "uif" or not array.size:
            raise InputError(f"{array.dtype} of shape {array.shape}", where=path, advice="Give grey values of shape (images, y, x).")
        lowest, highest = float(array.min()), float(array.max())
        # Floats from 0 to 1 are another convention: to a model they would all be black.
        if not (0 <= lowest <= highest <= 255) or (array.dtype.kind == "f" and 0 < highest <= 1):
            advice = "Give grey values from 0 (black) to 255 (white)."
            raise InputError(f"its values go from {lowest:g} to {highest:g}", where=path, advice=advice)
        return [str(number) for number in range(len(array))], array.astype(np.float32)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise InputError("the folder holds no pictures", where=path, advice=f"Known are {', '.join(PICTURES)}.")
    else:
        files = [path]
    pictures = [_read_picture(file) for file in files]
    odd = next((file for file, picture in zip(files, pictures, strict=True) if picture.shape != pictures[0].shape), None)
    if odd is not None:
        raise InputError("the picture has another size than the first one", where=odd, advice="Give pictures of one size.")
    return [file.stem for file in files], np.stack(pictures)


def write_responses(path: Path, names: list[str], unit_id: NDArray[np.int64], responses: NDArray[np.float32]) -> None:
    """Write image_name (images,), unit_id (neurons,) and prediction (images, neurons) as .npz; it appears whole or not at all."""
    if path.suffix != ".npz":
        raise InputError("the result is a .npz file", where=path, advice="Give a name that ends in .npz.")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, image_name=np.array(names), unit_id=unit_id, prediction=responses)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path, advice="Choose a folder that is writable.") from error


def _read_picture(file: Path) -> NDArray[np.float32]:
    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")):
                # Pillow would make everything above 255 white.
                raise InputError(f"a picture of more than 8 bits ({picture.mode})", where=file, advice="Give 8-bit grey pictures.")
            return np.asarray(picture.convert("L"), np.float32)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"not a readable picture ({error})", where=file, advice="Give 8-bit grey pictures.") from error
