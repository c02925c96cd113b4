"""The three kinds of storage that every promise is tested against: local files, moto's server, SeaweedFS."""

import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Store
from sensorium_pipeline.storage.local_s3 import LocalS3Server

KINDS = ["local", "moto", "seaweedfs"]


@pytest.fixture(scope="session")
def moto() -> Iterator[RootSettings]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield RootSettings(url="s3://sensorium-tests", endpoint_url=f"http://{host}:{port}", access_key="key", secret_key="secret")
    server.stop()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3Server]:
    with LocalS3Server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(params=KINDS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> RootSettings:
    """A fresh root of each kind. A store made from it has connections of its own in every thread and process."""
    if request.param == "local":
        return RootSettings(url=f"file://{tmp_path}/work space")
    fresh = f"s3://sensorium-tests/{uuid.uuid4().hex}/lab"
    if request.param == "moto":
        moto: RootSettings = request.getfixturevalue("moto")
        return moto.model_copy(update={"url": fresh})
    server: LocalS3Server = request.getfixturevalue("seaweedfs")
    return server.root(fresh)


@pytest.fixture
def store(root: RootSettings) -> Store:
    return Store("lab", root)


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return Store("lab", RootSettings(url=str(tmp_path / "local")))


class LossyWire:
    """A TCP proxy that forwards what it is given, and on demand loses a conditional PUT's answer, or the request itself."""

    def __init__(self, endpoint_url: str) -> None:
        host, port = endpoint_url.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.lost_answers = 0
        self.lost_requests = 0
        self.answers_to_lose = 0
        self.requests_to_lose = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        _hang_up(self.listener)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(self.server)
        conditional = threading.Event()

        def answers() -> None:
            try:
                while piece := server.recv(65536):
                    if piece == b"HTTP/1.1 100 Continue\r\n\r\n":
                        client.sendall(piece)
                        continue
                    if conditional.is_set() and self.answers_to_lose:
                        # The server has done what it was asked; nobody will hear of it.
                        self.answers_to_lose -= 1
                        self.lost_answers += 1
                        break
                    client.sendall(piece)
            except OSError:
                pass
            _hang_up(client, server)

        threading.Thread(target=answers, daemon=True).start()
        try:
            while piece := client.recv(65536):
                if piece[:4] in (b"PUT ", b"GET ", b"HEAD"):
                    head = piece.split(b"\r\n\r\n")[0].lower()
                    conditional.clear()
                    if piece.startswith(b"PUT ") and b"if-none-match" in head:
                        conditional.set()
                        if self.requests_to_lose:
                            self.requests_to_lose -= 1
                            self.lost_requests += 1
                            break
                server.sendall(piece)
        except OSError:
            pass
        _hang_up(client, server)


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@pytest.fixture
def lossy_wire() -> Iterator[Callable[[str], LossyWire]]:
    wires: list[LossyWire] = []

    def make(endpoint_url: str) -> LossyWire:
        wires.append(LossyWire(endpoint_url))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()
