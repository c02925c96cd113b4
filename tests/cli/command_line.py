"""Run `sensorium` as a user does, and look at what it says."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sensorium_pipeline import cli

SERVICES = ("PREFECT_", "SENSORIUM_", "DASK_")


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    error: str


def in_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: Sequence[object]) -> Said:
    """Run a command that needs no services in this process, which saves the start of Python."""
    monkeypatch.setattr(sys, "argv", ["sensorium", *map(str, arguments)])
    capsys.readouterr()
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert isinstance(code, int)
    return Said(code, printed.out, printed.err)


def as_process(*arguments: object, cwd: Path | None = None, **variables: str) -> Said:
    """Run a command in a process of its own, in an environment without services of other tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SERVICES)}
    command = [sys.executable, "-c", "from sensorium_pipeline.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, env=environment | variables, cwd=cwd, capture_output=True, text=True, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def assert_one_error(said: Said, *parts: str, code: int = 1) -> None:
    """Exit code 1 and one error, without a traceback, that holds all of the parts."""
    assert said.code == code, said
    assert "Traceback" not in said.error + said.out
    errors = [line for line in said.error.splitlines() if line.startswith(("error ", "internal error", "Error"))]
    assert len(errors) == 1, said.error
    for part in parts:
        assert part in errors[0], errors[0]
    assert said.out == ""
