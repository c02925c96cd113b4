"""A store: one root of a workspace, with reading, listing and the exclusive create on which everything else rests."""

from contextlib import AbstractContextManager
from pathlib import Path

from zarr.abc.store import Store as ZarrStore

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage.backend import CREATE_LIMIT_BYTES, Backend, Names, StoredObjects
from sensorium_pipeline.storage.local_files import LocalFiles


class Store:
    """One root (`lab`, `open`, `sealed` or `inbox`), as a folder or as a prefix of an S3 bucket.

    Stores are small and can be pickled; a process opens its own connections at first use. Paths are relative to the root.

    Args:
        name: the part of the workspace this is.
        root: URL (a path, `file:///...` or `s3://bucket/prefix`), endpoint and credentials.

    Raises:
        InputError: the URL is missing or of another kind.
    """

    def __init__(self, name: str, root: RootSettings) -> None:
        self.name = name
        self._backend = _open_backend(root)

    def __repr__(self) -> str:
        return f"Store({self.name!r}, {self.url!r})"

    @property
    def url(self) -> str:
        """The URL of the root, without a final slash."""
        return self._backend.url

    @property
    def storage_options(self) -> dict[str, object]:
        """What fsspec, zarr and xarray need beside a URL of this store; holds the secret key, so never print it."""
        return self._backend.storage_options

    def read(self, path: str) -> bytes:
        """All bytes of one object.

        Raises:
            MissingObjectError: there is no such object; its `where` is the URL.
        """
        return self._backend.read(_checked(path))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of one object, as far as it has them."""
        return self._backend.read(_checked(path), start, stop)

    def exists(self, path: str) -> bool:
        """Whether `path` is an object."""
        return self._backend.exists(_checked(path))

    def list(self, prefix: str) -> Names:
        """Sorted names of the entries directly below `prefix` ("" is the root); none where there is no such prefix.

        A prefix that was emptied by `remove` may still be listed.
        """
        return self._backend.list(_checked(prefix) if prefix else "")

    def walk(self, prefix: str) -> StoredObjects:
        """All objects below `prefix`, sorted by path."""
        return self._backend.walk(_checked(prefix) if prefix else "")

    def create(self, path: str, payload: bytes) -> bool:
        """Exclusive create: make the object unless it exists already.

        True if and only if `payload` is what is stored under `path` when this returns. A caller for whom it matters that the
        bytes are its own, and not equal bytes of another writer, puts a nonce into them, as `Series` and `record_result` do.

        Raises:
            PlatformError: the outcome is unknown, as the store cannot be reached; it is safe to call again.
        """
        if not 0 < len(payload) <= CREATE_LIMIT_BYTES:
            raise InputError(
                f"an object of {len(payload)} bytes cannot be created exclusively",
                where=f"{self.url}/{path}",
                advice=f"It has to hold 1 to {CREATE_LIMIT_BYTES} bytes; larger things are datasets",
            )
        return self._backend.create(_checked(path), payload)

    def replace(self, path: str, payload: bytes) -> None:
        """Make or overwrite an object. Only for objects that are not under the write-once rule: the page's "latest" redirect."""
        self._backend.replace(_checked(path), payload)

    def upload(self, path: str, source: Path) -> None:
        """Copy a file of this machine to a prefix that nothing names yet."""
        if not source.is_file():
            raise InputError("the file does not exist or is not a plain file", where=source, advice="Check the path")
        self._backend.upload(_checked(path), source)

    def remove(self, prefix: str) -> None:
        """Remove the object, or everything below the prefix, of this name. Only for data that no manifest names."""
        self._backend.remove(_checked(prefix))

    def prepare(self) -> None:
        """Make the root (folder or bucket) where it does not exist.

        Raises:
            InputError: it cannot be made, or these keys may not make it.
        """
        self._backend.prepare()

    def settle(self, prefix: str) -> None:
        """Return when everything below `prefix` would survive a power cut."""
        self._backend.settle(_checked(prefix))

    def zarr_store(self, prefix: str) -> ZarrStore:
        """The prefix as zarr sees it, for writing."""
        return self._backend.zarr_store(_checked(prefix))

    def translated(self, path: str) -> AbstractContextManager[None]:
        """Within the block, errors of libraries that use this store become errors of the taxonomy that name `path`."""
        return self._backend.translated(path)


def _open_backend(root: RootSettings) -> Backend:
    url = root.url or ""
    if not url.startswith("s3://"):
        url = url.rstrip("/") or url
    if not url:
        raise InputError("no root is given", where="SENSORIUM_ROOT", advice="Set it to a folder, file:///... or s3://bucket/prefix")
    if url.startswith("s3://"):
        # Imported here: s3fs takes most of a second, for which commands on local folders need not wait.
        from sensorium_pipeline.storage.s3_objects import S3Objects

        return S3Objects(root)
    if url.startswith("file://"):
        rest = url.removeprefix("file://").removeprefix("localhost")
        if not rest.startswith("/"):
            raise InputError("the URL does not hold an absolute path", where=url, advice="Write file:///absolute/path")
        return LocalFiles(Path(rest))
    if "://" in url:
        raise InputError("the URL is of an unknown kind", where=url, advice="Use a folder, file:///... or s3://bucket/prefix")
    return LocalFiles(Path(url).expanduser().absolute())


def _checked(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise InputError(
            "the name of an object is not a plain relative path",
            where=repr(path),
            advice="Use parts separated by single slashes, without . and ..",
        )
    return path
