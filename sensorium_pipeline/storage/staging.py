"""Staging: a dataset is written below a fresh prefix that nothing names, and named when it is complete."""

import contextlib
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from sensorium_pipeline.errors import InputError, PlatformError, SensoriumError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.storage import trees
from sensorium_pipeline.storage.digests import READ_BYTES
from sensorium_pipeline.storage.manifests import DATA, DatasetKind, DatasetReference, FileEntry, Manifest, create_manifest
from sensorium_pipeline.storage.store import Store

_READERS = 4


class StagedDataset:
    """A dataset in the making.

    Attributes:
        store: where it is written.
        prefix: fresh prefix within the store.
        url: its URL; opens with `store.storage_options`.
        kind: "zarr", or "files" for plain files.
    """

    def __init__(self, store: Store, kind: DatasetKind) -> None:
        self.store = store
        self.kind = kind
        self.prefix = f"{DATA}/{uuid.uuid4().hex}" + (".zarr" if kind == "zarr" else "")
        self.url = f"{store.url}/{self.prefix}"
        self.reference: DatasetReference | None = None
        self._disposable = True

    def add(self, path: str, payload: bytes | Path) -> None:
        """Store bytes, or a file of this machine, as `path` of the dataset."""
        self._check_unsealed()
        if isinstance(payload, Path):
            self.store.upload(f"{self.prefix}/{path}", payload)
        else:
            self.store.replace(f"{self.prefix}/{path}", payload)

    def write_tree(self, tree: xr.DataTree, *, progress: ProgressCallback = silent) -> None:
        """Write groups, variables and attributes, one shard in memory at a time; lazy variables and memory maps stay on disk.

        Raises:
            InputError: a variable's type, name or attributes cannot be stored.
        """
        self._check_unsealed()
        with self._translated():
            trees.write_tree(self.store.zarr_store(self.prefix), tree, progress)

    def write_array(
        self,
        path: str,
        blocks: Iterable[NDArray[np.generic]],
        *,
        dims: Sequence[str],
        shape: Sequence[int],
        dtype: DTypeLike,
        attributes: Mapping[str, object] | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        """Write one array from consecutive blocks along its first dimension, of any length each, out of core.

        Args:
            path: group and name, such as "traces/activity"; the group is made where it does not exist.
            blocks: arrays of shape (any, *shape[1:]); together `shape[0]` long.
            dims: names of the dimensions.
            shape: lengths of the whole array.
            dtype: type of the stored elements.
            attributes: units, long_name and whatever else.
            progress: receives the length written so far.

        Raises:
            InputError: the blocks do not fill the shape.
        """
        self._check_unsealed()
        with self._translated():
            array = trees.create_array(self.store.zarr_store(self.prefix), path, dims, shape, dtype, attributes or {})
            trees.fill_array(array, blocks, path, progress)

    def seal(self, *, progress: ProgressCallback = silent) -> DatasetReference:
        """Name what is there: read everything back, make the manifest; content that is there already is not kept twice.

        Raises:
            InputError: nothing was written.
            PlatformError: the store failed; nothing is visible, or, if the answer was lost, everything.
        """
        if self.reference is not None:
            return self.reference
        with self._translated():
            if self.kind == "zarr":
                trees.consolidate(self.store.zarr_store(self.prefix), self.url)
        self.store.settle(self.prefix)
        manifest = Manifest(kind=self.kind, files=digest_entries(self.store, self.prefix, progress))
        if not manifest.files:
            raise InputError("a dataset without any file cannot be kept", where=self.url, advice="Add something to it first")
        # From here on a lost answer may have named this prefix: only the collector, who reads the manifests, may remove it.
        self._disposable = False
        digest, created = create_manifest(self.store, manifest, self.prefix)
        self._disposable = not created
        self.reference = DatasetReference(digest=digest)
        return self.reference

    def discard(self) -> None:
        """Remove what was written, unless it was sealed and is named."""
        if self._disposable:
            # What cannot be removed now is unreachable anyway, and the collector's.
            with contextlib.suppress(SensoriumError):
                self.store.remove(self.prefix)

    def _check_unsealed(self) -> None:
        if self.reference is not None:
            raise InputError("the dataset is sealed", where=self.reference.digest, advice="Stage a new one")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        with self.store.translated(self.prefix):
            yield


@contextlib.contextmanager
def stage(store: Store, kind: DatasetKind = "zarr") -> Iterator[StagedDataset]:
    """A fresh prefix to write a dataset to. What is not sealed when the block ends, or fails, is removed.

    Raises:
        InputError: the root does not exist and cannot be made.
    """
    store.prepare()
    staged = StagedDataset(store, kind)
    try:
        yield staged
    finally:
        staged.discard()


def digest_entries(store: Store, prefix: str, progress: ProgressCallback = silent) -> tuple[FileEntry, ...]:
    """Path, size and sha256 of every object below `prefix`, read back from the store, sorted by path."""
    objects = store.walk(prefix)
    total = sum(entry.size for entry in objects)
    entries: list[FileEntry] = []
    done = 0

    def digest(path: str, size: int) -> FileEntry:
        state = hashlib.sha256()
        for start in range(0, size, READ_BYTES):
            piece = store.read_range(path, start, min(start + READ_BYTES, size))
            if len(piece) != min(READ_BYTES, size - start):
                raise PlatformError("the object changed while it was read", where=f"{store.url}/{path}", advice="Repeat the command")
            state.update(piece)
        return FileEntry(path=path.removeprefix(f"{prefix}/"), size=size, sha256=state.hexdigest())

    with ThreadPoolExecutor(_READERS) as readers:
        for entry in readers.map(lambda found: digest(found.path, found.size), objects):
            entries.append(entry)
            done += entry.size
            progress(Progress("digest", done, total))
    return tuple(sorted(entries, key=lambda entry: entry.path))
