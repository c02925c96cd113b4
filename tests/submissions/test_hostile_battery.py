"""A table of further attacks, each a submission of a few lines: what it tries, and how it is told that it failed.

An attack that looks for something reports it by raising `found: [...]`; an empty list means that it got nothing. After all of them
the next submission predicts the same bytes as before.
"""

import ctypes
import os
import socket
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from submission_samples import GOOD, SMALL, Run, write_submission

from sensorium_pipeline.submissions.control_groups import MOUNT
from sensorium_pipeline.submissions.run import run_submission
from sensorium_pipeline.submissions.sandbox import IsolationTier, Limits

NOTHING = "RuntimeError: found: []"
QUIET_END = "ended by itself with exit code"
BROKEN = "stream of results is broken"
HOST_SOCKET = f"sensorium-host-{os.getpid()}"


@dataclass(frozen=True)
class Attack:
    """What is run inside `build(context)`, and the words of the failure that it must end with."""

    name: str
    code: str
    problem: str = NOTHING
    error: str = "SubmissionError"
    limits: Limits = SMALL


def looks_for(name: str, code: str) -> Attack:
    """An attack that appends what it gets to `found`."""
    return Attack(name, f"found = []\n{textwrap.dedent(code)}\nraise RuntimeError(f'found: {{found}}')")


def sends(name: str, frames: str, problem: str, error: str = "SubmissionError") -> Attack:
    """An attack that writes to the result stream by itself, as `frame(header, body)` and `raw(bytes)`, and ends as if all were well."""
    code = """
    import io, json, os, struct, zipfile
    import numpy as np
    def raw(content):
        view = memoryview(content)
        while view:
            view = view[os.write(3, view):]
    def frame(header, body=b""):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        raw(struct.pack("<I", len(text)) + text + body)
    def npy(array):
        content = io.BytesIO()
        np.save(content, array)
        return content.getvalue()
    def file(body, session="static1-1-1"):
        frame(dict(kind="file", name=f"predictions/{session}.npz", size=len(body)), body)
    def arrays(**changes):
        content = io.BytesIO()
        whole = dict(trial_id=np.arange(20, 27), unit_id=np.arange(10, 25, 3), prediction=np.zeros((7, 5), np.float32))
        np.savez(content, **(whole | changes))
        return content.getvalue()
    def archive(**entries):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as out:
            for name, body in entries.items():
                out.writestr(name.replace("__", "/").replace("UP", ".."), body)
        return content.getvalue()
    """
    return Attack(name, f"{textwrap.dedent(code)}\n{textwrap.dedent(frames)}\nframe(dict(kind='done'))\nos._exit(0)", problem, error)


