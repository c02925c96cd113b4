"""The Prefect server and the Dask cluster as processes of this machine: for one command, or kept running by `sensorium up`.

A services folder (beside the workspace, on this machine's disk) holds Prefect's database, the logs, and `services.json`, which
says what runs. Runs of yesterday's `sensorium demo` are therefore still in the interface of today's `sensorium up`.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sensorium_pipeline.compute import PRELOADED, TICK, default_workers
from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.guard import guarded
from sensorium_pipeline.locks import locked
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.service_processes import ServiceProcess, answers, free_port, launch, on_a_port, stop, wait_until
from sensorium_pipeline.settings import Settings

WORK_POOL = "sensorium"
PREFECT_PORT = 4200
DASK_PORT = 8786
DASHBOARD_PORT = 8787
BUSY_SECONDS = 30


class Services(BaseModel):
    """What `sensorium up` started, and where to look at it."""

    prefect_api: str
    prefect_ui: str
    dask_address: str
    dask_dashboard: str
    folder: Path
    processes: list[ServiceProcess]

    def running(self) -> bool:
        """Whether every process still runs."""
        return all(process.process() for process in self.processes)


def services_folder(settings: Settings) -> Path:
    """Where the services of a workspace live on this machine: below a local root, beside the current folder for a remote one."""
    root = settings.root.removeprefix("file://")
    return Path("services").absolute() if "://" in root else Path(root).expanduser().absolute() / "services"


def prefect_environment(folder: Path, api_url: str) -> dict[str, str]:
    """Variables for every process that talks to our Prefect server. Nothing of it phones home."""
    return {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # The terminal shows our own progress and errors in one sentence; every log line and traceback is in the interface.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }


def launch_prefect_server(folder: Path, port: int, *, outlives_us: bool) -> ServiceProcess:
    """Start a Prefect server with SQLite in the services folder; `wait_for_prefect_server` says when it answers."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--analytics-off"]
    command = command if outlives_us else guarded(command)
    return launch("prefect-server", command, folder, prefect_environment(folder, prefect_api_url(port)))


def prefect_api_url(port: int) -> str:
    """URL of the API of a Prefect server on this machine."""
    return f"http://127.0.0.1:{port}/api"


def wait_for_prefect_server(service: ServiceProcess, folder: Path, port: int) -> None:
    """Return when the server answers; where it does not, it is stopped."""
    wait_until(lambda: answers(f"{prefect_api_url(port)}/health", service), service, folder)


@contextmanager
def prefect_server(settings: Settings, progress: ProgressCallback = silent, meanwhile: Callable[[], None] = lambda: None) -> Iterator[str]:
    """The URL of a Prefect API for flows of this process: the one in PREFECT_API_URL, the one `up` keeps (with its
    Dask cluster), or one of our own.

    Sets this process's environment and, where Prefect is imported already, its settings.

    Args:
        settings: of the workspace.
        progress: told when a server is started.
        meanwhile: done while a server starts, such as slow imports.
    """
    folder = services_folder(settings)
    if named := os.environ.get("PREFECT_API_URL"):
        _tell_prefect({**prefect_environment(folder, named), "PREFECT_HOME": os.environ.get("PREFECT_HOME", str(folder / "prefect"))})
        meanwhile()
        yield named
        return
    if (running := read_services(folder)) and running.running():
        _tell_prefect(prefect_environment(folder, running.prefect_api))
        os.environ.setdefault("SENSORIUM_DASK_ADDRESS", running.dask_address)
        meanwhile()
        yield running.prefect_api
        return
    progress(Progress("starting the Prefect server", 0, 1))
    # Any port: two commands that start at the same moment would both find the usual one free.
    port = free_port()
    server = launch_prefect_server(folder, port, outlives_us=False)
    api_url = prefect_api_url(port)
    _tell_prefect(prefect_environment(folder, api_url))
    try:
        meanwhile()
        wait_for_prefect_server(server, folder, port)
        progress(Progress("starting the Prefect server", 1, 1))
        yield api_url
    finally:
        # Log records wait in a queue for Prefect's API; send them while it is still there.
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            for handler in logging.getLogger(name).handlers:
                handler.flush()
        del os.environ["PREFECT_API_URL"]
        stop([server])


