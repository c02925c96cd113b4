"""Fixtures for the whole suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real recordings and checkpoints; tests that need it are skipped, with this reason, where it is absent."""
    named = os.environ.get("SENSORIUM_TEST_DATA")
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set SENSORIUM_TEST_DATA)")
    return folder
