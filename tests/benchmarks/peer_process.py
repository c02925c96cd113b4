"""sinzlab/sensorium with neuralpredictors in an environment of its own, for benchmarks that take turns with it."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def default_tool() -> Path:
    """The peer's timing tool beside the folder of real recordings."""
    data = os.environ.get("SENSORIUM_TEST_DATA")
    shared = Path(data).parent if data else Path(__file__).resolve().parents[3] / "shared"
    return shared / "tools/peers/time_sensorium.py"


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the peer is, and how many threads each side has."""
    parser.add_argument("--peer", help="interpreter of the peer's environment")
    parser.add_argument("--sensorium", type=Path, help="checkout of sinzlab/sensorium")
    parser.add_argument("--neuralpredictors", type=Path, help="checkout of sinzlab/neuralpredictors")
    parser.add_argument("--tool", type=Path, default=default_tool(), help="the peer's timing tool, which also makes the data")
    parser.add_argument("--threads", type=int, default=1)


class PeerProcess:
    """The peer; it does a phase when asked. See peers/serve_sensorium.py."""

    def __init__(self, arguments: argparse.Namespace, **more: object) -> None:
        named = {name: getattr(arguments, name) for name in ("tool", "sensorium", "neuralpredictors", "threads")}
        job = {name: value if isinstance(value, int) else str(value) for name, value in (named | more).items()}
        script = Path(__file__).parent / "peers/serve_sensorium.py"
        self._command = [arguments.peer, "-W", "ignore", str(script), json.dumps(job)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(arguments.threads))
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | threads
        )

    def ask(self, phase: str) -> dict[str, Any]:
        """What a phase gave, with wall and CPU seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(phase) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"the peer ended in the phase {phase}; to see why, run by hand: {self._command}")
        found: dict[str, Any] = json.loads(answer)
        return found


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
