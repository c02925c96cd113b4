"""A small simulated session, made once, and copies of it to damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sensorium_pipeline.recordings import SimulationParameters, simulate_recording

SMALL = SimulationParameters(
    seed=3,
    animal=7,
    session=2,
    scan=5,
    role="competition",
    track="sensorium+",
    single_images=14,
    test_images=3,
    final_test_images=2,
    repeats=3,
    lost_presentations=0.15,
    height=48,
    width=56,
    flyback_frames=1,
    volumes_per_file=100,
    neurons_per_plane=5,
)


@pytest.fixture(scope="session")
def small_parameters() -> SimulationParameters:
    return SMALL


@pytest.fixture(scope="session")
def small_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw session folder with its truth beside it; read only."""
    out = tmp_path_factory.mktemp("recordings") / "raw"
    simulate_recording(out, SMALL)
    return out


@pytest.fixture
def damaged(small_session: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a fresh copy of the small session to damage."""

    def copy() -> Path:
        target = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        return Path(shutil.copytree(small_session, target))

    return copy