SYSTEM = [
    looks_for(
        "memory of process 1",
        """
        import re
        for name in ("mem", "environ", "maps", "fd", "map_files", "auxv", "io", "stack", "syscall"):
            try:
                path = f"/proc/1/{name}"
                content = str(os.listdir(path)) if name in ("fd", "map_files") else open(path, "rb").read(2**16)
                if b"SENSORIUM" in (content if isinstance(content, bytes) else content.encode()):
                    found.append(name)
            except OSError:
                pass
        """,
    ),
    looks_for(
        "process_vm_readv of process 1",
        """
        class Part(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        here = ctypes.create_string_buffer(64)
        local, remote = Part(ctypes.addressof(here), 64), Part(0x400000, 64)
        if ctypes.CDLL(None).process_vm_readv(1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) >= 0:
            found.append("memory")
        """,
    ),
    looks_for(
        "killing process 1 and every process of other users",
        """
        import signal
        for number in (1, 0x7fffffff, 2**15, 2**16):
            try:
                os.kill(number, signal.SIGKILL)
                found += [] if number == 1 else [number]
            except OSError:
                pass
        if not os.path.exists("/proc/1"):
            found.append("killed")
        """,
    ),
    Attack("kill(-1)", "try:\n    os.kill(-1, 9)\nexcept OSError:\n    pass\nos.kill(os.getpid(), 9)", QUIET_END),
    looks_for(
        "programs that are setuid",
        """
        for command in (["su", "-c", "id"], ["mount", "-t", "tmpfs", "none", "/tmp"], ["unshare", "-Ur", "true"], ["passwd", "-S"],
                        ["newuidmap", "1", "0", "0", "1"], ["nsenter", "-t", "1", "-m", "true"], ["chroot", "/", "true"]):
            try:
                done = subprocess.run(command, capture_output=True, timeout=5, stdin=subprocess.DEVNULL)
                if done.returncode == 0 and command[0] != "passwd":
                    found.append(command)
            except (OSError, subprocess.TimeoutExpired):
                pass
        """,
    ),
    looks_for(
        "devices",
        """
        for name in ("mem", "kmem", "port", "kmsg", "sda", "vda", "nvidia0", "fuse", "kvm", "vhost-net", "loop0", "net/tun", "snapshot"):
            try:
                os.close(os.open("/dev/" + name, os.O_RDWR))
                found.append(name)
            except OSError:
                pass
        for name, kind, device in (("/tmp/disk", 0o60666, (8, 0)), ("/dev/shm/memory", 0o20666, (1, 1))):
            try:
                os.mknod(name, kind, os.makedev(*device))
                found.append(name)
            except OSError:
                pass
        """,
    ),
    looks_for(
        "the kernel through /proc and /sys",
        """
        for path in ("/proc/kcore", "/proc/kmsg", "/sys/kernel/security", "/sys/fs/cgroup/cgroup.procs", "/sys/class/net",
                     "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/acpi/wakeup"):
            for flags in (os.O_RDONLY, os.O_WRONLY):
                if flags == os.O_RDONLY and path.startswith("/proc/sys/"):
                    continue
                try:
                    os.close(os.open(path, flags))
                    found.append((path, flags))
                except OSError:
                    pass
        """,
    ),
    looks_for(
        "more of what is limited",
        """
        import resource
        for name in ("CORE", "NPROC", "NOFILE", "MEMLOCK", "MSGQUEUE"):
            number = getattr(resource, "RLIMIT_" + name)
            hard = resource.getrlimit(number)[1]
            try:
                resource.setrlimit(number, (hard + 1, hard + 1))
                found.append((name, hard))
            except (ValueError, OSError):
                pass
        for raise_priority in (lambda: os.nice(-5), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)),
                               lambda: os.setpriority(os.PRIO_USER, 0, -1)):
            try:
                raise_priority()
                found.append("priority")
            except OSError:
                pass
        """,
    ),
    Attack("core dump", "os.chdir('/tmp')\nos.abort()", f"{QUIET_END} 134"),
    looks_for(
        "shared memory and queues of the host",
        """
        libc = ctypes.CDLL(None)
        if libc.shmget(0x5e15, 0, 0) >= 0 or libc.msgget(0x5e15, 0) >= 0 or libc.semget(0x5e15, 0, 0) >= 0:
            found.append("shared memory")
        if os.path.exists("/dev/shm/host") or os.path.exists("/dev/mqueue"):
            found.append("files")
        """,
    ),
    looks_for(
        "sockets of the host that have no address in a network",
        """
        for address in ("\\0HOST_SOCKET", "/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket", "/tmp/host.socket"):
            try:
                socket.socket(socket.AF_UNIX).connect(address)
                found.append(address)
            except OSError:
                pass
        """,
    ),
    looks_for(
        "a terminal to type into",
        """
        import fcntl
        try:
            os.open("/dev/tty", os.O_RDWR)
            found.append("tty")
        except OSError:
            pass
        try:
            fcntl.ioctl(0, 0x5412, b"x")
            found.append("TIOCSTI")
        except OSError:
            pass
        """,
    ),
    looks_for(
        "hard links and paths out of what is mapped",
        """
        for make in (lambda: os.link("/submission/model.py", "/tmp/model.py"), lambda: open("/submission/../job/job.json", "w"),
                     lambda: os.rename("/staged", "/tmp/staged"), lambda: os.unlink("/staged/description.json"),
                     lambda: os.truncate("/staged/0/trial_id.npy", 0), lambda: os.utime("/submission/model.py", (0, 0)),
                     lambda: os.setxattr("/submission/model.py", "user.poison", b"1")):
            try:
                make()
                found.append("changed")
            except OSError:
                pass
        """,
    ),
    looks_for(
        "responses of hidden tiers in what is staged",
        """
        import pathlib
        names = {path.name for path in pathlib.Path("/staged").rglob("*") if path.is_file()}
        found += [name for name in names if "inputs.responses" in name or "hidden" in name or "test" in name]
        """,
    ),
    looks_for(
        "writing into mapped sessions",
        """
        for name in ("training.images.npy", "trial_id.npy"):
            for mode in ("r+", "w+"):
                try:
                    np.memmap(f"/staged/0/{name}", mode=mode, shape=1, dtype=np.uint8)[0] = 1
                    found.append(name)
                except (OSError, ValueError):
                    pass
        """,
    ),
]

