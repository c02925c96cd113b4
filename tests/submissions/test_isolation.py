"""The self-test of a machine, both tiers of bubblewrap, staging, and the limits where control groups are missing."""

import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from submission_samples import GOOD, SMALL, small_session, write_submission

from sensorium_pipeline.errors import IsolationError, PlatformError
from sensorium_pipeline.submissions import isolation, memory_watch, run, sandbox
from sensorium_pipeline.submissions.control_groups import MOUNT, ControlGroup
from sensorium_pipeline.submissions.isolation import probe_isolation, require_isolation
from sensorium_pipeline.submissions.sandbox import IsolationTier, run_isolated
from sensorium_pipeline.submissions.seccomp import filter_program
from sensorium_pipeline.submissions.staging import StagedSession, load_staged, stage_sessions

NO_NAMESPACE = IsolationTier.NO_USER_NAMESPACE


@pytest.fixture
def fresh_probe() -> None:
    probe_isolation.cache_clear()


def test_lower_tier_holds_too(tier: IsolationTier, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("bubblewrap without a user namespace needs root")
    assert isolation._try(NO_NAMESPACE) is None
    monkeypatch.setattr(run, "require_isolation", lambda lowest: NO_NAMESPACE)
    folder = write_submission(tmp_path / "submission", GOOD)
    outcome = run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
    assert outcome.status == "finished"
    assert outcome.tier.startswith(NO_NAMESPACE)


def test_a_tier_below_the_required_one_is_refused(
    tier: IsolationTier, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = ("bubblewrap with user namespace: forbidden here",)
    monkeypatch.setattr(isolation, "probe_isolation", lambda: isolation.Isolation(NO_NAMESPACE, reasons, "", ""))
    assert require_isolation() is NO_NAMESPACE
    folder = write_submission(tmp_path / "submission", GOOD)
    with pytest.raises(IsolationError, match=r"forbidden here.*user\.max_user_namespaces"):
        run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL, lowest_tier=IsolationTier.USER_NAMESPACE)


def test_probe_notices_a_leak(tier: IsolationTier, monkeypatch: pytest.MonkeyPatch, fresh_probe: None) -> None:
    allow_all = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr(sandbox, "filter_program", lambda **_: allow_all)
    found = isolation._try(tier)
    assert found is not None
    assert "it can trace processes" in found
    isolated = probe_isolation()
    probe_isolation.cache_clear()
    assert isolated.tier is IsolationTier.REFUSE
    assert any("it can trace processes" in reason for reason in isolated.reasons)


def test_shared_network_is_noticed(tier: IsolationTier, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sandbox._options
    monkeypatch.setattr(sandbox, "_options", lambda *given: [option for option in whole(*given) if option != "--unshare-net"])
    found = isolation._try(tier)
    assert found is not None
    assert "it reaches the network of the host" in found


def test_without_bubblewrap_code_is_refused(staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_probe: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(IsolationError, match=r"refused on this machine: bwrap.* apt-get install bubblewrap"):
            require_isolation()
        folder = write_submission(tmp_path / "submission", GOOD)
        with pytest.raises(IsolationError):
            run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
    finally:
        probe_isolation.cache_clear()


def test_limits_without_control_groups(tier: IsolationTier, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "ControlGroup", lambda memory, processes: ControlGroup(memory, processes, mount=tmp_path))
    many = "[os.fork() for _ in range(4)]\n    hoard = np.ones(2**23)\n    time.sleep(60)"
    shared = "hoard = mmap.mmap(-1, 2**30)\n    hoard[:] = bytes(2**20) * 1024\n    time.sleep(60)"
    made = "libc.memfd_create(b'hoard', 0), libc.shmget(0, 2**30, 0o1600), libc.semget(0, 32000, 0o600)"
    unseen = f"libc = ctypes.CDLL(None)\n    raise RuntimeError(({made}))"
    # Pages that are read and never written are all the same one, but not what says so.
    tables = "sparse = mmap.mmap(-1, 2**40, 0x4022, mmap.PROT_READ)\n    any(sparse[::2**21])\n    time.sleep(60)"
    threads = "[threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(100)]"
    for number, (body, end) in enumerate(
        (
            ("return np.ones(2**30)", "out of memory: more than 512 MB"),
            (many, "out of memory: more than 512 MB"),
            (shared, "out of memory: more than 512 MB"),
            (unseen, "RuntimeError: (-1, -1, -1)"),
            (tables, "out of memory: more than 512 MB"),
            ("while os.fork():\n        pass\n    time.sleep(60)", "too many processes: more than 24"),
            (threads, "too many processes: more than 24"),
        )
    ):
        code = f"import ctypes, mmap, os, threading, time\nimport numpy as np\ndef build(context):\n    {body}\n"
        folder = write_submission(tmp_path / f"submission-{number}", code)
        outcome = run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
        assert outcome.failure is not None
        assert end in outcome.failure.problem
        assert outcome.tier == f"{tier}, memory watched"
        assert outcome.wall_seconds < SMALL.wall_seconds / 2


def test_shared_pages_are_counted_once_without_control_groups(
    tier: IsolationTier, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "ControlGroup", lambda memory, processes: ControlGroup(memory, processes, mount=tmp_path))
    code = "    import os, time\n" + GOOD.replace(
        "    def build(context):\n",
        """    def build(context):
        held = np.ones(2**25)
        for _ in range(6):
            if os.fork() == 0:
                time.sleep(60)
        time.sleep(0.5)
""",
    )
    folder = write_submission(tmp_path / "submission", code)
    outcome = run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
    assert outcome.status == "finished"
    assert outcome.peak_memory_bytes is not None
    assert 2**28 < outcome.peak_memory_bytes < SMALL.memory_bytes


def test_a_full_machine_is_the_platforms_fault(tier: IsolationTier, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "ControlGroup", lambda memory, processes: ControlGroup(memory, processes, mount=tmp_path))
    monkeypatch.setattr(memory_watch, "LEAST_FREE", 1.1)
    folder = write_submission(tmp_path / "submission", GOOD)
    with pytest.raises(PlatformError, match="hardly any memory left"):
        run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)


def test_second_version_control_group(tmp_path: Path) -> None:
    # The layout of the unified hierarchy on a plain folder: what is written where, and how the counters are read.
    (tmp_path / "cgroup.controllers").write_text("memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids")
    (tmp_path / "cgroup.procs").touch()
    made: list[Path] = []
    mkdir = Path.mkdir

    def with_files(path: Path, *given: object, **named: object) -> None:
        mkdir(path, *given, **named)  # type: ignore[arg-type]
        made.append(path)
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cgroup.procs"):
            (path / name).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", with_files)
        group = ControlGroup(1000, 7, mount=tmp_path)
    assert group.limits_memory
    assert group.limits_processes
    assert (made[0] / "memory.max").read_text() == "1000"
    assert (made[0] / "memory.swap.max").read_text() == "0"
    assert (made[0] / "pids.max").read_text() == "7"
    (made[0] / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (made[0] / "pids.events").write_text("max 5\n")
    (made[0] / "memory.peak").write_text("900\n")
    usage = group.usage()
    assert (usage.memory_kills, usage.refused_forks, usage.peak_memory_bytes) == (2, 5, 900)
    assert "+cpu" in (tmp_path / "cgroup.subtree_control").read_text()


def test_a_sandbox_has_one_share_of_the_processors_however_many_processes_it_starts(tier: IsolationTier) -> None:
    shares: dict[int, set[int]] = {}

    def receive(_: bytes) -> None:
        for name in ("cpu.shares", "cpu.weight"):
            for path in MOUNT.glob(f"**/sensorium-{os.getpid()}-*/{name}"):
                shares[int(path.read_text())] = {int(line) for line in (path.parent / "cgroup.procs").read_text().split()}

    program = "import os, time\nif os.fork():\n    os.write(3, b'x')\nelse:\n    os.setsid(); time.sleep(60)"
    run_isolated([sys.executable, "-I", "-S", "-c", program], tier=tier, limits=SMALL, read_only={}, receive=receive)
    controllers = MOUNT / "cgroup.controllers"
    known = "cpu" in controllers.read_text().split() if controllers.exists() else (MOUNT / "cpu").is_dir()
    if not known or probe_isolation().memory_cap != "control group":
        pytest.skip("no control groups of processors can be made here")
    # That of one process elsewhere, for all of bubblewrap's and the two.
    ((share, members),) = shares.items()
    assert share in (100, 1024)
    assert len(members) >= 3


def test_filter_jumps_stay_inside() -> None:
    program = filter_program(uncounted_memory=False)
    instructions = [struct.unpack_from("<HBBI", program, start) for start in range(0, len(program), 8)]
    for index, (code, when_true, when_false, _) in enumerate(instructions):
        if code & 0x07 == 0x05:
            assert index + 1 + max(when_true, when_false) < len(instructions)
    assert instructions[-1][0] == 0x06


def test_failed_start_is_the_platforms_fault(tier: IsolationTier, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_folders", lambda places: ["--no-such-option"])
    folder = write_submission(tmp_path / "submission", GOOD)
    with pytest.raises(PlatformError, match=r"the sandbox did not start: .*no-such-option"):
        run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)


def test_receiver_failure_ends_the_run(tier: IsolationTier) -> None:
    def receive(_: bytes) -> None:
        raise OSError("no space left for predictions")

    command = [sys.executable, "-I", "-S", "-c", "import os, time; os.write(3, b'x'); time.sleep(60)"]
    started = time.monotonic()
    with pytest.raises(OSError, match="no space"):
        run_isolated(command, tier=tier, limits=SMALL, read_only={}, receive=receive)
    assert time.monotonic() - started < 5


def test_full_disk_of_ours_is_the_platforms_fault(
    tier: IsolationTier, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.ResultReader, "_start_file", full)
    folder = write_submission(tmp_path / "submission", GOOD)
    with pytest.raises(PlatformError, match="results cannot be kept"):
        run.run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL)
    assert not (tmp_path / "out" / "predictions").exists()


def test_staged_sessions_are_mapped_unchanged(tmp_path: Path, sessions: list[StagedSession]) -> None:
    plus = small_session("static5-1-1", 4, seed=5, track="sensorium+")
    stage_sessions([plus], "sensorium+", tmp_path / "staged")
    loaded = load_staged(tmp_path / "staged")
    assert loaded.track == "sensorium+"
    read = loaded.sessions[0]
    assert read.data.description.name == "static5-1-1"
    assert read.data.description.image_shape == (6, 8)
    assert read.data.description.statistics.image_mean == plus.data.description.statistics.image_mean
    for ours, theirs in (
        (read.data.training.responses, plus.data.training.responses),
        (read.data.validation.inputs.behavior, plus.data.validation.inputs.behavior),
        (read.inputs.pupil_center, plus.inputs.pupil_center),
        (read.data.description.statistics.response_std, plus.data.description.statistics.response_std),
        (read.trial_id, plus.trial_id),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert isinstance(read.inputs.images, np.memmap)
    assert not read.inputs.images.flags.writeable
    # Staged once: a second call leaves it alone, and nothing is left beside it.
    stage_sessions(sessions, "sensorium+", tmp_path / "staged")
    assert len(load_staged(tmp_path / "staged").sessions) == 1
    assert os.listdir(tmp_path) == ["staged"]
    with pytest.raises(PlatformError, match="no readable staged sessions"):
        load_staged(tmp_path)
