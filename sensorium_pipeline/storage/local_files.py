"""Files of this machine as a store."""

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from zarr.storage import LocalStore

from sensorium_pipeline.errors import InputError, PlatformError, SensoriumError
from sensorium_pipeline.storage.backend import MissingObjectError, Names, StoredObject, StoredObjects

# Files are written here and then linked or renamed to their names, so that no name ever shows half a file.
TEMPORARY = "temporary"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class LocalFiles:
    """One folder. Writes are durable when they return (file and folder are synchronised to the disk)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # As fsspec reads it, so that zarr and xarray open it: nothing is escaped, not even spaces.
        self.url = f"file://{root.as_posix()}"

    @property
    def storage_options(self) -> dict[str, object]:
        """Nothing is needed beside the URL."""
        return {}

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes [start, stop) of one file."""
        with self.translated(path):
            try:
                with open(self.root / path, "rb", opener=_open_at_once) as stream:
                    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                        raise FileNotFoundError(errno.ENOENT, "no plain file", path)
                    stream.seek(start or 0)
                    return stream.read() if stop is None else stream.read(stop - (start or 0))
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise
                raise MissingObjectError(
                    "nothing is stored under this name",
                    where=f"{self.url}/{path}",
                    advice="Check the root and the name",
                ) from error

    def exists(self, path: str) -> bool:
        """Whether `path` is a file."""
        with self.translated(path):
            return (self.root / path).is_file()

    def list(self, prefix: str) -> Names:
        """Sorted names of the files and folders directly below `prefix`."""
        with self.translated(prefix):
            try:
                names = os.listdir(self.root / prefix)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(name for name in names if prefix or name != TEMPORARY)

    def walk(self, prefix: str) -> StoredObjects:
        """All plain files below `prefix`, sorted by path."""
        found: list[StoredObject] = []
        with self.translated(prefix):
            for folder, _, names in os.walk(self.root / prefix):
                for name in names:
                    file = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                        state = file.lstat()
                        if stat.S_ISREG(state.st_mode):
                            modified = datetime.fromtimestamp(state.st_mtime, tz=UTC)
                            found.append(StoredObject(file.relative_to(self.root).as_posix(), state.st_size, modified))
        return sorted(found, key=lambda entry: entry.path)

    def create(self, path: str, payload: bytes) -> bool:
        """Make the file unless it exists: linking a complete temporary file to a name is atomic and refuses a taken name."""
        target = self.root / path
        with self.translated(path), self._temporary(payload) as temporary:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(temporary, target)
            except FileExistsError:
                # On a network file system the answer to a link that was made can be lost, and its repetition then fails:
                # whether both names are one file is the truth. Equal bytes of another writer count as well: the promise
                # is about what is stored.
                return target.is_file() and (os.path.samefile(temporary, target) or target.read_bytes() == payload)
            except OSError as error:
                if error.errno in _NO_LINKS and os.access(target.parent, os.W_OK):
                    raise InputError(
                        "this file system cannot make hard links, which exclusive creation needs",
                        where=target.parent,
                        advice="Put the workspace on a local disk (ext4, xfs, apfs), on NFS, or on S3",
                    ) from error
                raise
            _synchronise(target.parent)
        return True

    def replace(self, path: str, payload: bytes) -> None:
        """Make or overwrite the file, by renaming a complete temporary file."""
        target = self.root / path
        with self.translated(path), self._temporary(payload) as temporary:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, target)
            _synchronise(target.parent)

    def upload(self, path: str, source: Path) -> None:
        """Copy a file here."""
        target = self.root / path
        with self.translated(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def remove(self, prefix: str) -> None:
        """Remove the file or the folder of this name."""
        target = self.root / prefix
        with self.translated(prefix), contextlib.suppress(FileNotFoundError):
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()

    def prepare(self) -> None:
        """Make the folder where it does not exist."""
        with self.translated(""):
            self.root.mkdir(parents=True, exist_ok=True)

    def settle(self, prefix: str) -> None:
        """Synchronise all files and folders below `prefix` to the disk."""
        with self.translated(prefix):
            for folder, _, names in os.walk(self.root / prefix):
                for name in names:
                    _synchronise(Path(folder, name))
                _synchronise(Path(folder))
            for parent in (self.root / prefix).parents:
                if parent.is_dir():
                    _synchronise(parent)
                if parent == self.root:
                    break

    def zarr_store(self, prefix: str) -> LocalStore:
        """The folder as zarr sees it, for writing."""
        return LocalStore(self.root / prefix)

    @contextlib.contextmanager
    def _temporary(self, payload: bytes) -> Iterator[Path]:
        folder = self.root / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / uuid.uuid4().hex
        try:
            with file.open("xb") as stream:
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
            yield file
        finally:
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def translated(self, path: str) -> Iterator[None]:
        """Turn errors of the file system into errors of the taxonomy that name `path`."""
        try:
            yield
        except SensoriumError:
            raise
        except OSError as error:
            where = error.filename or (self.root / path)
            if error.errno in _FULL:
                raise PlatformError("the disk is full", where=where, advice="Free space there, then repeat the command") from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EISDIR):
                raise InputError(
                    f"the path cannot be used ({error.strerror})",
                    where=where,
                    advice="Choose a root (--root, SENSORIUM_ROOT) that is a folder and writable by this user",
                ) from error
            raise PlatformError(f"the file system failed ({error.strerror or error})", where=where, advice="Repeat the command") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting, as one would for ever for the writer of a pipe that somebody put there."""
    return os.open(path, flags | os.O_NONBLOCK)


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