TIME = [
    Attack("spinning", "while True:\n    pass", "out of time: longer than 1 s", "ResourceLimitError", replace(SMALL, wall_seconds=1)),
    Attack(
        "signals caught",
        "import signal\n[signal.signal(n, lambda *a: None) for n in range(1, 32) if n not in (9, 19)]\nwhile True:\n    signal.pause()",
        "out of time: longer than 1 s",
        "ResourceLimitError",
        replace(SMALL, wall_seconds=1),
    ),
    Attack(
        "stopped",
        "import signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "out of time",
        "ResourceLimitError",
        replace(SMALL, wall_seconds=1),
    ),
    Attack(
        "one byte after the other",
        "import struct, time\nos.write(3, struct.pack('<I', 9000))\nwhile True:\n    os.write(3, b'x')\n    time.sleep(0.01)",
        "out of time: longer than 1 s",
        "ResourceLimitError",
        replace(SMALL, wall_seconds=1),
    ),
    Attack("one large allocation", "np.ones(2**28)", "out of memory: more than 512 MB", "ResourceLimitError"),
    Attack("memory in shared files", "open('/dev/shm/x', 'wb').write(bytes(2**25))", "out of disk", "ResourceLimitError"),
    Attack(
        "threads without end",
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
        "too many processes",
        "ResourceLimitError",
    ),
    Attack("files without end", "found = [open('/submission/model.py') for _ in range(10000)]", "Too many open files"),
    Attack("an exception whose text is endless", "raise RuntimeError('x' * 10**7)", "more than 4 MB of printed text", "ResourceLimitError"),
    Attack(
        "an exception that cannot be printed",
        "class E(Exception):\n    def __str__(self):\n        os._exit(7)\nraise E()",
        f"{QUIET_END} 7",
    ),
    Attack("exit handlers", "import atexit, time\natexit.register(time.sleep, 60)\nraise RuntimeError('found: []')"),
    Attack("text in control characters", "raise RuntimeError('\\x1b[2J\\x00\\u202e<script>')", "RuntimeError: [2J"),
]

