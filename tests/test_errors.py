"""One form for every error, whoever wrote its words."""

import pickle

import pytest

from sensorium_pipeline.errors import InputError, PlatformError


@pytest.mark.parametrize("stop", ["", "."])
def test_every_error_reads_alike(stop: str) -> None:
    error = InputError(f"is broken{stop}", where="file.tif", advice=f"Copy it again{stop}")
    assert str(error) == "file.tif: is broken. Copy it again."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(PlatformError(f"no server answers{stop}")) == "no server answers"
