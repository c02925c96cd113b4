"""Reading a raw session folder."""

from pathlib import Path

from sensorium_pipeline.recordings.raw_session import RawSession


def open_session(path: Path) -> RawSession:
    """Open a raw session folder; see the module."""
    raise NotImplementedError
