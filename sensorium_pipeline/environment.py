"""Which code in which environment: recorded with every result, and part of the key of everything that is computed."""

import platform
import re
from functools import cache
from importlib.metadata import Distribution, distributions, version

from sensorium_pipeline.storage.digests import digest_of


@cache
def code_version() -> str:
    """Version of this package."""
    return version("sensorium-pipeline")


@cache
def environment_digest() -> str:
    """sha256 over Python's version and the name and version of every installed distribution."""
    installed = sorted({found for item in distributions() if (found := _name_and_version(item))})
    return digest_of({"python": platform.python_version(), "machine": platform.machine(), "installed": installed})


def _name_and_version(item: Distribution) -> str:
    """Empty where it has no name. Of its metadata only two lines are read: parsing all of them takes ten times as long."""
    head = (item.read_text("METADATA") or item.read_text("PKG-INFO") or "").partition("\n\n")[0]
    fields = dict(re.findall(r"^(Name|Version): *(.*?) *$", head, re.MULTILINE))
    return f"{fields['Name'].lower()}=={fields['Version']}" if fields.get("Name") and fields.get("Version") else ""
