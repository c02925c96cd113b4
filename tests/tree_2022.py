"""A small file tree as SENSORIUM 2022 released one, and the two CSV files of a submission of that time."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.generic]


def write_tree(
    folder: Path,
    *,
    animal: int = 26872,
    neurons: int = 12,
    positions: NDArray[np.float32] | None = None,
    test_images: Mapping[int, NDArray[np.uint8]] | None = None,
    training: int = 12,
    repeats: int = 3,
    hashed: bool = True,
    zero_hidden: bool = False,
    seed: int = 0,
) -> Path:
    """Write a tree: random responses and training images, `test_images` (by id; four random ones where left out) in both test tiers."""
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(0, 256, (144, 256), dtype=np.uint8)  # noqa: E731
    tested = dict(test_images) if test_images is not None else {500 + number: draw() for number in range(4)}
    images = {number: draw() for number in range(1, training + 4)} | tested
    ids = list(range(1, training + 4)) + [image for image in tested for _ in range(repeats)]
    live = set(list(tested)[: (len(tested) + 1) // 2])
    tier = {image: "train" if image <= training else "validation" for image in range(1, training + 4)}
    tier |= {image: "test" if image in live else "final_test" for image in tested}
    order = rng.permutation(len(ids))
    image_id = np.array(ids)[order]
    trials = len(image_id)
    gaps = np.sort(rng.choice(np.arange(1, 4 * neurons), neurons, replace=False))
    where = positions if positions is not None else rng.uniform(-300, 300, (neurons, 3)).astype(np.float32)
    names = np.array([f"{int.from_bytes(rng.bytes(16)):032x}" for _ in range(trials)]) if hashed else rng.permutation(trials)
    tables: dict[str, Array] = {
        "neurons/unit_ids": gaps,
        "neurons/cell_motor_coordinates": where,
        "neurons/animal_ids": np.full(neurons, animal),
        "neurons/sessions": np.full(neurons, 17),
        "neurons/scan_idx": np.full(neurons, 20),
        "neurons/area": np.full(neurons, "V1"),
        "trials/tiers": np.array([tier[int(image)] for image in image_id]),
        "trials/frame_image_id": image_id,
        "trials/trial_idx": names,
        # The table that was forgotten in 2022.
        "trials/frame_trial_ts": np.array(["2022-01-01"] * trials),
    }
    for name, table in tables.items():
        save(folder / f"meta/{name}.npy", table)
    for trial, image in enumerate(image_id):
        hidden = zero_hidden and tier[int(image)] in ("test", "final_test")
        response = rng.gamma(2, 1, neurons).astype(np.float32) * (0 if hidden else 1)
        save(folder / f"data/images/{trial}.npy", images[int(image)][None])
        save(folder / f"data/responses/{trial}.npy", response)
        save(folder / f"data/behavior/{trial}.npy", rng.gamma(3, 2, 3))
        save(folder / f"data/pupil_center/{trial}.npy", rng.normal(200, 10, 2))
    return folder


def save(path: Path, table: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, table)


def write_csv(
    path: Path, names: NDArray[np.str_], image_id: NDArray[np.int64], prediction: NDArray[np.float32], unit_id: NDArray[np.int64]
) -> None:
    """One file as the tutorial of 2022 wrote it."""
    columns = {"trial_indices": names, "image_ids": image_id, "prediction": prediction.tolist()}
    pd.DataFrame({**columns, "neuron_ids": [unit_id.tolist()] * len(names)}).to_csv(path, index=False)
