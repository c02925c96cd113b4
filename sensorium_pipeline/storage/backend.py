"""What a kind of storage has to offer: two exist, files of this machine and objects of an S3 server."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from zarr.abc.store import Store as ZarrStore

from sensorium_pipeline.errors import InputError

# Bodies of exclusive creates are records; on S3 they have to fit into one request.
CREATE_LIMIT_BYTES = 64 * 2**20


class MissingObjectError(InputError):
    """Nothing is stored under this name; exit code 1."""


@dataclass(frozen=True)
class StoredObject:
    """One object below a prefix: `path` relative to the root of the store, `size` in bytes, time of its last change."""

    path: str
    size: int
    modified: datetime


# Classes with a method called `list` cannot say list[...] in their signatures.
Names = list[str]
StoredObjects = list[StoredObject]


class Backend(Protocol):
    """One root of a store. All paths are relative to it, with single slashes, and were checked by `Store`.

    A root, folder or prefix that does not exist is empty. Nothing that was listed is remembered.
    """

    url: str

    @property
    def storage_options(self) -> dict[str, object]:
        """What fsspec (and so zarr and xarray) needs beside a URL to open things here."""

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes [start, stop) of one object; `MissingObjectError` where it is absent."""

    def exists(self, path: str) -> bool:
        """Whether `path` is an object."""

    def list(self, prefix: str) -> Names:
        """Sorted names of the objects and prefixes directly below `prefix`."""

    def walk(self, prefix: str) -> StoredObjects:
        """All objects below `prefix`, sorted by path."""

    def create(self, path: str, payload: bytes) -> bool:
        """Make the object unless it exists; true if and only if `payload` is what is stored under `path` now."""

    def replace(self, path: str, payload: bytes) -> None:
        """Make or overwrite the object; readers see the old bytes or the new ones."""

    def upload(self, path: str, source: Path) -> None:
        """Make or overwrite the object from a file of this machine."""

    def remove(self, prefix: str) -> None:
        """Remove the object, or all objects below the prefix, of this name."""

    def prepare(self) -> None:
        """Make the root where it does not exist."""

    def settle(self, prefix: str) -> None:
        """Return when everything below `prefix` would survive a power cut."""

    def zarr_store(self, prefix: str) -> ZarrStore:
        """The prefix as zarr sees it, for writing."""

    def translated(self, path: str) -> AbstractContextManager[None]:
        """Turn errors of the file system or server into errors of the taxonomy that name `path`."""
