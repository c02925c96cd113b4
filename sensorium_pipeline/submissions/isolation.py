"""Which tier of isolation this machine can hold: found out by trying to break out, not by asking for versions.

What no tier closes, since a submission must see the images of hidden tiers to predict them:
- Predictions are numbers that the submission chooses. They stay in the sealed store, and only scores leave it, so what they could carry
  reaches nobody but as a score of four digits.
- How long a run took, how much memory it used and whether it failed are shown to its team: some bits a submission.
- Progress, held to known words and numbers, and the learning curve are what the submission says; organisers alone see them, as what it
  prints. Its error messages reach its team where they come from the smoke run, which has visible trials alone.
- Two sandboxes on one machine share its processor caches and its clock. One that must not learn from another's timing needs a machine of
  its own. Where no control groups can be made, one that starts hundreds of processes also takes processor time from the other.
- A submission can write itself into process 1 of its sandbox, which has no more rights than itself. Its run ends it all the same; but where
  its worker is killed by SIGKILL at that moment, nobody is left to do so, and it goes on without network and without files until found.

There is no tier of a container runtime on purpose. runc and crun build their walls from the same namespaces, control groups and system call
filter as bubblewrap, and bring a daemon or an image store that runs as root; what would be more is a kernel of its own (gVisor, a virtual
machine), and no code that was never seen to hold runs strangers' code here. Where one is wanted, whole workers go into it: the self-test
below then says whether the sandbox still holds inside.
"""

import functools
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sensorium_pipeline.errors import IsolationError, SensoriumError
from sensorium_pipeline.submissions.control_groups import ControlGroup
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits, run_isolated

INSTALL_ADVICE = "Install bubblewrap and util-linux (Debian: apt-get install bubblewrap util-linux)"
NAMESPACE_ADVICE = (
    "An ordinary user needs user namespaces: see user.max_user_namespaces, on Debian kernel.unprivileged_userns_clone and on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns of sysctl, and the container's own rules; or start it as root"
)
logger = logging.getLogger("distributed.worker")
PROBE_LIMITS = Limits(wall_seconds=20.0, memory_bytes=512 * 1024**2, processes=16)

# Runs inside, standard library alone; what it could do that it must not be able to do goes out as a list of sentences.
PROBE = """
import ctypes, json, os, socket, sys
hidden, port, worker = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
found = []
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
if any(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")):
    found.append("it holds capabilities")
if status["Seccomp"].strip() != "2":
    found.append("no system call filter is in force")
if status["NoNewPrivs"].strip() != "1":
    found.append("it can gain privileges")
if os.getuid() == 0:
    found.append("it is root")
for path in (hidden, "/proc/1/root" + hidden):
    try:
        open(path)
        found.append("it reads files of the host")
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", port), timeout=2)
    found.append("it reaches the network of the host")
except OSError:
    pass
if len([name for name in os.listdir("/proc") if name.isdigit()]) > 5:
    found.append("it sees processes of the host")
if set(os.listdir("/proc/self/fd")) - {"0", "1", "2", "3", "4"}:
    found.append("it inherits open files")
for variables in ("/proc/self/environ", "/proc/1/environ"):
    try:
        if b"SENSORIUM_PROBE" in open(variables, "rb").read():
            found.append("it reads the environment of the host")
    except OSError:
        pass
for folder in ("/", "/usr", "/dev", os.path.dirname(os.__file__)):
    try:
        os.mkdir(folder + "/sensorium-probe")
        found.append("it writes to " + folder)
    except OSError:
        pass
libc = ctypes.CDLL(None)
if libc.unshare(0x10000000) == 0:
    found.append("it can make user namespaces")
if libc.ptrace(0, 0, 0, 0) == 0:
    found.append("it can trace processes")
os.write(3, json.dumps(found).encode())
"""


@dataclass(frozen=True)
class Isolation:
    """The best tier that held on this machine, and why the better ones did not.

    Attributes:
        memory_cap: "control group", or "watched" where the worker may make none: see `memory_watch`.
        process_cap: "control group", or "processes of the user", which the kernel counts within the sandbox's own user namespace.
    """

    tier: IsolationTier
    reasons: tuple[str, ...]
    memory_cap: str
    process_cap: str


@functools.cache
def probe_isolation() -> Isolation:
    """Try the tiers from the best down, each with a program that tries to get out; once a process."""
    reasons: list[str] = []
    group = ControlGroup(PROBE_LIMITS.memory_bytes, PROBE_LIMITS.processes)
    memory_cap = "control group" if group.limits_memory else "watched"
    process_cap = "control group" if group.limits_processes else "processes of the user"
    group.remove()
    missing = _missing()
    if sys.platform != "linux" or missing:
        reasons.append(f"{', '.join(missing)} not found" if missing else "not a Linux machine")
        return Isolation(IsolationTier.REFUSE, tuple(reasons), memory_cap, process_cap)
    for tier in (IsolationTier.USER_NAMESPACE, IsolationTier.NO_USER_NAMESPACE):
        if tier is IsolationTier.NO_USER_NAMESPACE and os.geteuid() != 0:
            reasons.append(f"{tier}: only root can start it")
            continue
        failure = _try(tier)
        if failure is None:
            return Isolation(tier, tuple(reasons), memory_cap, process_cap)
        reasons.append(f"{tier}: {failure}")
    return Isolation(IsolationTier.REFUSE, tuple(reasons), memory_cap, process_cap)


def report_isolation() -> None:
    """The self-test of a worker when it starts: its log says what strangers' code may expect there."""
    isolation = probe_isolation()
    because = f" ({'; '.join(isolation.reasons)})" if isolation.reasons else ""
    logger.info("isolation: %s%s; memory cap: %s; process cap: %s", isolation.tier, because, isolation.memory_cap, isolation.process_cap)


def require_isolation(lowest: IsolationTier = IsolationTier.NO_USER_NAMESPACE) -> IsolationTier:
    """The tier to run strangers' code with: the best that holds here.

    Raises:
        IsolationError: none holds here that is at least `lowest`; the message says why.
    """
    isolation = probe_isolation()
    tiers = list(IsolationTier)  # best first
    if tiers.index(isolation.tier) > min(tiers.index(lowest), tiers.index(IsolationTier.NO_USER_NAMESPACE)):
        raise IsolationError(
            f"strangers' code is refused on this machine: {'; '.join(isolation.reasons)}",
            where="isolation",
            advice=INSTALL_ADVICE if _missing() else NAMESPACE_ADVICE,
        )
    return isolation.tier


def _missing() -> list[str]:
    return [name for name in ("bwrap", "setpriv", "prlimit") if shutil.which(name) is None]


def _try(tier: IsolationTier) -> str | None:
    """What went wrong with a tier, None when it held."""
    received = bytearray()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        hidden = Path(folder, "hidden")
        hidden.write_text("hidden")
        command = [sys.executable, "-I", "-S", "-c", PROBE, str(hidden), str(server.getsockname()[1]), str(os.getpid())]
        # Held open and inheritable on purpose: the sandbox must not get it.
        descriptor = os.open(hidden, os.O_RDONLY)
        os.set_inheritable(descriptor, True)
        try:
            outcome = run_isolated(command, tier=tier, limits=PROBE_LIMITS, read_only={}, receive=received.extend)
        except SensoriumError as error:
            return str(error)
        finally:
            os.close(descriptor)
    try:
        found = json.loads(received)
    except ValueError:
        said = outcome.console.decode(errors="replace").strip().splitlines()
        return f"it did not start ({said[-1] if said else outcome.status})"
    return "; ".join(found) if found else None
