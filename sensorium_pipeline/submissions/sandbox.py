"""Run one command in a sandbox: no network, no files but those handed in, no privileges, and a definite end.

What comes out is one stream of bytes through an inherited pipe (descriptor 3 inside), never interpreted here and limited by whoever
receives it, and what the command printed (capped, for organisers only: a print could carry hidden stimuli out). No folder of the host
can be written.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import sensorium_pipeline
from sensorium_pipeline.errors import IsolationError, PlatformError, ResourceLimitError, SubmissionError
from sensorium_pipeline.progress import never
from sensorium_pipeline.submissions import launcher
from sensorium_pipeline.submissions.control_groups import ControlGroup, Usage
from sensorium_pipeline.submissions.memory_watch import machine_is_full, memory_of
from sensorium_pipeline.submissions.seccomp import filter_program

RESULT_DESCRIPTOR = launcher.RESULT_DESCRIPTOR
INSIDE_USER = "1000"
MEBIBYTE = 1024**2
# bubblewrap itself is two processes, and the command starts as a third.
OWN_PROCESSES = 4
POLL_SECONDS = 0.1

Status = Literal["exited", "timeout", "memory", "console", "protocol", "stopped"]


class IsolationTier(StrEnum):
    """How strangers' code is kept apart on this machine, best first; recorded with every result."""

    USER_NAMESPACE = "bubblewrap with user namespace"
    NO_USER_NAMESPACE = "bubblewrap without user namespace"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes:
        wall_seconds: from start to kill.
        memory_bytes: all processes together, private files included; without control group, private files come on top.
        processes: processes and threads inside at any time.
        threads: threads that numeric libraries start by themselves; one, as there is a worker a core, and sums do not depend on it then.
        disk_bytes: private temporary files (/tmp, and as much again in /dev/shm).
        output_bytes: the trained state, and each checkpoint; predictions have a size that is known.
        console_bytes: what is printed.
        checkpoint_seconds: between two checkpoints.
    """

    wall_seconds: float = 3600.0
    memory_bytes: int = 8 * 1024 * MEBIBYTE
    processes: int = 256
    threads: int = 1
    disk_bytes: int = 1024 * MEBIBYTE
    output_bytes: int = 2 * 1024 * MEBIBYTE
    console_bytes: int = 4 * MEBIBYTE
    checkpoint_seconds: float = 30.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: "exited" by itself, or why it was killed ("memory": the kernel killed it at the cap; "protocol": the receiver of the
            result stream refused it, see `refusal`; "stopped": the caller asked).
        exit_code: of the command, 128 + signal number when it was killed by one; None when the sandbox was killed.
        peak_memory_bytes: of all its processes together; where there is no control group, as seen ten times a second.
        memory_watched: whether no control group capped its memory, but the worker did: see `memory_watch`.
        refused_forks: how often a new process or thread was refused at the cap.
        console: what was printed to standard output and error, together, capped.
    """

    status: Status
    exit_code: int | None
    wall_seconds: float
    peak_memory_bytes: int | None
    refused_forks: int
    console: bytes
    memory_watched: bool = False
    refusal: SubmissionError | ResourceLimitError | None = None


def run_isolated(
    command: Sequence[str],
    *,
    tier: IsolationTier,
    limits: Limits,
    read_only: Mapping[str, Path],
    environment: Mapping[str, str] | None = None,
    devices: Sequence[Path] = (),
    receive: Callable[[bytes], None] | None = None,
    stop: Callable[[], bool] = never,
) -> Outcome:
    """Run a command in a fresh sandbox and wait for its end.

    Args:
        command: program (a path inside, such as `sys.executable`) and arguments.
        tier: a tier that `probe_isolation` found to hold on this machine.
        limits: see `Limits`.
        read_only: place inside -> file or folder of the host; beside these the sandbox sees /usr, this Python and this package.
        environment: variables beside the sandbox's own few.
        devices: GPU device nodes to bind; with any, /sys is shown read-only.
        receive: called with each piece of the result stream; a `SubmissionError` or `ResourceLimitError` that it raises ends the run
            as "protocol".
        stop: asked ten times a second; True ends the run as "stopped".

    Raises:
        IsolationError: the tier is "refuse", or bubblewrap is missing.
        PlatformError: the sandbox could not be started.
    """
    bwrap, setpriv, prlimit = (shutil.which(name) for name in ("bwrap", "setpriv", "prlimit"))
    if tier is IsolationTier.REFUSE or bwrap is None or setpriv is None or prlimit is None:
        raise IsolationError(
            "strangers' code cannot be isolated on this machine", where="sandbox", advice="apt-get install bubblewrap util-linux"
        )
    group = ControlGroup(limits.memory_bytes, limits.processes + OWN_PROCESSES)
    # One above the group's cap, where there is a group: its counter then tells what happened.
    nproc = limits.processes + 2 * OWN_PROCESSES
    binds = _binds(read_only, devices)
    specification = {
        "bwrap": bwrap,
        "setpriv": setpriv,
        "user_namespace": tier is IsolationTier.USER_NAMESPACE,
        "control_groups": group.membership_files,
        "resource_limits": _resource_limits(limits, group, with_gpu=bool(devices)),
        "binds": binds,
        "options": _options(tier, limits) + _folders([place for _, place, _ in binds]),
        "last_options": _last_options({**_environment(limits), **(environment or {})}),
        "seccomp": filter_program(uncounted_memory=group.limits_memory).hex(),
        "command": [prlimit, f"--nproc={nproc}", "--", *command],
    }
    try:
        return _Run(specification, group, limits, receive, stop).finish()
    finally:
        group.remove()


