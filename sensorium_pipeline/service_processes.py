"""Processes of this machine that go on by themselves: started on ports of their own, waited for, stopped with all their children."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel

from sensorium_pipeline.errors import PlatformError

START_TIMEOUT = 120  # seconds; a first start of Prefect makes its database
STOP_TIMEOUT = 15  # seconds

Started = TypeVar("Started")


class ServiceProcess(BaseModel):
    """One process: its number and its time of birth, so that a number used again is not mistaken for it."""

    name: str
    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


def free_port(preferred: int = 0) -> int:
    """A free TCP port of the loopback address: the preferred one if it can be had."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise PlatformError("no free port on the loopback address", advice="End something that listens on this machine.")


def launch(name: str, command: list[str], folder: Path, environment: Mapping[str, str]) -> ServiceProcess:
    """Start a service in a session of its own, logging to `<folder>/logs/<name>.log`."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=folder,
            start_new_session=True,
        )
    return ServiceProcess(name=name, pid=child.pid, created=psutil.Process(child.pid).create_time())


def stop(services: list[ServiceProcess]) -> None:
    """End processes and all their children, politely first."""
    processes: list[psutil.Process] = []
    for service in reversed(services):
        if process := service.process():
            processes += [process, *process.children(recursive=True)]
    for process in processes:
        _signal(process, "terminate")
    _, left = psutil.wait_procs(processes, timeout=STOP_TIMEOUT)
    for process in left:
        _signal(process, "kill")
    psutil.wait_procs(left, timeout=STOP_TIMEOUT)


def _signal(process: psutil.Process, action: str) -> None:
    try:
        getattr(process, action)()
    except psutil.NoSuchProcess:
        return


def wait_until(ready: Callable[[], bool], service: ServiceProcess, folder: Path) -> None:
    """Return when a service that was launched is ready; where it does not get ready, it is stopped.

    Raises:
        PlatformError: the process ended, or was not ready in time; names the log.
    """
    deadline = time.monotonic() + START_TIMEOUT
    log = folder / "logs" / f"{service.name}.log"
    try:
        while not ready():
            if service.process() is None:
                raise PlatformError(f"{service.name} ended while it started", where=log, advice="Its log says why.")
            if time.monotonic() > deadline:
                raise PlatformError(f"{service.name} did not answer within {START_TIMEOUT} s", where=log, advice="Its log may say why.")
            time.sleep(0.1)
    except BaseException:
        stop([service])
        raise


def answers(url: str, service: ServiceProcess) -> bool:
    """Whether the URL answers, and it is this service that does: another program may have been quicker to take the port."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status != 200:
                return False
    except (OSError, HTTPException):
        return False
    process, port = service.process(), urlsplit(url).port
    with suppress(psutil.NoSuchProcess):
        for each in [process, *process.children(recursive=True)] if process else []:
            if any(held.status == psutil.CONN_LISTEN and held.laddr.port == port for held in each.net_connections("tcp")):
                return True
    return False


def on_a_port(usual: int, start: Callable[[int], Started]) -> Started:
    """Start something on its usual port, or on any where another program has that, or is quicker to take it."""
    port = free_port(usual)
    try:
        return start(port)
    except PlatformError:
        if free_port(port) == port:
            raise
    return start(free_port())
