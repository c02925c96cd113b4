"""Control groups of one sandbox: hard caps on memory and processes, with counters that say for certain why a process was killed, and one
share of the processors, however many processes it starts.

Version 1 and version 2 hierarchies (Linux kernel documentation, admin-guide/cgroup-v1 and cgroup-v2). Groups are made below the
worker's own, so a sandbox stays inside whatever limits the worker itself has. Where none can be made (no rights, or a version 2
group that still holds processes of its own) the caller falls back to process limits.
"""

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
_counter = itertools.count()


@dataclass(frozen=True)
class Usage:
    """What the counters said: kills for want of memory, forks refused, and the highest memory in bytes (None: not counted)."""

    memory_kills: int
    refused_forks: int
    peak_memory_bytes: int | None


class ControlGroup:
    """The group of one sandbox: one folder in a version 2 hierarchy, or one for each of memory, pids and cpu in version 1.

    Attributes:
        limits_memory, limits_processes: whether the cap is in force.
    """

    def __init__(self, memory_bytes: int, processes: int, mount: Path = MOUNT) -> None:
        name = f"sensorium-{os.getpid()}-{next(_counter)}"
        self._memory: Path | None = None
        self._processes: Path | None = None
        self._second_version = (mount / "cgroup.controllers").exists()
        if self._second_version:
            folder = _make(_second_version_parent(mount), name)
            if folder is not None and _write(folder / "memory.max", memory_bytes):
                self._memory = folder
                _write(folder / "memory.swap.max", 0)
                _write(folder / "memory.oom.group", 1)
            if folder is not None and _write(folder / "pids.max", processes):
                self._processes = folder
            self._folders = [folder] if folder is not None else []
        else:
            memory, pids, cpu = (_make(_first_version_parent(mount, controller), name) for controller in ("memory", "pids", "cpu"))
            if memory is not None and _write(memory / "memory.limit_in_bytes", memory_bytes):
                self._memory = memory
                _write(memory / "memory.memsw.limit_in_bytes", memory_bytes)
            if pids is not None and _write(pids / "pids.max", processes):
                self._processes = pids
            self._folders = [folder for folder in (memory, pids, cpu) if folder is not None]

    @property
    def limits_memory(self) -> bool:
        """Whether the memory cap is in force."""
        return self._memory is not None

    @property
    def limits_processes(self) -> bool:
        """Whether the cap on processes is in force."""
        return self._processes is not None

    @property
    def membership_files(self) -> list[str]:
        """The files into which a process writes its id to join."""
        return [str(folder / "cgroup.procs") for folder in self._folders]

    def usage(self) -> Usage:
        """The counters; read them before `remove`."""
        kills, peak = 0, None
        if self._memory is not None:
            kills = _counted(self._memory / ("memory.events" if self._second_version else "memory.oom_control"), "oom_kill")
            peak = _number(self._memory / ("memory.peak" if self._second_version else "memory.max_usage_in_bytes"))
        refused = _counted(self._processes / "pids.events", "max") if self._processes is not None else 0
        return Usage(kills, refused, peak)

    def kill(self) -> None:
        """Send SIGKILL to every process of the group, until none is left or two seconds have passed."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            left = {number for folder in self._folders for number in _members(folder)}
            if not left:
                return
            for number in left:
                try:
                    os.kill(number, 9)
                except (ProcessLookupError, PermissionError):
                    continue
            time.sleep(0.005)

    def remove(self) -> None:
        """Kill what is left in the group and remove it."""
        self.kill()
        for folder in self._folders:
            for _ in range(100):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    # A killed process stays counted until its parent has taken note of it.
                    time.sleep(0.01)
                else:
                    break


def _first_version_parent(mount: Path, controller: str) -> Path | None:
    """The worker's own group of a version 1 controller."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            folder = mount / controller / path.lstrip("/")
            # Inside a container the path may be the host's, while the mount shows only the container's own part.
            for parent in (folder, mount / controller):
                if (parent / "cgroup.procs").exists():
                    return parent
    return None


def _second_version_parent(mount: Path) -> Path | None:
    """The worker's own version 2 group, when it may hand memory and pids on to groups below."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            folder = mount / line[3:].lstrip("/")
            parent = folder if (folder / "cgroup.procs").exists() else mount
            control = parent / "cgroup.subtree_control"
            missing = {"memory", "pids"} - set(_read(control).split())
            if missing and not _write(control, " ".join(f"+{name}" for name in sorted(missing))):
                return None
            # Where it is refused, hundreds of processes of one sandbox can take the processors from all others.
            _write(control, "+cpu")
            return parent
    return None


def _make(parent: Path | None, name: str) -> Path | None:
    if parent is None:
        return None
    _sweep(parent)
    try:
        (parent / name).mkdir()
    except OSError:
        return None
    return parent / name


def _sweep(parent: Path) -> None:
    """Remove empty groups of workers that were killed before they could do it themselves."""
    for old in parent.glob("sensorium-*-*"):
        worker = old.name.split("-")[1]
        if not Path("/proc", worker).exists():
            try:
                old.rmdir()
            except OSError:
                continue


def _write(path: Path, value: object) -> bool:
    try:
        with path.open("r+") as file:
            file.write(str(value))
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _counted(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return int(words[1])
    return 0


def _members(folder: Path) -> list[int]:
    return [int(word) for word in _read(folder / "cgroup.procs").split()]
