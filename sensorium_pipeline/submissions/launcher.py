"""The step between the trusted worker and bubblewrap: a program of its own, standard library alone, started with an empty environment.

    python -I -S -B launcher.py SPECIFICATION_DESCRIPTOR RESULT_DESCRIPTOR INFORMATION_DESCRIPTOR WORKER_PROCESS

It exists because everything here must happen after the fork and before bubblewrap, where threads of a worker forbid running Python
in the forked child: joining the control groups, the process limits, handing the files over, and above all becoming a real
unprivileged user of the host. (With `bwrap --uid` alone, root stays root of the host and no process limit applies.)

An unprivileged user can often not reach the files that the sandbox needs (a Python below /root, staged data below a private folder).
So, while still root, the launcher goes into a mount namespace of its own and binds each of them below a small private file system;
bubblewrap binds on from there, and no path of the host appears in its arguments.
"""

import ctypes
import fcntl
import json
import os
import resource
import stat
import sys
from typing import Any, NoReturn

CLONE_NEWNS = 0x00020000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_NOSUID_NODEV = 0x2 | 0x4
PR_SET_PDEATHSIG = 1
SIGKILL = 9
RESULT_DESCRIPTOR = 3
# No distribution and no container manager hands out user ids from here on, and adding the process id makes each run a user of its own.
FIRST_USER = 0x70000000
FALLBACK_FIRST_USER = 20000


def main(specification: int, result: int, information: int, worker: int) -> NoReturn:
    """Read the specification, give up everything that the sandbox must not have, and become bubblewrap."""
    with os.fdopen(specification, "rb") as file:
        spec: dict[str, Any] = json.loads(file.read())
    if information == RESULT_DESCRIPTOR:
        information = os.dup(information)
        os.set_inheritable(information, True)
    if result != RESULT_DESCRIPTOR:
        os.dup2(result, RESULT_DESCRIPTOR)
        os.close(result)
    os.set_inheritable(RESULT_DESCRIPTOR, True)
    libc = ctypes.CDLL(None, use_errno=True)

    for tasks_file in spec["control_groups"]:
        with open(tasks_file, "w") as file:
            file.write(str(os.getpid()))
    with open("/proc/self/oom_score_adj", "w") as file:
        # Where the machine itself runs out of memory, the kernel ends a sandbox before anything else.
        file.write("1000")
    for name, value in spec["resource_limits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))

    sources = [os.fsencode(source) for source, _, _ in spec["binds"]]
    prefix: list[str] = []
    options: list[bytes] = [os.fsencode(option) for option in spec["options"]]
    if os.geteuid() == 0:
        sources = hand_over(libc, sources)
        user = unused_user()
        if spec["user_namespace"]:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        else:
            # Without a user namespace only root may make the sandbox; the change of user happens inside, as its first act.
            options += [b"--cap-drop", b"ALL", b"--cap-add", b"CAP_SETUID", b"--cap-add", b"CAP_SETGID", b"--cap-add", b"CAP_SETPCAP"]
            prefix = [spec["setpriv"], f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    for source, (_, target, kind) in zip(sources, spec["binds"], strict=True):
        options += [kind.encode(), source, os.fsencode(target)]
    options += [os.fsencode(option) for option in spec["last_options"]]
    options += [b"--info-fd", str(information).encode(), b"--seccomp", str(in_memory("filter", bytes.fromhex(spec["seccomp"]))).encode()]

    # Changing the user id cleared nothing of the parent's own, but it would have cleared this; so it is set last.
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != worker:
        sys.exit("the worker died")
    arguments = in_memory("options", b"".join(option + b"\0" for option in options))
    # The options go through a descriptor: bubblewrap's own command line can be read inside, as that of process 1.
    command = [spec["bwrap"], "--args", str(arguments), "--", *prefix, *spec["command"]]
    os.execve(spec["bwrap"], command, {})


def hand_over(libc: ctypes.CDLL, sources: list[bytes]) -> list[bytes]:
    """Bind every source below a private file system that any user can walk through; returns the new places."""
    check(libc.unshare(CLONE_NEWNS), "unshare")
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
    descriptors = [os.open(source, os.O_PATH | os.O_CLOEXEC) for source in sources]
    place = b"/tmp"
    check(libc.mount(b"tmpfs", place, b"tmpfs", MS_NOSUID_NODEV, b"mode=0755,size=1m"), "mount")
    places = []
    for number, descriptor in enumerate(descriptors):
        target = place + b"/%d" % number
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        check(libc.mount(b"/proc/self/fd/%d" % descriptor, target, None, MS_BIND | MS_REC, None), "mount")
        os.close(descriptor)
        places.append(target)
    return places


def unused_user() -> int:
    """A user id of the host that nobody has, different for every process that runs at the same time."""
    wanted = FIRST_USER + os.getpid()
    with open("/proc/self/uid_map") as file:
        for line in file:
            inside, _, length = (int(part) for part in line.split())
            if inside <= wanted < inside + length:
                return wanted
    return FALLBACK_FIRST_USER + os.getpid() % 40000


def in_memory(name: str, content: bytes) -> int:
    """A descriptor, inherited by bubblewrap, from which it reads the content."""
    descriptor = os.memfd_create(name, 0)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_SETFD, 0)
    return descriptor


def check(result: int, call: str) -> None:
    """Turn a failed call of the C library into an exception."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
