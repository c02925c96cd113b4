"""Descriptions of small sessions, and the organisers' checkpoints."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sensorium_pipeline.training.data import SessionDescription, Statistics

MakeDescription = Callable[..., SessionDescription]


@pytest.fixture
def make_description() -> MakeDescription:
    def make(name: str = "static1-1-1", neurons: int = 7, image_shape: tuple[int, int] = (18, 32)) -> SessionDescription:
        rng = np.random.default_rng(neurons)
        positive = lambda n: rng.uniform(0.5, 2, n).astype(np.float32)  # noqa: E731
        statistics = Statistics(110.0, 60.0, positive(neurons), positive(neurons), positive(3), positive(3), positive(2), positive(2))
        positions = rng.uniform(-300, 300, (neurons, 3)).astype(np.float32)
        return SessionDescription(name, np.arange(1, 2 * neurons, 2), positions, image_shape, statistics)

    return make


@pytest.fixture
def checkpoints(test_data: Path) -> Path:
    folder = test_data / "sensorium" / "checkpoints"
    if not folder.is_dir():
        pytest.skip(f"no organisers' checkpoints: {folder} is not a folder")
    return folder