STREAM = [
    sends("a header of many brackets", "frame(b'[' * 16000)", BROKEN),
    sends("a header of many keys", "frame(b'{\"kind\":' * 2000)", BROKEN),
    sends("a header without end", "raw(struct.pack('<I', 2**31)); raw(b'x' * 2**20)", f"{BROKEN}: a header is too long"),
    sends("a number that is no number", 'frame(b\'{"kind": "epoch", "number": 1e999, "loss": 0, "validation": 0}\')', BROKEN),
    sends("an epoch of no number", "frame(dict(kind='epoch', number=-1, loss=0, validation=0))", BROKEN),
    sends("a checkpoint that nobody keeps", "frame(dict(kind='checkpoint', size=3), b'abc')", BROKEN),
    sends("a file of negative size", "frame(dict(kind='file', name='state.npz', size=-1))", "state.npz is empty", "ResourceLimitError"),
    sends("a size that is no integer", "frame(dict(kind='file', name='state.npz', size=True))", "state.npz is empty", "ResourceLimitError"),
    sends(
        "a sparse huge file",
        "frame(dict(kind='file', name='predictions/static1-1-1.npz', size=2**40))",
        "larger than",
        "ResourceLimitError",
    ),
    sends("a file twice", "file(arrays()); file(arrays())", f"{BROKEN}: a file that was not asked for"),
    sends("a file cut short", "frame(dict(kind='file', name='predictions/static1-1-1.npz', size=900), b'x'); os._exit(0)", QUIET_END),
    sends("frames after the end", "frame(dict(kind='done')); frame(dict(kind='started'))", f"{BROKEN}: it goes on after its end"),
    sends("the names of other files", "frame(dict(kind='file', name='/etc/passwd', size=3), b'abc')", BROKEN),
    sends("bytes that are no text", "frame(b'\\xff\\xfe\\x00')", BROKEN),
    Attack("the result descriptor closed", "os.close(3)\nraise SystemExit(0)", QUIET_END),
    Attack("the result descriptor replaced", "os.dup2(1, 3)\nraise SystemExit(0)", QUIET_END),
    sends("a zip bomb", "file(archive(prediction=bytes(2**26)))", "it holds"),
    sends(
        "a bomb under the right names",
        """
        ids = {"trial_id.npy": npy(np.arange(20, 27)), "unit_id.npy": npy(np.arange(10, 25, 3))}
        file(archive(**ids, **{"prediction.npy": bytes(2**26)}))
        """,
        "more than",
    ),
    sends("paths out of the archive", "file(archive(UP__UP__escaped=b'x'))", "it holds"),
    sends(
        "code in a header",
        """
        text = b"__import__('os').abort()".ljust(31) + bytes([10])
        header = bytes([147]) + b"NUMPY" + bytes([1, 0, 32, 0]) + text
        file(archive(**{"trial_id.npy": header, "unit_id.npy": b"", "prediction.npy": b""}))
        """,
        "not a readable",
    ),
    sends("trials twice", "file(arrays(trial_id=np.repeat(20, 7)))", "ids are missing"),
    sends("trials of other sessions", "file(arrays(trial_id=np.arange(7) + 10**9))", "unknown ids"),
    sends("text instead of numbers", "file(arrays(prediction=np.full((7, 5), 'x' * 30)))", "its dtype is"),
    sends("records instead of numbers", "file(arrays(prediction=np.zeros((7, 5), [('a', 'f4')])))", "its dtype is"),
    sends("complex numbers", "file(arrays(prediction=np.zeros((7, 5), np.complex64)))", "its dtype is"),
    sends("infinity", "file(arrays(prediction=np.full((7, 5), np.inf, np.float32)))", "35 of 35 values are NaN or infinite"),
    sends("too large for 32 bits", "file(arrays(prediction=np.full((7, 5), 1e300)))", "35 of 35 values are NaN or infinite"),
    sends("another shape", "file(arrays(prediction=np.zeros((5, 7), np.float32)))", "its shape is (5, 7)"),
    sends("one array more", "file(arrays(score=np.ones(1)))", "it holds"),
]


ATTACKS = [*SYSTEM, *TIME, *STREAM]


@pytest.fixture(scope="module", autouse=True)
def something_on_the_host() -> Iterator[None]:
    """An abstract socket and shared memory of the host, which attacks look for."""
    libc = ctypes.CDLL(None)
    segment = libc.shmget(0x5E15, 4096, 0o1666)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{HOST_SOCKET}")
        server.listen()
        yield
    if segment >= 0:
        libc.shmctl(segment, 0, None)


