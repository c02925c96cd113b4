"""`sensorium`: one command for everything, one file for each group of its users."""

import atexit
import gc
import os
import signal
import sys
import tempfile
import traceback

# Threads of numpy's BLAS wait for each other by spinning: beside Dask workers that share the cores they make small matrix products
# a hundred times slower. Parallel work here is processes, numba or torch. It must be set before numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The same of torch's threads, which do help inside a plane: they sleep while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What a task raises comes back to its caller, who says it in one sentence; Dask's workers would print a traceback as well.
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")

import typer

from sensorium_pipeline.cli import benchmark, recordings, services, sessions, submissions, teams
from sensorium_pipeline.errors import SensoriumError
from sensorium_pipeline.terminal import emphasised, messages

app = typer.Typer(
    name="sensorium",
    help="The SENSORIUM benchmark, from raw two-photon recordings to the ranking table.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
services.register(app)
recordings.register(app)
sessions.register(app)
submissions.register(app)
benchmark.register(app)
teams.register(app)

INTERRUPTED = 130  # how Typer ends a command after Ctrl-C
USER = 1
PLATFORM = 2
WRONG_USAGE = 2


def main() -> None:
    """Run the command line; every error becomes one sentence on the error stream and an exit code (1: the input, 2: the platform)."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # under nohup it is ignored
        signal.signal(signal.SIGHUP, _terminate)
    # Arrays are freed when their last reference goes. Looking for cycles after every 700 objects takes a tenth of the time in which
    # libraries load and pictures are drawn.
    gc.set_threshold(50_000, 20, 100)
    # Threads inside compiled loops come back to the interpreter for a moment between two of them. Where another thread loads libraries or
    # draws, each time they would wait 5 ms for it, longer than the loop itself took.
    sys.setswitchinterval(0.0005)
    # Nor is a last search worth its half second, when all memory is given back anyway.
    atexit.register(gc.freeze)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            messages.print("interrupted; what was finished is kept, run the same command again to go on")
        # Typer ends wrong usage with 2, which means the platform here.
        sys.exit(USER if end.code == WRONG_USAGE else end.code)
    except SensoriumError as error:
        messages.print(emphasised("error", "bold red"), str(error), highlight=False)
        sys.exit(error.exit_code)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        messages.print(emphasised("internal error", "bold red"), text, highlight=False)
        # Kept at once, since what happens once under load may not happen again.
        with tempfile.NamedTemporaryFile("w", prefix="sensorium-error-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        messages.print(
            "This is a fault of the platform, not of your input. What was finished is kept: run the same command again to go on."
        )
        messages.print(f"{file.name} says where it happened.", highlight=False)
        sys.exit(PLATFORM)


def _terminate(signal_number: int, frame: object) -> None:
    """Being told to end, as by a terminal that is closed, ends like Ctrl-C, so that the servers started for this command are stopped."""
    raise KeyboardInterrupt
