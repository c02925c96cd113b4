"""Servers that a process starts for itself end with it, however it ends: a guard stands between the two.

    python -I -S -B guard.py PROCESS COMMAND...

The guard runs COMMAND, and ends when COMMAND or PROCESS does; the kernel kills COMMAND when its guard is gone. (That signal alone would
be sent as soon as the thread ends that started the server, so it cannot be the process's own.) Standard library alone, and quick to start.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def guarded(command: Sequence[str]) -> list[str]:
    """A command that runs another one for as long as the calling process lives; told to terminate, it passes that on."""
    return [sys.executable, "-I", "-S", "-B", __file__, str(os.getpid()), *command]


def main(process: int, command: Sequence[str]) -> NoReturn:
    """Run the command until it ends or the process does."""
    prctl = ctypes.CDLL(None).prctl
    owner = os.pidfd_open(process)
    if os.getppid() != process:
        sys.exit("whoever started this is gone")
    # Safe, as a guard has one thread.
    server = subprocess.Popen(command, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    select.select([owner, os.pidfd_open(server.pid)], [], [])
    code = server.poll()
    sys.exit(1 if code is None else code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
