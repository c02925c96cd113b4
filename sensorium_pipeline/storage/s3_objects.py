"""Objects of an S3 server as a store."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import s3fs
from botocore.exceptions import BotoCoreError, NoCredentialsError, ParamValidationError, PartialCredentialsError  # type: ignore[import-untyped]
from zarr.storage import FsspecStore

from sensorium_pipeline.errors import InputError, PlatformError, SensoriumError
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage.backend import MissingObjectError, Names, StoredObject, StoredObjects

CREATE_ATTEMPTS = 6

# Errors that say that nothing was written. All others are not believed: to the loser of a conditional PUT, servers answer with
# 412 or 409, which s3fs turns into FileExistsError, EINVAL or EBUSY; and a winner may hear nothing, or that it lost against itself.
_DEFINITE = (PermissionError, NoCredentialsError, PartialCredentialsError, ParamValidationError)


class S3Objects:
    """One prefix of a bucket. The bucket is made at the first write where it does not exist and the keys allow that."""

    def __init__(self, root: RootSettings) -> None:
        self._root = root
        self._prefix = str(root.url).removeprefix("s3://").rstrip("/")
        self.url = f"s3://{self._prefix}"
        self._bucket = self._prefix.split("/")[0]
        if not self._bucket:
            raise InputError("the URL does not name a bucket", where=self.url, advice="Write s3://bucket/prefix")
        self._filesystem: Any = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        # Connections stay in the process that opened them.
        return {**self.__dict__, "_filesystem": None}

    @property
    def storage_options(self) -> dict[str, object]:
        """Endpoint and keys in s3fs's words; what is left out is found by botocore's own chain."""
        options: dict[str, object] = {}
        if self._root.endpoint_url:
            options["endpoint_url"] = self._root.endpoint_url
        if self._root.access_key:
            options["key"] = self._root.access_key
        if self._root.secret_key:
            options["secret"] = self._root.secret_key.get_secret_value()
        return options

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes [start, stop) of one object."""
        with self.translated(path):
            try:
                payload: bytes = self._s3.cat_file(self._key(path), start=start, end=stop)
            except OSError as error:
                # A range that begins at or behind the end, as every range of an empty object does.
                if getattr(error.__cause__, "response", {}).get("Error", {}).get("Code") != "InvalidRange":
                    raise
                payload = b""
            return payload

    def exists(self, path: str) -> bool:
        """Whether `path` is an object."""
        with self.translated(path):
            try:
                return bool(self._s3.info(self._key(path))["type"] == "file")
            except FileNotFoundError:
                return False

    def list(self, prefix: str) -> Names:
        """Sorted names of the objects and prefixes directly below `prefix`."""
        key = self._key(prefix)
        with self.translated(prefix):
            try:
                entries = self._s3.ls(key, detail=False)
            except FileNotFoundError:
                return []
        return sorted({entry.rstrip("/").removeprefix(key + "/") for entry in entries if entry.startswith(key + "/")} - {""})

    def walk(self, prefix: str) -> StoredObjects:
        """All objects below `prefix`, sorted by path."""
        key = self._key(prefix)
        with self.translated(prefix):
            try:
                entries = self._s3.find(key, detail=True)
            except FileNotFoundError:
                return []
        return sorted(
            (
                StoredObject(name.removeprefix(self._prefix + "/"), entry["size"], entry["LastModified"])
                for name, entry in entries.items()
                if name.startswith(key + "/") and entry["type"] == "file"
            ),
            key=lambda entry: entry.path,
        )

    def create(self, path: str, payload: bytes) -> bool:
        """Make the object unless it exists, by a conditional PUT (If-None-Match).

        The loser's error differs between servers, and a winner whose answer was lost on the way repeats its request and then
        loses against itself. So no error is believed: what is stored afterwards decides.
        """
        key = self._key(path)
        failure: Exception | None = None
        with self.translated(path):
            for attempt in range(CREATE_ATTEMPTS):
                try:
                    self._s3.pipe_file(key, payload, mode="create")
                    return True
                except FileNotFoundError as error:
                    failure = error
                    self._make_bucket()
                    continue
                except _DEFINITE:
                    raise
                except (OSError, BotoCoreError) as error:
                    failure = error
                try:
                    return bool(self._s3.cat_file(key) == payload)
                except FileNotFoundError:
                    # Nobody has won yet: the other writer is still on its way, or both requests were turned down.
                    time.sleep(0.05 * 2**attempt * random.uniform(0.5, 1.5))
        raise PlatformError(
            "the object could not be created, nor read back",
            where=f"{self.url}/{path}",
            advice=f"Check that the S3 server supports conditional writes (If-None-Match), then repeat ({failure})",
        )

    def replace(self, path: str, payload: bytes) -> None:
        """Make or overwrite the object."""
        with self.translated(path):
            self._with_bucket(lambda: self._s3.pipe_file(self._key(path), payload))

    def upload(self, path: str, source: Path) -> None:
        """Make or overwrite the object from a file of this machine, in parts where it is large."""
        with self.translated(path):
            self._with_bucket(lambda: self._s3.put_file(str(source), self._key(path)))

    def remove(self, prefix: str) -> None:
        """Remove the object, or all objects below the prefix, of this name."""
        with self.translated(prefix), contextlib.suppress(FileNotFoundError):
            self._s3.rm(self._key(prefix), recursive=True)

    def settle(self, prefix: str) -> None:
        """An S3 server answers when the object is durable: nothing is left to do."""

    def prepare(self) -> None:
        """Make the bucket where it does not exist."""
        with self.translated(""):
            try:
                self._s3.call_s3("head_bucket", Bucket=self._bucket)
            except FileNotFoundError:
                self._make_bucket()
            except PermissionError:
                # Keys that may only use a prefix often may not ask for the bucket: the first write tells.
                return

    def zarr_store(self, prefix: str) -> FsspecStore:
        """The prefix as zarr sees it, for writing."""
        return FsspecStore.from_url(f"{self.url}/{prefix}", storage_options={**self.storage_options, **self._client_options})

    @property
    def _client_options(self) -> dict[str, object]:
        retries = {"mode": "standard", "max_attempts": 3}
        return {"use_listings_cache": False, "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": retries}}

    @property
    def _s3(self) -> Any:
        # Connections do not survive a fork.
        if self._filesystem is None or self._process != os.getpid():
            self._process = os.getpid()
            self._filesystem = s3fs.S3FileSystem(
                **self.storage_options,
                **self._client_options,
            )
        return self._filesystem

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if path else self._prefix

    def _with_bucket(self, write: Callable[[], None]) -> None:
        try:
            write()
        except FileNotFoundError:
            self._make_bucket()
            write()

    def _make_bucket(self) -> None:
        try:
            self._s3.call_s3("create_bucket", Bucket=self._bucket)
        except FileExistsError:
            return  # another writer made it at the same moment
        except (OSError, BotoCoreError) as error:
            raise InputError(
                f"the bucket {self._bucket} does not exist and cannot be made with these keys",
                where=self.url,
                advice=f"Check the name of the bucket, or have it made ({error})",
            ) from error

    @contextlib.contextmanager
    def translated(self, path: str) -> Iterator[None]:
        """Turn errors of the server and its client into errors of the taxonomy that name `path`."""
        where = f"{self.url}/{path}" if path else self.url
        try:
            yield
        except SensoriumError:
            raise
        except FileNotFoundError as error:
            raise MissingObjectError("nothing is stored under this name", where=where, advice="Check the root and the name") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(
                "there are no keys for this S3 store",
                where=where,
                advice=f"Set SENSORIUM_ACCESS_KEY and SENSORIUM_SECRET_KEY, or those of the one root ({error})",
            ) from error
        except PermissionError as error:
            raise InputError(
                "the S3 server refuses access",
                where=where,
                advice=f"Check the keys and what they are allowed to do with this bucket ({error})",
            ) from error
        except ParamValidationError as error:
            raise InputError("the S3 URL is malformed", where=where, advice=f"Write s3://bucket/prefix ({error})") from error
        except (OSError, BotoCoreError) as error:
            endpoint = self._root.endpoint_url or "Amazon's endpoint"
            raise PlatformError(
                f"the S3 server at {endpoint} failed or cannot be reached",
                where=where,
                advice=f"Check SENSORIUM_ENDPOINT_URL and that the server runs, then repeat ({error})",
            ) from error