def _resource_limits(limits: Limits, group: ControlGroup, with_gpu: bool) -> dict[str, int]:
    values = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 4096, "RLIMIT_MSGQUEUE": 0, "RLIMIT_MEMLOCK": 64 * MEBIBYTE}
    if not group.limits_memory and not with_gpu:
        # Beside the watch, for a clear error at once: what each process can write to. CUDA reserves far more than it uses.
        values["RLIMIT_DATA"] = limits.memory_bytes
    return values


def _binds(read_only: Mapping[str, Path], devices: Sequence[Path]) -> list[tuple[str, str, str]]:
    """(source, place inside, kind of bind) of everything that is shown inside."""
    places: dict[str, Path] = {"/usr": Path("/usr")}
    for folder in ("/bin", "/sbin", "/lib", "/lib64", "/lib32"):
        if Path(folder).is_dir() and not Path(folder).is_symlink():
            places[folder] = Path(folder)
    # Of /etc only what the dynamic linker needs.
    for name in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        if Path(name).exists():
            places[name] = Path(name)
    package = Path(sensorium_pipeline.__file__).resolve().parent
    for needed in (Path(sys.base_prefix), Path(sys.prefix), package):
        # Never the folder around the package: a workspace, and with it the sealed store, may lie there.
        if not any(needed.is_relative_to(shown) for shown in places):
            places[str(needed)] = needed
    places |= {target: Path(source) for target, source in read_only.items()}
    binds = [(str(source), target, "--ro-bind") for target, source in places.items()]
    if devices:
        binds.append(("/sys", "/sys", "--ro-bind"))
        binds += [(str(node), str(node), "--dev-bind") for node in devices]
    return binds


def _options(tier: IsolationTier, limits: Limits) -> list[str]:
    options = ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    options += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if tier is IsolationTier.USER_NAMESPACE:
        options += ["--unshare-user", "--uid", INSIDE_USER, "--gid", INSIDE_USER]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for place in ("/tmp", "/dev/shm"):
        options += ["--perms", "1777", "--size", str(limits.disk_bytes), "--tmpfs", place]
    for folder in ("/bin", "/sbin", "/lib", "/lib64", "/lib32"):
        if Path(folder).is_symlink():
            options += ["--symlink", os.readlink(folder), folder]
    return options


def _folders(places: Sequence[str]) -> list[str]:
    """The folders above every place inside; bubblewrap by itself would close some of them to others than root."""
    above = {str(folder) for place in places for folder in Path(place).parents} - {"/", "/usr", "/tmp", "/dev", "/proc"}
    return [option for folder in sorted(above) for option in ("--perms", "0755", "--dir", folder)]


def _last_options(environment: Mapping[str, str]) -> list[str]:
    # bubblewrap's own root and /dev are file systems without a size limit.
    options = ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    for name, value in environment.items():
        options += ["--setenv", name, value]
    return options


def _environment(limits: Limits) -> dict[str, str]:
    threads = str(limits.threads)
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "USER": "participant",
        "LOGNAME": "participant",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "NUMBA_CACHE_DIR": "/tmp",
        "MPLCONFIGDIR": "/tmp",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


