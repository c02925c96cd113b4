"""A command that is told to end says that it was, and what to do."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTED = 130


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_says_that_it_can_be_gone_on_with(sent: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
import sensorium_pipeline.recordings.simulation as simulation
simulation.simulate_recording = lambda *_: os.kill(os.getpid(), {int(sent)})
from sensorium_pipeline.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
main()
"""
    command = [sys.executable, "-c", code, "simulate-recording", str(tmp_path / "raw")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == INTERRUPTED
    assert "interrupted; what was finished is kept" in done.stderr
    assert "Traceback" not in done.stderr
