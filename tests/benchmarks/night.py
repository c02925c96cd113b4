"""What a night costs beside the models: nothing new, a new submission, and how two workers share eight.

    PYTHONPATH=tests OPENBLAS_NUM_THREADS=1 python tests/benchmarks/night.py FOLDER [--submissions 172] [--profile]

In FOLDER a small world is made once (three simulated mice; kept, and used again) and evaluated on a real store, a real Prefect server
and a real Dask cluster. Printed are
  - the seconds of a night with nothing new: of the flow run (its tables included), and of the whole command `sensorium evaluate`, which
    also starts a Prefect server of its own;
  - the seconds of the platform for each new submission (smoke run, sandbox, staging, records, scores, orchestration), one worker, with
    models that compute nothing;
  - the seconds for eight submissions that compute for some seconds each, with one and with two workers, and their ratio.
"""

import argparse
import cProfile
import os
import pstats
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from small_world import MEAN_RESPONSE, RELEASE, SENSORIUM, World, build_world, send, true_predictions, write_code, write_file_submission

from sensorium_pipeline.compute import local_cluster
from sensorium_pipeline.hidden_scores import score
from sensorium_pipeline.intake import take_in
from sensorium_pipeline.jobs import list_jobs
from sensorium_pipeline.prediction_runs import predict
from sensorium_pipeline.services import prefect_server
from sensorium_pipeline.sessions.release import read_release
from sensorium_pipeline.settings import Settings

TEAMS = 26
NEW = 8
MODEL_SECONDS = 4.0
BUSY = MEAN_RESPONSE.replace(
    "def train(self, sessions):",
    f"""def train(self, sessions):
            import time
            until = time.process_time() + (0 if self.smoke_run else {MODEL_SECONDS})
            while time.process_time() < until:
                pass""",
).replace("self.mean = {}", "self.mean, self.smoke_run = {}, context.smoke_run")


def evaluated_world(folder: Path, submissions: int) -> World:
    """A world with so many submissions of 26 teams, all of them evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    known = World(folder / f"evaluated-{submissions}")
    if known.folder.exists():
        return known
    fresh = folder / "unfinished-evaluation"
    shutil.rmtree(fresh, ignore_errors=True)
    world = build_world(folder).copy(fresh)
    workspace = world.workspace
    for number in range(submissions):
        noisy = true_predictions(workspace, SENSORIUM, 0.5 + 0.01 * number)
        path = write_file_submission(fresh / "sent" / str(number), f"Model {number}", SENSORIUM, noisy)
        send(workspace, path, f"team-{number % TEAMS}", "sensorium")
    take_in(workspace)
    jobs = list_jobs(workspace, read_release(workspace.open, RELEASE))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda job: score(workspace, job, [predict(workspace, job, 0)]), jobs))
    fresh.rename(known.folder)
    return known


def night(world: World) -> float:
    """Seconds of one flow run."""
    from flows.evaluate_submissions import evaluate_submissions

    started = time.perf_counter()
    evaluate_submissions(RELEASE, world.root)
    return time.perf_counter() - started


def with_new(world: World, folder: Path, code: str) -> World:
    """A copy with eight new submissions of code."""
    shutil.rmtree(folder, ignore_errors=True)
    copied = world.copy(folder)
    for number in range(NEW):
        path = write_code(folder / "sent" / str(number), f"New {number}", code, gain=0.01 * (number + 1))
        send(copied.workspace, path, f"team-{number}", "sensorium")
    return copied


def command(world: World) -> float:
    """Seconds of `sensorium evaluate` from its start to its end."""
    own = ("PREFECT_", "SENSORIUM_DASK")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    program = "from sensorium_pipeline.cli import main; main()"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, "evaluate", "--root", world.root], env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def best(measure: Callable[[], float], times: int = 3) -> float:
    """The best of some."""
    return min(measure() for _ in range(times))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--submissions", type=int, default=172)
    parser.add_argument("--profile", action="store_true", help="show where the time of a night with nothing new goes, and end")
    options = parser.parse_args()
    folder = options.folder.absolute()
    world = evaluated_world(folder, options.submissions)
    with prefect_server(Settings(root=str(folder / "services"))):
        night(world)  # publishes the tables, and loads everything
        if options.profile:
            with cProfile.Profile() as profile:
                night(world)
            pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
            return
        nothing = best(lambda: night(world))
        print(f"nothing new, {options.submissions} submissions: flow run {nothing:.2f} s", flush=True)
        print(f"nothing new, the whole command: {best(lambda: command(world), 2):.2f} s", flush=True)
        seconds: dict[tuple[str, int], float] = {}
        for what, code, workers in (("idle", MEAN_RESPONSE, 1), ("busy", BUSY, 1), ("busy", BUSY, 2)):
            copied = with_new(world, folder / "new", code)
            with local_cluster(Settings(workers=workers)) as cluster:
                os.environ["SENSORIUM_DASK_ADDRESS"] = cluster.scheduler_address
                seconds[what, workers] = night(copied)
            del os.environ["SENSORIUM_DASK_ADDRESS"]
        each = (seconds["idle", 1] - nothing) / NEW
        print(f"platform's own cost of a new submission: {each:.2f} s ({NEW} of them in {seconds['idle', 1]:.2f} s, one worker)")
        one, two = seconds["busy", 1], seconds["busy", 2]
        print(f"{NEW} submissions of {MODEL_SECONDS:.0f} s: one worker {one:.1f} s, two {two:.1f} s, {one / two:.2f} x")


if __name__ == "__main__":
    main()