@pytest.fixture(scope="module")
def unharmed(staged: Path, tier: IsolationTier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all attacks the next submission predicts the same bytes as before."""
    folder = tmp_path_factory.mktemp("good")
    good = write_submission(folder / "submission", GOOD)

    def predicted() -> dict[str, bytes]:
        assert run_submission(good, staged, "sensorium", 0, folder / "out", SMALL).status == "finished"
        return {path.name: path.read_bytes() for path in (folder / "out").rglob("*.npz")}

    before = predicted()
    yield
    assert predicted() == before


@pytest.fixture
def contained(run: Run, unharmed: None, tmp_path: Path) -> Callable[[Attack], None]:
    """Runs an attack, and looks at how it ended and whether anything of it is left."""

    def attack(one: Attack) -> None:
        body = textwrap.indent(one.code, "    ") or "    pass"
        code = f"import ctypes, os, socket, subprocess, sys\nimport numpy as np\ndef build(context):\n{body}\n"
        outcome = run(code.replace("HOST_SOCKET", HOST_SOCKET), one.limits)
        assert outcome.status == "failed"
        assert outcome.failure is not None
        assert one.problem in outcome.failure.problem
        assert outcome.failure.error == one.error
        assert outcome.failure.problem.isprintable()
        assert len(outcome.failure.problem) < 1000
        assert not (tmp_path / "out" / "predictions").exists()
        assert not [group for group in MOUNT.glob(f"**/sensorium-{os.getpid()}-*") if group.is_dir()]

    return attack


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_it_is_contained_and_told_apart(contained: Callable[[Attack], None], attack: Attack) -> None:
    contained(attack)


def test_nothing_is_imported_for_ever(run: Run, unharmed: None) -> None:
    outcome = run("import time\ntime.sleep(60)\ndef build(context):\n    pass\n", replace(SMALL, wall_seconds=1))
    assert outcome.failure is not None
    assert "out of time: longer than 1 s" in outcome.failure.problem


def test_what_one_leaves_the_next_does_not_find(contained: Callable[[Attack], None]) -> None:
    places = [
        "/tmp/.cache/torch/kernels/poison",
        "/tmp/torchinductor_participant/poison.py",
        "/tmp/model._forward-1.py311.nbi",
        "/tmp/.local/lib/python3.11/site-packages/poison.pth",
        "/tmp/.local/lib/python3.11/site-packages/usercustomize.py",
        "/tmp/.config/matplotlib/matplotlibrc",
        "/tmp/sitecustomize.py",
        "/dev/shm/poison",
        "/submission/__pycache__/model.cpython-311.pyc",
        "/submission/numpy.py",
    ]
    code = """
    found = [place for place in PLACES if os.path.exists(place)]
    for place in PLACES:
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            open(place, "w").write("raise SystemExit('poisoned')")
            found += [place] if place.startswith("/submission") else []
        except OSError:
            pass
    raise RuntimeError(f"found: {found}")
    """
    attack = Attack("poison", textwrap.dedent(code).replace("PLACES", repr(places)))
    for _ in range(2):
        contained(attack)


def test_files_named_like_libraries_replace_nothing(staged: Path, tier: IsolationTier, tmp_path: Path) -> None:
    folder = write_submission(tmp_path / "submission", GOOD)
    (folder / "sensorium_pipeline").mkdir()
    for name in ("numpy.py", "torch.py", "json.py", "zipfile.py", "sitecustomize.py", "sensorium_pipeline/__init__.py"):
        (folder / name).write_text("raise SystemExit('replaced')")
    assert run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL).status == "finished"


def test_weights_that_are_programs_run_inside_alone(run: Run, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    code = f"""
    import os, pickle
    class Payload:
        def __reduce__(self):
            return (os.system, ("touch {touched}; touch /tmp/ran",))
    def build(context):
        pickle.loads(pickle.dumps(Payload()))
        raise RuntimeError(f"found: {{[name for name in ('{touched}',) if os.path.exists(name)]}} {{os.path.exists('/tmp/ran')}}")
    """
    outcome = run(code)
    assert outcome.failure is not None
    assert outcome.failure.problem == "RuntimeError: found: [] True"
    assert not touched.exists()
