"""Submissions that take more than they may have (processes, memory, time, disk, output): each ends as the limit that it ran into."""

import time
from dataclasses import replace

import pytest
from submission_samples import GOOD, SMALL, Attack, problem


def test_fork_bomb(attack: Attack) -> None:
    code = """
    import os, time
    def build(context):
        while True:
            try:
                if os.fork() == 0:
                    continue
            except OSError:
                pass
    """
    outcome = attack(code, replace(SMALL, wall_seconds=2))
    # It goes on trying until the deadline; one that gives up is told what it ran into.
    assert "out of time" in problem(outcome, "ResourceLimitError")
    code = "import os, time\ndef build(context):\n    while os.fork():\n        pass\n    time.sleep(60)\n"
    assert "too many processes: more than 24" in problem(attack(code), "ResourceLimitError")


def test_memory(attack: Attack) -> None:
    code = """
    import numpy as np
    def build(context):
        hoard = []
        while True:
            hoard.append(np.ones(2**24))
    """
    outcome = attack(code)
    assert "out of memory: more than 512 MB" in problem(outcome, "ResourceLimitError")
    # Also by many processes, each of them small.
    code = """
    import os, time
    import numpy as np
    def build(context):
        for _ in range(15):
            if os.fork() == 0:
                hoard = np.ones(2**23)
                time.sleep(30)
        time.sleep(30)
    """
    # The kernel, or where it counts nothing the worker, ends one of the children; the runner would sleep on.
    outcome = attack(code)
    assert "out of memory: more than 512 MB" in problem(outcome, "ResourceLimitError")
    assert outcome.wall_seconds < 10


def test_time_limit_ignores_nothing(attack: Attack) -> None:
    code = """
    import os, signal, time
    def build(context):
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for descriptor in range(64):
                    try:
                        os.close(descriptor)
                    except OSError:
                        pass
                while True:
                    time.sleep(0.01)
        while True:
            time.sleep(1)
    """
    started = time.monotonic()
    outcome = attack(code, replace(SMALL, wall_seconds=2))
    assert "out of time: longer than 2 s" in problem(outcome, "ResourceLimitError")
    assert 2 <= outcome.wall_seconds < 4
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("descriptor", [1, 2, 3])
def test_output_bomb(attack: Attack, descriptor: int) -> None:
    code = f"import os\ndef build(context):\n    while True:\n        os.write({descriptor}, b'x' * 65536)\n"
    outcome = attack(code)
    if descriptor == 3:
        assert "stream of results is broken" in problem(outcome)
    else:
        assert "more than 4 MB of printed text" in problem(outcome, "ResourceLimitError")


def test_state_bomb(attack: Attack) -> None:
    code = GOOD.replace("return self.mean\n", "return {str(n): np.zeros(2**22) for n in range(3)}\n")
    assert "state.npz is empty, or larger than 67108864 bytes" in problem(attack(code), "ResourceLimitError")


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_disk(attack: Attack, folder: str) -> None:
    code = f"""
    def build(context):
        with open("{folder}/filler", "wb") as file:
            while True:
                file.write(bytes(2**20))
    """
    assert "out of disk: more than 16 MB" in problem(attack(code), "ResourceLimitError")
