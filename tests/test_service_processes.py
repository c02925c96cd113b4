"""Services find a port although others look for one at the same moment, and commands about the same services wait for each other."""

import fcntl
import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.service_processes import ServiceProcess, answers, free_port, launch, on_a_port, stop, wait_until
from sensorium_pipeline.services import Services, start_services
from sensorium_pipeline.settings import Settings


@pytest.fixture
def started() -> Iterator[list[ServiceProcess]]:
    services: list[ServiceProcess] = []
    yield services
    stop(services)


def http_service(folder: Path, port: int) -> ServiceProcess:
    return launch("http", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], folder, {})


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}/"


def test_a_port_that_another_takes_between_a_look_and_the_start_is_left_to_him(tmp_path: Path, started: list[ServiceProcess]) -> None:
    usual = free_port()
    tried: list[int] = []
    with socket.socket() as quicker:

        def start(port: int) -> int:
            tried.append(port)
            if port == usual:
                quicker.bind(("127.0.0.1", port))
            service = http_service(tmp_path, port)
            started.append(service)
            wait_until(lambda: answers(url_of(port), service), service, tmp_path)
            return port

        found = on_a_port(usual, start)
    assert tried == [usual, found]
    assert found != usual
    assert [service.process() is not None for service in started] == [False, True]


def test_a_service_that_cannot_start_on_a_free_port_is_not_started_again(tmp_path: Path) -> None:
    tried: list[int] = []

    def start(port: int) -> None:
        tried.append(port)
        service = launch("broken", [sys.executable, "-c", "raise SystemExit(1)"], tmp_path, {})
        wait_until(lambda: answers(url_of(port), service), service, tmp_path)

    with pytest.raises(PlatformError, match="broken ended while it started") as caught:
        on_a_port(free_port(), start)
    assert len(tried) == 1
    assert caught.value.where == str(tmp_path / "logs" / "broken.log")


def test_the_answer_of_another_program_is_not_taken_for_that_of_a_service(tmp_path: Path, started: list[ServiceProcess]) -> None:
    started.append(launch("silent", ["sleep", "600"], tmp_path, {}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = url_of(other.server_port)
        this = psutil.Process()
        assert answers(url, ServiceProcess(name="this", pid=this.pid, created=this.create_time()))
        assert not answers(url, started[0])
        other.shutdown()


def test_services_that_another_command_is_starting_are_not_started_twice(tmp_path: Path) -> None:
    folder = tmp_path / "services"
    folder.mkdir()
    # Nothing new can start here, as no log can be written.
    (folder / "logs").touch()
    address = "http://127.0.0.1:9"
    this = ServiceProcess(name="this", pid=os.getpid(), created=psutil.Process().create_time())
    services = Services(prefect_api=address, prefect_ui=address, dask_address="", dask_dashboard="", folder=folder, processes=[this])
    with ThreadPoolExecutor(1) as pool:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            second = pool.submit(start_services, Settings(root=str(tmp_path)), tmp_path / "prefect.yaml")
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            (folder / "services.json").write_text(services.model_dump_json())
        with pytest.raises(InputError, match="the services run already"):
            second.result(timeout=60)
