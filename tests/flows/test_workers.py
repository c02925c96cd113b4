"""What the evaluation asks of its Dask workers, and what happens when one dies or cannot isolate strangers' code."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from distributed.client import Client
from small_world import MEAN_RESPONSE, RELEASE, World, send, write_code

from sensorium_pipeline.compute import local_cluster
from sensorium_pipeline.evaluation import is_current
from sensorium_pipeline.jobs import find_job
from sensorium_pipeline.sessions.release import read_release
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.sandbox import IsolationTier
from sensorium_pipeline.tables import rank

SLEEPING = MEAN_RESPONSE.replace("def train(self, sessions):", "def train(self, sessions):\n            import time; time.sleep(5)")


@pytest.fixture
def copied(world: World, prefect_api: str, tmp_path: Path) -> World:
    return world.copy(tmp_path / "copy")


@pytest.fixture
def isolated() -> None:
    isolation = probe_isolation()
    if isolation.tier is IsolationTier.REFUSE:
        pytest.skip(f"no isolation here: {'; '.join(isolation.reasons)}")


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> Iterator[str]:
    with local_cluster(Settings(workers=1)) as cluster:
        monkeypatch.setenv("SENSORIUM_DASK_ADDRESS", cluster.scheduler_address)
        yield cluster.scheduler_address


def evaluate(world: World):
    from flows.evaluate_submissions import evaluate_submissions

    return evaluate_submissions(RELEASE, world.root, publish=False)


def running(client: Client) -> dict[str, dict[str, float]]:
    """Every task that the scheduler knows, with the resources that it holds."""

    def tasks(dask_scheduler):
        return {str(key): dict(task.resource_restrictions or {}) for key, task in dask_scheduler.tasks.items()}

    return client.run_on_scheduler(tasks)


def test_two_seeds_on_one_gpu_take_turns_and_only_they_hold_it(isolated: None, copied: World, one_worker: str, tmp_path: Path) -> None:
    code = MEAN_RESPONSE.replace("def train(self, sessions):", "def train(self, sessions):\n            import time; time.sleep(1)")
    send(copied.workspace, write_code(tmp_path / "one", "One", code, seeds=(1, 2)), "one", "sensorium")
    send(copied.workspace, write_code(tmp_path / "two", "Two", code, seeds=(1, 2), gain=0.02), "two", "sensorium")
    seen: dict[str, dict[str, float]] = {}
    most = 0
    with ThreadPoolExecutor(1) as pool, Client(one_worker, set_as_default=False) as client:
        night = pool.submit(evaluate, copied)
        while not night.done():
            seen |= running(client)
            most = max(most, sum(len(keys) for keys in client.processing().values()))
            time.sleep(0.1)
        summary = night.result()
    assert [result.status for result in summary.evaluated] == ["scored", "scored"]
    # The Prefect tasks wait in threads of the flow: all that the cluster ever had are two smoke runs and four runs, each with its GPU.
    assert sorted(key.rsplit("-", 2)[0] for key in seen) == [
        f"{team}/sensorium/1 {what}" for team in ("one", "two") for what in ("seed 1", "seed 2", "smoke run")
    ]
    assert all(needs == {"GPU": 1.0} for needs in seen.values())
    assert most >= 1


def test_two_evaluations_at_once_run_nothing_twice(isolated: None, copied: World, on_cluster: str, tmp_path: Path) -> None:
    code = MEAN_RESPONSE.replace("def train(self, sessions):", "def train(self, sessions):\n            import time; time.sleep(2)")
    send(copied.workspace, write_code(tmp_path / "one", "One", code), "one", "sensorium")
    most = 0
    with ThreadPoolExecutor(2) as pool, Client(on_cluster, set_as_default=False) as client:
        nights = [pool.submit(evaluate, copied) for _ in range(2)]
        while not all(night.done() for night in nights):
            most = max(most, len([key for key in running(client) if key.startswith("one/sensorium/1 seed 0")]))
            time.sleep(0.1)
        summaries = [night.result() for night in nights]
    assert most == 1
    job = find_job(copied.workspace, read_release(copied.workspace.open, RELEASE), "one")
    assert is_current(copied.workspace, job)
    # One that came later may have found it done before it began.
    assert {result.status for summary in summaries for result in summary.evaluated} == {"scored"}


def test_a_worker_killed_in_the_middle_costs_time_and_nothing_else(isolated: None, copied: World, on_cluster: str, tmp_path: Path) -> None:
    for team, gain in (("sleeper", 0.01), ("neighbour", 0.02)):
        send(copied.workspace, write_code(tmp_path / team, team, SLEEPING, gain=gain), team, "sensorium")
    with ThreadPoolExecutor(1) as pool, Client(on_cluster, set_as_default=False) as client:
        night = pool.submit(evaluate, copied)
        deadline = time.monotonic() + 60
        while len(victims := _sandboxed(client)) < 2:
            assert not night.done(), night.result()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pid, sandbox = next(iter(victims.items()))
        os.kill(pid, signal.SIGKILL)
        # What it ran dies with it: no stranger's code goes on without anybody who watches it.
        assert psutil.wait_procs(sandbox, timeout=10)[1] == []
        summary = night.result(timeout=300)
    assert {result.identifier: result.status for result in summary.evaluated} == {
        "sleeper/sensorium/1": "scored",
        "neighbour/sensorium/1": "scored",
    }


def _sandboxed(client: Client) -> dict[int, list[psutil.Process]]:
    """Workers' process numbers with the processes of the sandbox that each holds."""
    found = {}
    for pid in client.run(os.getpid).values():
        children = psutil.Process(pid).children(recursive=True)
        if any("sensorium_pipeline.submissions.runner" in " ".join(_command(child)) for child in children):
            found[pid] = children
    return found


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_machine_without_isolation_refuses_strangers_code_and_says_so(
    copied: World, prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))  # no bwrap there
    send(copied.workspace, write_code(tmp_path / "code", "Code"), "stranger", "sensorium")
    with local_cluster(Settings(workers=1)) as cluster:
        monkeypatch.setenv("SENSORIUM_DASK_ADDRESS", cluster.scheduler_address)
        summary = evaluate(copied)
    assert [result.status for result in summary.evaluated] == ["refused"]
    assert "bwrap" in summary.evaluated[0].reason
    assert "apt-get install bubblewrap" in summary.evaluated[0].reason

    release = read_release(copied.workspace.open, RELEASE)
    table = rank(copied.workspace, release, "sensorium", "test")
    assert [(row.team, row.status) for row in table.unranked] == [("stranger", "failed")]
    assert table.unranked[0].reason.startswith("refused: strangers' code is refused on this machine")
    # A refusal is no result: where code can be isolated, it is run.
    job = find_job(copied.workspace, release, "stranger")
    assert not is_current(copied.workspace, job)
