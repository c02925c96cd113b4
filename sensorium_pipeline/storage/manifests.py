"""Manifests: what a dataset consists of. Their digest is the dataset's name; where the bytes lie stands beside it."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.storage.backend import MissingObjectError
from sensorium_pipeline.storage.digests import canonical_json, digest_of
from sensorium_pipeline.storage.store import Store

MANIFESTS = "manifests"
DATA = "data"

DatasetKind = Literal["zarr", "files"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


class FileEntry(BaseModel):
    """One object of a dataset: path relative to the dataset, size in bytes, sha256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What a dataset consists of, sorted by path; nothing in it says when, where or by whom it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: DatasetKind
    files: tuple[FileEntry, ...]


class DatasetReference(BaseModel):
    """The name of a dataset: sha256, 64 hexadecimal digits, of its manifest's canonical JSON."""

    model_config = ConfigDict(frozen=True)

    digest: str


class StoredManifest(BaseModel):
    """The object `manifests/<digest>.json`: the digested part, and beside it the prefix that holds the bytes.

    The prefix is unique to the writer, so it is the nonce by which a writer recognises its own manifest.
    """

    prefix: str
    manifest: dict[str, object]


def manifest_path(digest: str) -> str:
    """Where the manifest of a digest lies.

    Raises:
        InputError: this is not a digest.
    """
    if not _DIGEST.fullmatch(digest):
        raise InputError("this is not a digest", where=repr(digest), advice="A digest has 64 hexadecimal digits, in lower case")
    return f"{MANIFESTS}/{digest}.json"


def create_manifest(store: Store, manifest: Manifest, prefix: str) -> tuple[str, bool]:
    """Name the bytes below `prefix`: the dataset's digest, and false where the same content was named before."""
    digest = digest_of(manifest)
    path = manifest_path(digest)
    if store.exists(path):
        return digest, False
    return digest, store.create(path, canonical_json({"prefix": prefix, "manifest": manifest}))


def read_manifest(store: Store, digest: str) -> tuple[str, Manifest]:
    """Prefix and manifest of a dataset.

    Raises:
        MissingObjectError: the store has no dataset of this digest.
        PlatformError: the manifest is damaged.
    """
    path = manifest_path(digest)
    where = f"{store.url}/{path}"
    try:
        payload = store.read(path)
    except MissingObjectError as error:
        raise MissingObjectError(
            f"the {store.name} store has no dataset of this digest", where=where, advice="Check the digest and the root"
        ) from error
    try:
        stored = StoredManifest.model_validate_json(payload)
        if digest_of(stored.manifest) != digest:
            raise PlatformError("the manifest is damaged: its content has another digest", where=where, advice="Restore it from a backup")
        return stored.prefix, Manifest.model_validate(stored.manifest)
    except ValidationError as error:
        raise PlatformError("the manifest is damaged or of another version", where=where, advice=f"Restore it ({error})") from error
