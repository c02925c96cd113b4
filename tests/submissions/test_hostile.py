"""Submissions that attack: each is contained, its end is told apart by error class, and the next submission is unharmed.

A submission reports what it got hold of by raising `found: [...]`; an empty list means that it got nothing.
"""

import os
import platform
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from submission_samples import GOOD, INSTALLED, SMALL, Attack, Run, nothing_found, problem

from sensorium_pipeline.submissions import sandbox
from sensorium_pipeline.submissions.control_groups import ControlGroup
from sensorium_pipeline.submissions.outcome import RunOutcome

SECRET = "sealed-response-4711"


def test_network_and_names(attack: Attack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        code = f"""
        import socket
        def build(context):
            found = []
            for address in (("127.0.0.1", {server.getsockname()[1]}), ("1.1.1.1", 53), ("8.8.8.8", 443)):
                try:
                    socket.create_connection(address, timeout=1)
                    found.append(address)
                except OSError:
                    pass
            try:
                found.append(socket.getaddrinfo("example.org", 80))
            except OSError:
                pass
            # Netlink, packets, kernel cryptography, and sockets to the machine's own host (no network namespace holds those).
            for family in (16, 17, 30, 38, 40):
                for make in (socket.socket, socket.socketpair):
                    try:
                        make(family, socket.SOCK_STREAM if family == 40 else socket.SOCK_RAW)
                        found.append(family)
                    except PermissionError:
                        pass
            interfaces = open("/proc/net/dev").read().splitlines()[2:]
            if [line for line in interfaces if not line.strip().startswith("lo:")]:
                found.append(interfaces)
            raise RuntimeError(f"found: {{found}}")
        """
        nothing_found(attack(code))


def test_files_of_the_host(attack: Attack, tmp_path: Path, staged: Path) -> None:
    sealed = tmp_path / "workspace" / "sealed" / "responses.npy"
    sealed.parent.mkdir(parents=True)
    sealed.write_text(SECRET)
    repository = Path(__file__).resolve().parents[2]
    # Python and this package may lie in the home of an ordinary user.
    shown = {part for place in (repository, sys.prefix, sys.base_prefix) for part in Path(place).parts} | {"sensorium_pipeline", ".venv"}
    code = f"""
    import os
    def build(context):
        found = []
        for path in ({str(sealed)!r}, "/proc/1/root{sealed}", "/proc/self/cwd/..{sealed}", "/submission/../..{sealed}"):
            if os.path.exists(path):
                found.append(path)
        for folder in ({str(repository)!r}, {str(tmp_path)!r}, {str(staged)!r}, "/home", "/var", "/run", "/root/.ssh", "/sys", "/mnt"):
            if os.path.isdir(folder) and set(os.listdir(folder)) - {shown!r}:
                found.append((folder, os.listdir(folder)[:5]))
        for name in ("shadow", "passwd", "hosts", "ssh"):
            if os.path.exists("/etc/" + name):
                found.append(name)
        raise RuntimeError(f"found: {{found}}")
    """
    nothing_found(attack(code))


def test_root_only_files_in_view_stay_closed(attack: Attack, tmp_path: Path, run: Run) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can plant a file of root's")
    closed = Path(sys.prefix) / "closed-by-a-test"
    closed.write_text(SECRET)
    closed.chmod(0o600)
    try:
        code = f"""
        import os
        def build(context):
            found = []
            try:
                found.append(open({str(closed)!r}).read())
            except PermissionError:
                pass
            else:
                pass
            assert os.path.exists({str(closed)!r})
            raise RuntimeError(f"found: {{found}}")
        """
        nothing_found(attack(code))
    finally:
        closed.unlink()


def test_environment(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_SEALED__SECRET_KEY", SECRET)
    code = f"""
    import glob, os
    def build(context):
        found = [name for name in os.environ if name.startswith(("SENSORIUM", "AWS", "PREFECT"))]
        for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/task/*/environ") + glob.glob("/proc/*/cmdline"):
            try:
                content = open(path, "rb").read()
            except OSError:
                continue
            if {SECRET[::-1]!r}[::-1].encode() in content or b"SENSORIUM" in content:
                found.append(path)
        raise RuntimeError(f"found: {{found}}")
    """
    nothing_found(attack(code))


def test_other_processes_and_descriptors(attack: Attack, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.write_text(SECRET)
    descriptor = os.open(planted, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    code = """
    import os
    def build(context):
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink("/proc/self/fd/" + name)
            except OSError:
                continue
            # Input, output, the result stream, and mapped arrays of the staged sessions.
            if int(name) > 3 and not target.startswith(("/staged/", "/proc/")):
                found.append((name, target))
        processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        if len(processes) > 2:
            found.append(processes)
        for number in range(1, 40000, 97):
            if number not in processes:
                try:
                    os.kill(number, 0)
                    found.append(number)
                except OSError:
                    pass
        raise RuntimeError(f"found: {found}")
    """
    try:
        nothing_found(attack(code))
    finally:
        os.close(descriptor)


def test_system_calls(attack: Attack) -> None:
    code = """
    import ctypes, os, platform
    calls = {
        "x86_64": dict(ptrace=101, mount=165, unshare=272, setns=308, bpf=321, keyctl=250, perf_event_open=298, userfaultfd=323,
                       process_vm_readv=310, pidfd_getfd=438, open_by_handle_at=304, chroot=161, io_uring_setup=425, clone3=435),
        "aarch64": dict(ptrace=117, mount=40, unshare=97, setns=268, bpf=280, keyctl=219, perf_event_open=241, userfaultfd=282,
                        process_vm_readv=270, pidfd_getfd=438, open_by_handle_at=265, chroot=51, io_uring_setup=425, clone3=435),
    }[platform.machine()]
    def build(context):
        libc = ctypes.CDLL(None, use_errno=True)
        found = []
        for name, number in calls.items():
            result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
            wanted = 38 if name in ("io_uring_setup", "clone3") else 1
            if result != -1 or ctypes.get_errno() != wanted:
                found.append((name, result, ctypes.get_errno()))
        # A new user namespace by clone, with SIGCHLD.
        number = 56 if platform.machine() == "x86_64" else 220
        if libc.syscall(number, 0x10000000 | 17, 0, 0, 0, 0) != -1:
            found.append("user namespace")
        if os.getuid() == 0 or os.geteuid() == 0:
            found.append("root")
        for change in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.nice(-5)):
            try:
                change()
                found.append("privilege")
            except OSError:
                pass
        raise RuntimeError(f"found: {found}")
    """
    nothing_found(attack(code))


def test_writing_where_the_next_one_would_read(attack: Attack, tmp_path: Path) -> None:
    code = """
    import os, sys, numpy, sensorium_pipeline
    def build(context):
        found = []
        folders = ["/", "/usr", "/usr/lib", "/dev", "/etc", "/submission", "/staged", "/job", sys.prefix, sys.base_prefix,
                   os.path.dirname(numpy.__file__), os.path.dirname(sensorium_pipeline.__file__), "/staged/0"]
        for folder in folders:
            writing = (
                lambda: open(folder + "/poison.py", "w"),
                lambda: os.symlink("/etc", folder + "/poison"),
                lambda: os.chmod(folder, 0o777),
            )
            for write in writing:
                try:
                    write()
                    found.append(folder)
                except OSError:
                    pass
        kernel = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")
        for path in ("/submission/model.py", "/staged/description.json", sensorium_pipeline.__file__, *kernel):
            try:
                open(path, "a")
                found.append(path)
            except OSError:
                pass
        open("/tmp/poison", "w").write("left for the next one")
        if os.path.exists("/tmp/earlier") or os.listdir("/dev/shm"):
            found.append("earlier files")
        raise RuntimeError(f"found: {found}")
    """
    nothing_found(attack(code))
    looking = f"""
        import os
        def build(context):
            found = [name for name in os.listdir("/tmp") if name not in {list(INSTALLED)}]
            raise RuntimeError(f"found: {{found}}")
    """
    nothing_found(attack(looking))


def test_daemon_does_not_outlive_success(run: Run, tmp_path: Path) -> None:
    marker = f"sensorium-daemon-{os.getpid()}"
    code = GOOD.replace(
        "    def build(context):\n",
        f"""    import ctypes, os, time
    def build(context):
        if os.fork() == 0:
            os.setsid()
            for descriptor in range(64):
                try:
                    os.close(descriptor)
                except OSError:
                    pass
            os.execv("/usr/bin/sleep", ["{marker}", "1000"])
""",
    )
    assert run(code).status == "finished"
    time.sleep(0.1)
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if marker.encode() in line]


def test_process_1_taken_over_does_not_outlive_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the program that is written into process 1 is for x86_64")
    # Where there are control groups, nothing outlives them.
    monkeypatch.setattr(sandbox, "ControlGroup", lambda memory, processes: ControlGroup(memory, processes, mount=tmp_path))
    marker = f"sensorium-heir-{os.getpid()}"
    code = f"""
    import os, time
    def build(context):
        # prctl(PR_SET_PDEATHSIG, 0); while (1) pause();
        program = bytes.fromhex("b89d000000bf0100000031f631d24531d20f05b8220000000f05ebf7")
        memory = os.open("/proc/1/mem", os.O_RDWR)
        os.pwrite(memory, program, int(open("/proc/1/syscall").read().split()[-1], 16))
        if os.fork() == 0:
            os.fork()
            os._exit(0)
        os.wait()
        while not open("/proc/1/syscall").read().startswith("34 "):
            time.sleep(0.01)
        os.execv("/usr/bin/sleep", ["{marker}", "60"])
    """

    def running() -> bool:
        return any(marker.encode() in line for line in _command_lines())

    outcome = run(code, stop=running)
    if outcome.failure is not None and "PermissionError" in outcome.failure.problem:
        pytest.skip("this kernel lets nobody write into process 1")
    assert outcome.status == "stopped"
    deadline = time.monotonic() + 10
    while running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running()


def test_lying_on_the_result_stream(attack: Attack) -> None:
    frames = {
        "{'kind': 'file', 'name': '../../escaped', 'size': 3}": "a file that was not asked for",
        "{'kind': 'progress', 'stage': 'x', 'done': float('nan'), 'total': 'a', 'detail': ''}": "a header is not what was agreed",
        "{'kind': 'score', 'value': 1.0}": "an unknown kind",
        "[]": "a header is not what was agreed",
    }
    for frame, message in frames.items():
        code = f"""
        import json, os, struct, time
        def build(context):
            header = json.dumps({frame}).encode()
            os.write(3, struct.pack("<I", len(header)) + header)
            time.sleep(20)
        """
        assert message in problem(attack(code))


def test_saying_done_early_is_not_success(attack: Attack) -> None:
    code = """
    import os, struct
    def build(context):
        header = b'{"kind": "done"}'
        os.write(3, struct.pack("<I", len(header)) + header)
        os._exit(0)
    """
    assert problem(attack(code)) == "no predictions for session static1-1-1"


def test_progress_carries_no_text_out(run: Run) -> None:
    shown: list[str] = []
    code = """
    from sensorium_pipeline.progress import Progress
    def build(context):
        context.progress(Progress("Pixel values: 17 21 99", 1, 1, "secret stimulus"))
        raise RuntimeError("end")
    """
    run(code, progress=lambda report: shown.append(f"{report.stage}|{report.detail}"))
    assert shown == ["working|"]


def test_crash_and_quiet_exit(attack: Attack) -> None:
    assert "ended by itself with exit code 139" in problem(attack("import ctypes\ndef build(context):\n    ctypes.string_at(0)\n"))
    assert "ended by itself with exit code 0" in problem(attack("import os\ndef build(context):\n    os._exit(0)\n"))
    assert problem(attack("def build(context):\n    raise SystemExit(0)\n")) == "SystemExit: 0"
    # Pretending to be the platform neither earns a retry nor hides the failure.
    printed = "import os\ndef build(context):\n    os.write(2, b'bwrap: no')\n    os._exit(1)\n"
    assert "ended by itself with exit code 1" in problem(attack(printed))


def test_pickles_in_predictions_are_not_opened(attack: Attack, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    code = f"""
    import io, os, pickle, struct, json, zipfile
    import numpy as np
    class Payload:
        def __reduce__(self):
            return (open, ({str(touched)!r}, "w"))
    def build(context):
        content = io.BytesIO()
        np.savez(content, trial_id=np.arange(7), unit_id=np.arange(5), prediction=np.array([[Payload()]], dtype=object))
        for name, body in (("static1-1-1", content.getvalue()), ("static2-1-1", pickle.dumps(Payload()))):
            header = json.dumps(dict(kind="file", name=f"predictions/{{name}}.npz", size=len(body))).encode()
            os.write(3, struct.pack("<I", len(header)) + header + body)
        header = b'{{"kind": "done"}}'
        os.write(3, struct.pack("<I", len(header)) + header)
        os._exit(0)
    """
    assert "its dtype is object" in problem(attack(code))
    assert not touched.exists()


def test_changing_the_libraries_inside_changes_nothing_outside(attack: Attack) -> None:
    code = """
    import sys, numpy as np
    def build(context):
        import sensorium_pipeline.submissions.predictions as predictions
        import sensorium_pipeline.submissions.runner as runner
        predictions.read_predictions = lambda *a: None
        np.isfinite = lambda x: np.ones_like(x, bool)
        class Model:
            def predict(self, session, inputs):
                return np.full((7, 5 if session == "static1-1-1" else 3), np.nan, np.float32)
        return Model()
    """
    assert "35 of 35 values are NaN" in problem(attack(code))


def test_concurrent_runs_do_not_meet(run: Run, tmp_path: Path, staged: Path) -> None:
    from submission_samples import write_submission

    from sensorium_pipeline.submissions.run import run_submission

    code = f"""
    import os, time
    def build(context):
        open("/tmp/mine", "w"); open("/dev/shm/mine", "w")
        time.sleep(0.5)
        found = [name for folder in ("/tmp", "/dev/shm") for name in os.listdir(folder) if name not in {["mine", *INSTALLED]}]
        found += [name for name in os.listdir("/proc") if name.isdigit() and int(name) > 3]
        raise RuntimeError(f"found: {{found}}")
    """
    outcomes: dict[int, RunOutcome] = {}

    def one(number: int) -> None:
        folder = write_submission(tmp_path / f"submission-{number}", code)
        outcomes[number] = run_submission(folder, staged, "sensorium", 0, tmp_path / f"out-{number}", SMALL)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome in outcomes.values():
        nothing_found(outcome)
    assert len(outcomes) == 4


def test_sandbox_dies_with_its_worker(tmp_path: Path, staged: Path, run: Run) -> None:
    from submission_samples import write_submission

    marker = f"sensorium-orphan-{os.getpid()}"
    code = f"import os\ndef build(context):\n    os.execv('/usr/bin/sleep', ['{marker}', '300'])\n"
    folder = write_submission(tmp_path / "submission", code)
    program = f"""
from pathlib import Path
from sensorium_pipeline.submissions.run import run_submission
run_submission(Path({str(folder)!r}), Path({str(staged)!r}), "sensorium", 0, Path({str(tmp_path / "out")!r}))
"""

    def running() -> bool:
        return any(marker.encode() in line for line in _command_lines())

    worker = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 15
        while not running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running()
    finally:
        worker.kill()
        worker.wait()
    deadline = time.monotonic() + 3
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running()


def _command_lines() -> list[bytes]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return lines
