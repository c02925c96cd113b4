"""Checkpoints: a run that was interrupted goes on, ends with the same bytes, and nobody outside the sandbox reads what it put away."""

import os
import signal
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from submission_samples import GOOD, SMALL, Run, write_submission

from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Store, collect_garbage
from sensorium_pipeline.storage.collection import CHECKPOINTS
from sensorium_pipeline.submissions.checkpoints import KeptCheckpoints
from sensorium_pipeline.submissions.run import run_submission

STEPS = 40  # two seconds: enough for a stop to be noticed on a busy machine
# Random draws from a generator that goes on: leaving one out, or drawing one twice, changes everything after it.
STEPPING = """
    import io, json, time
    import numpy as np

    class Stepping:
        def __init__(self, context):
            self.context = context
            self.random = np.random.default_rng(context.seed)
            self.step, self.weights = 0, np.zeros(5)

        def train(self, sessions):
            found = self.context.checkpoints.latest()
            if found is not None:
                kept = json.loads(found)
                self.step, self.weights = kept["step"], np.array(kept["weights"])
                self.random.bit_generator.state = kept["random"]
            while self.step < STEPS:
                time.sleep(0.05)
                self.weights = 0.5 * self.weights + self.random.normal(size=5)
                self.step += 1
                self.context.epoch(self.step, 1 / self.step, float(self.weights[0]))
                if self.context.checkpoints.due():
                    kept = dict(step=self.step, weights=self.weights.tolist(), random=self.random.bit_generator.state)
                    self.context.checkpoints.save(json.dumps(kept).encode())

        def state(self):
            return {"weights": self.weights}

        def load_state(self, state):
            self.weights = state["weights"]

        def predict(self, session, inputs):
            neurons = 5 if session == "static1-1-1" else 3
            return np.tile(self.weights[:neurons], (len(inputs), 1)).astype(np.float32)

    def build(context):
        return Stepping(context)
""".replace("STEPS", str(STEPS))
OFTEN = replace(SMALL, checkpoint_seconds=0.0)


class Watched(KeptCheckpoints):
    """Checkpoints that say how many there were."""

    count = 0

    def keep(self, source: Path) -> None:
        super().keep(source)
        self.count += 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("sealed", RootSettings(url=str(tmp_path / "sealed")))


def results(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.npz")}


def test_an_interrupted_run_ends_with_the_same_bytes(run: Run, store: Store, tmp_path: Path) -> None:
    whole = run(STEPPING, OFTEN)
    assert (whole.status, whole.resumed, len(whole.epochs)) == ("finished", False, STEPS)
    expected = results(tmp_path / "out")
    assert len(expected) == 3
    for wanted in (2, 3):
        kept = Watched(store, "run")
        stopped = run(STEPPING, OFTEN, checkpoints=kept, stop=lambda kept=kept, wanted=wanted: kept.count >= wanted)
        assert stopped.status == "stopped"
        assert len(store.list(f"{CHECKPOINTS}/run")) == 2
    again = run(STEPPING, OFTEN, checkpoints=KeptCheckpoints(store, "run"))
    assert (again.status, again.resumed) == ("finished", True)
    assert 0 < len(again.epochs) < STEPS
    assert results(tmp_path / "out") == expected
    KeptCheckpoints(store, "run").clear()
    assert store.walk(CHECKPOINTS) == []


def test_the_sandbox_killed_from_outside_is_the_platforms_fault(run: Run, store: Store, staged: Path, tmp_path: Path) -> None:
    run(STEPPING, OFTEN)
    expected = results(tmp_path / "out")
    kept = Watched(store, "run")

    def kill_the_sandbox() -> None:
        while kept.count < 2:
            time.sleep(0.01)
        for child in psutil.Process().children():
            if child.name() == "bwrap":
                os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_sandbox)
    killer.start()
    with pytest.raises(PlatformError, match="killed from outside"):
        run(STEPPING, OFTEN, checkpoints=kept)
    killer.join()
    assert run(STEPPING, OFTEN, checkpoints=kept).resumed
    assert results(tmp_path / "out") == expected


def test_a_checkpoint_that_is_not_whole_is_passed_over(store: Store, tmp_path: Path) -> None:
    kept = KeptCheckpoints(store, "run")
    for content in (b"first", b"second", b"third"):
        (tmp_path / "source").write_bytes(content)
        kept.keep(tmp_path / "source")
    stored = [Path(store.url.removeprefix("file://"), entry.path) for entry in store.walk(CHECKPOINTS)]
    assert [path.read_bytes() for path in stored] == [b"second", b"third"]
    stored[1].write_bytes(b"thi")
    assert kept.latest(tmp_path / "found")
    assert (tmp_path / "found").read_bytes() == b"second"
    assert not KeptCheckpoints(store, "another run").latest(tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_checkpoints_that_nobody_comes_back_for_are_garbage(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"state")
    KeptCheckpoints(store, "abandoned").keep(tmp_path / "source")
    assert collect_garbage(store, dry_run=False).removed == []
    later = datetime.now(UTC) + timedelta(days=30)
    assert [garbage.path for garbage in collect_garbage(store, dry_run=False, now=later).removed] == [f"{CHECKPOINTS}/abandoned"]
    assert not KeptCheckpoints(store, "abandoned").exist()


def test_without_saving_a_run_starts_anew(run: Run, store: Store) -> None:
    outcome = run(GOOD, OFTEN, checkpoints=KeptCheckpoints(store, "run"))
    assert (outcome.status, outcome.resumed) == ("finished", False)
    assert store.walk(CHECKPOINTS) == []


def test_saving_is_limited_in_size_and_rate(run: Run, store: Store) -> None:
    flood = STEPPING.replace("json.dumps(kept).encode()", "bytes(2**20)")
    outcome = run(flood, replace(OFTEN, output_bytes=2**19), checkpoints=KeptCheckpoints(store, "run"))
    assert outcome.failure is not None
    assert outcome.failure.error == "ResourceLimitError"
    assert "larger than 524288 bytes" in outcome.failure.problem
    # One that does not care about what is due is not listened to.
    impatient = STEPPING.replace("self.context.checkpoints.due()", "True").replace(
        "self.context.checkpoints.save(", "self.context.checkpoints._results.checkpoint("
    )
    kept = Watched(store, "impatient")
    assert run(impatient, replace(SMALL, checkpoint_seconds=60.0), checkpoints=kept).status == "finished"
    assert kept.count == 1


def test_a_smoke_run_says_so_and_keeps_nothing(staged: Path, tmp_path: Path) -> None:
    code = """
    def build(context):
        raise RuntimeError([context.smoke_run, context.checkpoints.due(), context.checkpoints.latest()])
    """
    folder = write_submission(tmp_path / "submission", code)
    outcome = run_submission(folder, staged, "sensorium", 0, tmp_path / "out", SMALL, smoke_run=True)
    assert outcome.failure is not None
    assert outcome.failure.problem == "RuntimeError: [True, False, None]"
