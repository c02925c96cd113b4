"""Fixtures for the whole suite."""

import os
from pathlib import Path

# As the command line does, before numpy and torch are imported: test processes share the cores with Dask workers and sandboxes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
from small_world import World, build_world


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real recordings and checkpoints; tests that need it are skipped, with this reason, where it is absent."""
    named = os.environ.get("SENSORIUM_TEST_DATA")
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set SENSORIUM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three small sessions, ingested and released, with their raw recordings; read only (see `World.copy`)."""
    # Processes of one test run share the parent of their temporary folders.
    base = tmp_path_factory.getbasetemp()
    return build_world((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-world")
