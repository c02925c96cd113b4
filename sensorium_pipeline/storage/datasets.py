"""Datasets: immutable, named by the digest of their content, kept once."""

import os
from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.storage.backend import MissingObjectError
from sensorium_pipeline.storage.digests import READ_BYTES, digest_of, digest_of_bytes, digest_of_file
from sensorium_pipeline.storage.manifests import MANIFESTS, DatasetReference, FileEntry, Manifest, manifest_path, read_manifest
from sensorium_pipeline.storage.staging import digest_entries, stage
from sensorium_pipeline.storage.store import Store

PART = ".part"


def write_dataset(store: Store, tree: xr.DataTree, *, progress: ProgressCallback = silent) -> DatasetReference:
    """Store a tree as zarr v3; the same content has the same digest, and what is there already is not kept twice.

    Args:
        store: where.
        tree: groups, variables with dimension names, attributes with units. Lazy variables and memory maps are read one shard
            at a time.
        progress: receives bytes written, then bytes read back.

    Raises:
        InputError: something in the tree cannot be stored.
        PlatformError: the store failed; nothing is visible.
    """
    with stage(store) as staged:
        staged.write_tree(tree, progress=progress)
        return staged.seal(progress=progress)


def write_files(store: Store, files: Mapping[str, bytes | Path]) -> DatasetReference:
    """Store plain files (submissions, reports, pages, predictions) under one digest.

    Args:
        store: where.
        files: relative path, with single slashes -> bytes, or a file of this machine.

    Raises:
        InputError: a path is not a plain relative one, a file does not exist, or there are none.
    """
    entries: list[FileEntry] = []
    for path, payload in sorted(files.items()):
        if isinstance(payload, Path):
            if not payload.is_file():
                raise InputError("the file does not exist or is not a plain file", where=payload, advice="Check the path")
            entries.append(FileEntry(path=path, size=payload.stat().st_size, sha256=digest_of_file(payload)))
        else:
            entries.append(FileEntry(path=path, size=len(payload), sha256=digest_of_bytes(payload)))
    # Content that is there already need not be sent.
    digest = digest_of(Manifest(kind="files", files=tuple(entries)))
    if entries and store.exists(manifest_path(digest)):
        return DatasetReference(digest=digest)
    with stage(store, "files") as staged:
        for path, payload in sorted(files.items()):
            staged.add(path, payload)
        return staged.seal()


def dataset_url(store: Store, digest: str) -> str:
    """The URL of a dataset's bytes: opens with plain `xarray.open_datatree` or `open_zarr` and `store.storage_options`.

    Raises:
        MissingObjectError: the store has no dataset of this digest.
    """
    prefix, _ = read_manifest(store, digest)
    return f"{store.url}/{prefix}"


def open_dataset(store: Store, digest: str) -> xr.DataTree:
    """Open a zarr dataset lazily: indexing reads only the chunks that it needs, without Dask.

    Raises:
        MissingObjectError: the store has no dataset of this digest.
        InputError: it consists of plain files.
    """
    prefix, manifest = read_manifest(store, digest)
    url = f"{store.url}/{prefix}"
    if manifest.kind != "zarr":
        raise InputError("this dataset consists of plain files", where=url, advice="Read it with read_file or download_files")
    with store.translated(prefix):
        return xr.open_datatree(url, engine="zarr", chunks=None, storage_options=store.storage_options or None)


def list_files(store: Store, digest: str) -> list[FileEntry]:
    """The objects of a dataset, sorted by path."""
    return list(read_manifest(store, digest)[1].files)


def read_file(store: Store, digest: str, path: str) -> bytes:
    """One object of a dataset, checked against its sha256.

    Raises:
        MissingObjectError: the dataset has no such object.
        PlatformError: the stored bytes are not those that were written.
    """
    prefix, manifest = read_manifest(store, digest)
    where = f"{store.url}/{prefix}/{path}"
    entry = next((entry for entry in manifest.files if entry.path == path), None)
    if entry is None:
        raise MissingObjectError("the dataset has no such file", where=where, advice=f"It holds {len(manifest.files)} others")
    payload = store.read_range(f"{prefix}/{path}", 0, entry.size + 1)
    if digest_of_bytes(payload) != entry.sha256:
        raise _differs(where)
    return payload


def download_files(store: Store, digest: str, folder: Path, *, progress: ProgressCallback = silent) -> None:
    """Copy a dataset to a folder of this machine; run again after an interruption, it fetches what is missing.

    Args:
        store: from where.
        digest: which dataset.
        folder: made where it does not exist; files already there with the right digest are kept, others of these names replaced.
            It may hold nothing else, so that two versions of a dataset never mix.
        progress: receives bytes.

    Raises:
        InputError: the folder holds other files, or cannot be written.
        PlatformError: the stored bytes are not those that were written.
    """
    prefix, manifest = read_manifest(store, digest)
    _refuse_other_files(folder, manifest)
    total = sum(entry.size for entry in manifest.files)
    done = 0
    for entry in manifest.files:
        target = folder / entry.path
        try:
            if not (target.is_file() and target.stat().st_size == entry.size and digest_of_file(target) == entry.sha256):
                _download(store, f"{prefix}/{entry.path}", entry, target)
        except OSError as error:
            raise InputError(f"cannot write here ({error.strerror})", where=target, advice="Choose a folder that is writable") from error
        done += entry.size
        progress(Progress("download", done, total, entry.path))


def verify_dataset(store: Store, digest: str, *, progress: ProgressCallback = silent) -> None:
    """Read every byte of a dataset and compare with its manifest.

    Raises:
        MissingObjectError: the store has no dataset of this digest.
        PlatformError: an object differs, is missing or does not belong there; `where` is its URL.
    """
    prefix, manifest = read_manifest(store, digest)
    stored = {entry.path: entry for entry in digest_entries(store, prefix, progress)}
    for entry in manifest.files:
        where = f"{store.url}/{prefix}/{entry.path}"
        if entry.path not in stored:
            raise PlatformError("the object is missing", where=where, advice="Restore it from a backup")
        if stored.pop(entry.path) != entry:
            raise _differs(where)
    for path in stored:
        raise PlatformError(
            "the object belongs to no dataset", where=f"{store.url}/{prefix}/{path}", advice="Find out who wrote it; remove it"
        )


def list_datasets(store: Store) -> list[str]:
    """Digests of all datasets of a store."""
    return [name.removesuffix(".json") for name in store.list(MANIFESTS)]


def _download(store: Store, path: str, entry: FileEntry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Under its name the file is whole or absent.
    part = target.with_name(target.name + PART)
    with part.open("wb") as stream:
        for start in range(0, entry.size, READ_BYTES):
            stream.write(store.read_range(path, start, min(start + READ_BYTES, entry.size)))
    if digest_of_file(part) != entry.sha256:
        part.unlink()
        raise _differs(f"{store.url}/{path}")
    os.replace(part, target)


def _refuse_other_files(folder: Path, manifest: Manifest) -> None:
    known = {entry.path for entry in manifest.files}
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix().removesuffix(PART) not in known:
            raise InputError("the folder holds a file that does not belong to this dataset", where=path, advice="Choose an empty folder")


def _differs(where: str) -> PlatformError:
    return PlatformError("the stored bytes are not those that were written", where=where, advice="Restore the object from a backup")
