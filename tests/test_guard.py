"""A process that is killed leaves none of its servers running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sensorium_pipeline.guard import guarded

SERVERS = """
import sys, time
from pathlib import Path
from sensorium_pipeline.services import prefect_server
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage.local_s3 import LocalS3Server

folder = Path(sys.argv[1])
with LocalS3Server(folder / "s3"), prefect_server(Settings(root=str(folder))):
    print("they answer", flush=True)
    time.sleep(600)
"""


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def commands(processes: list[psutil.Process]) -> str:
    return " ".join(" ".join(process.cmdline()) for process in processes)


def test_servers_of_a_killed_command_end_with_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = subprocess.Popen([sys.executable, "-c", SERVERS, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert command.stdout is not None
    with command.stdout as output:
        assert output.readline() == b"they answer\n"
        servers = psutil.Process(command.pid).children(recursive=True)
        assert "prefect server start" in commands(servers)
        assert "-s3.port" in commands(servers)
        command.kill()
        command.wait()
    assert psutil.wait_procs(servers, timeout=30)[1] == []


@pytest.mark.parametrize(("sent", "ends_with"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_guard_that_is_told_to_end_takes_its_server_with_it(sent: signal.Signals, ends_with: int, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    server = (
        f"import signal, time; signal.signal(15, lambda *_: (open({str(stopped)!r}, 'w'), exit(0))); print(1, flush=True); time.sleep(600)"
    )
    guard = subprocess.Popen(guarded([sys.executable, "-c", server]), stdout=subprocess.PIPE)
    assert guard.stdout is not None
    with guard.stdout as output:
        output.readline()
        (process,) = psutil.Process(guard.pid).children()
        guard.send_signal(sent)
        assert guard.wait(60) == ends_with
    wait_until(lambda: not process.is_running())
    assert stopped.exists() == (sent == signal.SIGTERM)


def test_a_guard_ends_as_its_server_does() -> None:
    assert subprocess.run(guarded([sys.executable, "-c", "raise SystemExit(7)"]), check=False).returncode == 7