def _tell_prefect(variables: Mapping[str, str]) -> None:
    """Set environment variables; Prefect reads them when it is first imported, and otherwise is made to read them again."""
    os.environ.update(variables)
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def read_services(folder: Path) -> Services | None:
    """What `sensorium up` left in a services folder, if anything."""
    try:
        return Services.model_validate_json((folder / "services.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError("the file cannot be read", where=folder / "services.json", advice="Remove it, and start again.") from error


def start_services(settings: Settings, deployments: Path, progress: ProgressCallback = silent) -> Services:
    """Start a Prefect server, a Dask scheduler with workers, a Prefect worker, and deploy what `deployments` (prefect.yaml) holds.

    Raises:
        InputError: they run already.
        PlatformError: one of them did not start; the others are stopped again.
    """
    folder = services_folder(settings)
    with locked(folder / "lock"):
        if (running := read_services(folder)) and running.running():
            raise InputError("the services run already", where=running.prefect_ui, advice="Stop them with `sensorium down`.")
        if running:
            # One of them ended by itself. The others would go on beside the new ones, and nobody would know of them.
            stop(running.processes)
        services = _start_all(settings, folder, deployments, progress)
        written = folder / "services.json.new"
        written.write_text(services.model_dump_json(indent=2))
        written.replace(folder / "services.json")
    return services


def _start_all(settings: Settings, folder: Path, deployments: Path, progress: ProgressCallback) -> Services:
    steps = ["Prefect server", "Dask scheduler", "Dask workers", "deployments", "Prefect worker"]

    def report(done: int) -> None:
        progress(Progress("starting " + steps[min(done, len(steps) - 1)], done, len(steps)))

    started: list[ServiceProcess] = []
    python = [sys.executable, "-m"]
    try:
        report(0)
        server, port = on_a_port(PREFECT_PORT, lambda port: _start_prefect_server(folder, port))
        started.append(server)
        api_url = prefect_api_url(port)
        root = settings.root if "://" in settings.root else str(Path(settings.root).expanduser().absolute())
        environment = {**prefect_environment(folder, api_url), "SENSORIUM_ROOT": root}
        environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "1"
        environment["DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL"] = TICK

        report(1)
        scheduler, address, dashboard_port = on_a_port(DASK_PORT, lambda port: _start_dask_scheduler(folder, environment, port))
        started.append(scheduler)
        environment["SENSORIUM_DASK_ADDRESS"] = address

        report(2)
        slots = str(settings.gpu_slots)
        workers = ["--resources", f"GPU={slots}", "--nthreads", slots, "--host", "127.0.0.1", "--local-directory", str(folder / "dask")]
        workers += ["--preload", PRELOADED]
        if shutil.which("nvidia-smi") and shutil.which("dask"):
            command = ["dask", "cuda", "worker", address, *workers]
        else:
            count = str(settings.workers or default_workers())
            command = [*python, "distributed.cli.dask_worker", address, "--nworkers", count, *workers]
        started.append(launch("dask-workers", [*command, "--no-dashboard"], folder, environment))

        report(3)
        _prefect(["work-pool", "create", WORK_POOL, "--type", "process", "--overwrite"], environment, folder)
        _prefect(["--no-prompt", "deploy", "--all", "--prefect-file", str(deployments)], environment, deployments.parent)

        end_lost_runs(api_url)

        report(4)
        worker = ["prefect", "worker", "start", "--pool", WORK_POOL, "--name", "sensorium-worker"]
        started.append(launch("prefect-worker", [*python, *worker], folder, environment))
        report(5)
    except BaseException:
        stop(started)
        raise
    return Services(
        prefect_api=api_url,
        prefect_ui=f"http://127.0.0.1:{port}",
        dask_address=address,
        dask_dashboard=f"http://127.0.0.1:{dashboard_port}/status",
        folder=folder,
        processes=started,
    )


def _start_prefect_server(folder: Path, port: int) -> tuple[ServiceProcess, int]:
    """A Prefect server that answers, and its port."""
    server = launch_prefect_server(folder, port, outlives_us=True)
    wait_for_prefect_server(server, folder, port)
    return server, port


def _start_dask_scheduler(folder: Path, environment: Mapping[str, str], port: int) -> tuple[ServiceProcess, str, int]:
    """A Dask scheduler that listens, its address, and the port of its dashboard."""
    says = folder / "dask-scheduler.json"
    says.unlink(missing_ok=True)
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    # Where the port of the dashboard is taken, the scheduler takes another by itself; its file says which.
    command += ["--dashboard-address", f"127.0.0.1:{DASHBOARD_PORT}", "--scheduler-file", str(says)]
    scheduler = launch("dask-scheduler", command, folder, environment)
    identity: dict[str, Any] = {}

    def listens() -> bool:
        with suppress(OSError, ValueError):  # not there yet, or half written
            identity.update(json.loads(says.read_bytes()))
        return bool(identity)

    wait_until(listens, scheduler, folder)
    return scheduler, identity["address"], identity["services"]["dashboard"]


def end_lost_runs(api_url: str) -> None:
    """Say of runs whose process ended with earlier services that they crashed.

    Prefect takes them for running as long as nobody does, and a night waits until the one before has ended.
    """
    unfinished = ["PENDING", "RUNNING", "CANCELLING"]
    deployed: dict[str, object] = {
        "flow_runs": {"state": {"type": {"any_": [*unfinished, "CRASHED", "CANCELLED"]}}},
        "work_pools": {"name": {"any_": [WORK_POOL]}},
        "sort": "START_TIME_DESC",
    }
    runs = _ask_prefect(f"{api_url}/flow_runs/filter", deployed)
    # Of a run that crashed, those below it were told nothing.
    parents = {"parent_flow_run_id": {"any_": [run["id"] for run in runs]}, "state": {"type": {"any_": unfinished}}}
    below = _ask_prefect(f"{api_url}/flow_runs/filter", {"flow_runs": parents}) if runs else []
    crashed = {"type": "CRASHED", "message": "Its process ended with the services. What was finished is kept; the next run goes on."}
    for run in (*below, *(run for run in runs if run["state_type"] in unfinished)):
        _ask_prefect(f"{api_url}/flow_runs/{run['id']}/set_state", {"state": crashed, "force": True})


def _ask_prefect(url: str, body: dict[str, object]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=BUSY_SECONDS) as answer:
                return json.load(answer)
        except OSError as error:
            # It says so while its database is locked.
            busy = isinstance(error, urllib.error.HTTPError) and error.code == HTTPStatus.SERVICE_UNAVAILABLE
            if not busy or time.monotonic() > deadline:
                raise PlatformError(f"the Prefect server failed ({error})", where=url, advice="Its log may say why.") from error
        time.sleep(0.5)


def stop_services(settings: Settings) -> Services:
    """Stop what `start_services` started.

    Raises:
        InputError: nothing was started for this workspace.
    """
    folder = services_folder(settings)
    nothing = InputError("no services were started for this workspace", where=folder, advice="Start them with `sensorium up`.")
    if not folder.is_dir():
        raise nothing
    with locked(folder / "lock"):
        services = read_services(folder)
        if services is None:
            raise nothing
        stop(services.processes)
        (folder / "services.json").unlink()
    return services


def _prefect(arguments: list[str], environment: Mapping[str, str], cwd: Path) -> None:
    """Run one command of Prefect's own command line."""
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlatformError(
            (done.stderr or done.stdout).strip().splitlines()[-1][:300] if (done.stderr or done.stdout).strip() else "failed",
            where="prefect " + " ".join(arguments),
            advice="The services were stopped again.",
        )
