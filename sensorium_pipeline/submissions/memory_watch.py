"""Memory of one sandbox where no control group caps it (its worker is an ordinary user): counted from outside, ten times a second.

What processes hold is counted once however many share it (proc_pid_smaps(5)), and whoever takes more than the cap is killed. What no
process needs to map cannot be seen so: `seccomp` refuses calls that make such memory and temporary files have a size of their own, but what
lies unread in sockets, and shared pages that were made and given back, are not counted. When the machine itself has hardly any left, for
whatever reason, its sandboxes end before anything else does. Only control groups hold against who means harm.
"""

from collections.abc import Iterator
from pathlib import Path

KIBIBYTE = 1024
PRIVATE = ("RssAnon", "RssShmem", "VmSwap")
SHARED_ONCE = ("Pss_Anon", "Pss_Shmem", "SwapPss")
PAGE_TABLES = ("VmPTE",)
LEAST_FREE = 0.02
"""The part of the machine's memory that sandboxes leave to others."""


def memory_of(process: int, most: int) -> int:
    """Bytes that a process and all its descendants hold, files of the host left out.

    Args:
        process: number of the oldest.
        most: as long as the sum stays below with what is shared counted in each, it is that sum, which is quick to get.
    """
    family = list(_family(process))
    held = [_sum(Path(f"/proc/{each}/status"), (*PRIVATE, *PAGE_TABLES)) or 0 for each in family]
    if sum(held) <= most:
        return sum(held)
    # A process that hides its pages counts in full.
    exact = [_sum(Path(f"/proc/{each}/smaps_rollup"), SHARED_ONCE) for each in family]
    tables = [_sum(Path(f"/proc/{each}/status"), PAGE_TABLES) or 0 for each in family]
    return sum(whole if once is None else once + table for whole, once, table in zip(held, exact, tables, strict=True))


def machine_is_full() -> bool:
    """Whether this machine has hardly any memory left."""
    path = Path("/proc/meminfo")
    total, free = _sum(path, ("MemTotal",)), _sum(path, ("MemAvailable",))
    return total is not None and free is not None and free < LEAST_FREE * total


def _family(process: int) -> Iterator[int]:
    """A process and its descendants; inside a namespace of process numbers none can leave the family."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in _read(children).split():
            yield from _family(int(child))


def _sum(path: Path, names: tuple[str, ...]) -> int | None:
    """Sum in bytes of some lines `name: number kB`; None where the file cannot be read or has none of them."""
    found = [line.split() for line in _read(path).splitlines()]
    numbers = [int(words[1]) for words in found if len(words) == 3 and words[0].removesuffix(":") in names]
    return sum(numbers) * KIBIBYTE if numbers else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