class _Run:
    """One process tree, its three pipes and its end."""

    def __init__(
        self,
        specification: dict[str, object],
        group: ControlGroup,
        limits: Limits,
        receive: Callable[[bytes], None] | None,
        stop: Callable[[], bool],
    ) -> None:
        self._group, self._limits, self._receive, self._stop = group, limits, receive, stop
        self._console = bytearray()
        self._peak_memory = 0
        self._status: Status | None = None
        self._refusal: SubmissionError | ResourceLimitError | None = None
        self._started = time.monotonic()
        self._next_check = self._started
        description = os.memfd_create("specification")
        os.write(description, json.dumps(specification).encode())
        os.lseek(description, 0, os.SEEK_SET)
        self._result, result_end = os.pipe()
        self._information, information_end = os.pipe()
        self._told = bytearray()
        self._first_inside: int | None = None
        inherited = (description, result_end, information_end)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", launcher.__file__, *map(str, inherited), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=inherited,
                env={},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._result)
            os.close(self._information)
            raise PlatformError(f"the sandbox could not be started: {error}", where="sandbox") from error
        finally:
            for descriptor in inherited:
                os.close(descriptor)

    def finish(self) -> Outcome:
        process = self._process
        pipes = (process.stdout, process.stderr)
        watched = selectors.DefaultSelector()
        watched.register(self._result, selectors.EVENT_READ, "result")
        watched.register(self._information, selectors.EVENT_READ, "information")
        for pipe in pipes:
            if pipe is not None:
                watched.register(pipe.fileno(), selectors.EVENT_READ, "console")
        ended = os.pidfd_open(process.pid)
        watched.register(ended, selectors.EVENT_READ, "ended")
        try:
            while self._status is None and watched.get_map():
                for key, _ in watched.select(POLL_SECONDS):
                    if key.data == "ended" or not self._take(key.fd, key.data):
                        watched.unregister(key.fd)
                self._check()
        finally:
            # Also when a receiver failed on our side: nothing of the run outlives this call.
            self._kill()
            _, status = os.waitpid(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            usage = self._group.usage()
            watched.close()
            os.close(ended)
            os.close(self._result)
            os.close(self._information)
            if self._first_inside is not None:
                os.close(self._first_inside)
            for pipe in pipes:
                if pipe is not None:
                    pipe.close()
        return self._outcome(usage)

    def _check(self) -> None:
        """Look at the clock, the stop signal and the counters, ten times a second."""
        now = time.monotonic()
        if self._status is not None or now < self._next_check:
            return
        self._next_check = now + POLL_SECONDS
        if now - self._started > self._limits.wall_seconds:
            self._status = "timeout"
        elif self._stop():
            self._status = "stopped"
        elif self._group.limits_memory:
            if self._group.usage().memory_kills:
                # The kernel may have chosen any one of its processes, and the others may wait for that one for ever.
                self._status = "memory"
        else:
            self._watch_memory()

    def _watch_memory(self) -> None:
        held = memory_of(self._process.pid, self._limits.memory_bytes)
        self._peak_memory = max(self._peak_memory, held)
        if held > self._limits.memory_bytes:
            self._status = "memory"
        elif machine_is_full():
            raise PlatformError("this machine has hardly any memory left", where="sandbox", advice="It is tried again; start fewer workers")

    def _take(self, descriptor: int, kind: str) -> bool:
        """Read what is there; False at the end of the stream."""
        data = os.read(descriptor, MEBIBYTE)
        if kind == "information":
            self._told += data
            if not data:
                self._find_first_inside()
        elif kind == "console":
            self._console += data[: self._limits.console_bytes - len(self._console)]
            if len(self._console) >= self._limits.console_bytes:
                self._status = self._status or "console"
        elif data and self._receive is not None and self._status is None:
            try:
                self._receive(data)
            except (SubmissionError, ResourceLimitError) as refusal:
                self._refusal, self._status = refusal, "protocol"
        return bool(data)

    def _find_first_inside(self) -> None:
        """Hold on to process 1 of the sandbox, whose number bubblewrap tells before it lets it run."""
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            self._first_inside = os.pidfd_open(json.loads(self._told)["child-pid"])

    def _kill(self) -> None:
        if self._first_inside is not None:
            # It is bubblewrap's own, but a submission can write into its memory, so that it outlives bubblewrap; all inside die with it.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_inside, signal.SIGKILL)
        # Nobody has waited for it yet, so the number is still its own even where it has ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._group.kill()

    def _outcome(self, usage: Usage) -> Outcome:
        status = self._status or "exited"
        if usage.memory_kills and status in ("exited", "protocol", "timeout"):
            status = "memory"
        code = self._process.returncode
        if status == "exited" and code == -signal.SIGKILL:
            # Processes inside see neither bubblewrap nor its number, so it was not the submission.
            raise PlatformError("the sandbox was killed from outside", where="sandbox", advice="It is tried again")
        return Outcome(
            status=status,
            exit_code=None if self._status is not None else (code if code >= 0 else 128 - code),
            wall_seconds=time.monotonic() - self._started,
            peak_memory_bytes=usage.peak_memory_bytes or self._peak_memory or None,
            refused_forks=usage.refused_forks,
            console=bytes(self._console),
            memory_watched=not self._group.limits_memory,
            refusal=self._refusal,
        )
