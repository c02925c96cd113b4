"""Which code in which environment: recorded with every result, and part of the key of everything that is computed."""

import platform
from functools import cache
from importlib.metadata import distributions, version

from sensorium_pipeline.storage.digests import digest_of


@cache
def code_version() -> str:
    """Version of this package."""
    return version("sensorium-pipeline")


@cache
def environment_digest() -> str:
    """sha256 over Python's version and the name and version of every installed distribution."""
    installed = sorted({f"{item.metadata['Name'].lower()}=={item.version}" for item in distributions() if item.metadata["Name"]})
    return digest_of({"python": platform.python_version(), "machine": platform.machine(), "installed": installed})
