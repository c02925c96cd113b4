"""`sensorium up` on this machine: real processes, deployments with a schedule, a run asked for through the API, and nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import pytest
from small_world import MEAN_RESPONSE, RELEASE, SENSORIUM, World, send, true_predictions, write_code, write_file_submission

from sensorium_pipeline.rankings import latest_publication
from sensorium_pipeline.service_processes import ServiceProcess, launch
from sensorium_pipeline.services import Services, start_services
from sensorium_pipeline.sessions.release import create_release, read_release
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.submissions.isolation import probe_isolation
from sensorium_pipeline.submissions.sandbox import IsolationTier

OTHER_RELEASE = "other"
FOREIGN = ("PREFECT_", "SENSORIUM_", "DASK_", "DO_NOT_TRACK")


@dataclass(frozen=True)
class Up:
    world: World
    services: Services
    family: list[psutil.Process]

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.services.prefect_api + path, data, {"Content-Type": "application/json"})
        # On a busy machine Prefect answers 503 while SQLite is locked; its own client asks again, too.
        for wait in (1, 2, 4, 8, 0):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or not wait:
                    raise
                time.sleep(wait)
        return None


def sensorium(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as an operator types it, in an environment without services of other tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | {"SENSORIUM_WORKERS": "1"}
    command = [sys.executable, "-c", "from sensorium_pipeline.cli import main; main()", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def up(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("services")
    world = world.copy(folder)
    predictions = true_predictions(world.workspace, SENSORIUM, 1.0)
    send(world.workspace, write_file_submission(folder / "file", "File", SENSORIUM, predictions), "nightly-team", "sensorium")
    create_release(world.workspace, OTHER_RELEASE, [session.name for session in read_release(world.workspace.open, RELEASE).sessions])
    done = sensorium("up", "--root", world.root, "--json")
    try:
        assert done.returncode == 0, done.stderr
        services = Services.model_validate_json(done.stdout)
        processes = [psutil.Process(service.pid) for service in services.processes]
        family = processes + [child for process in processes for child in process.children(recursive=True)]
        yield Up(world, services, family)
    finally:
        sensorium("down", "--root", world.root)


def test_what_is_left_of_broken_services_does_not_go_on_beside_new_ones(tmp_path: Path) -> None:
    left = launch("left", ["sleep", "600"], tmp_path / "services", {})
    # A number that another process has by now.
    ended = ServiceProcess(name="ended", pid=os.getpid(), created=0)
    address = "http://127.0.0.1:9"
    broken = Services(prefect_api=address, prefect_ui=address, dask_address="", dask_dashboard="", folder=tmp_path, processes=[left, ended])
    (tmp_path / "services" / "services.json").write_text(broken.model_dump_json())
    # Nothing new can start here, as no log can be written.
    shutil.rmtree(tmp_path / "services" / "logs")
    (tmp_path / "services" / "logs").touch()
    with pytest.raises(FileExistsError):
        start_services(Settings(root=str(tmp_path)), tmp_path / "prefect.yaml")
    assert left.process() is None


def test_the_addresses_that_it_prints_answer(up: Up) -> None:
    for url in (f"{up.services.prefect_api}/health", up.services.prefect_ui, up.services.dask_dashboard):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200
    again = sensorium("up", "--root", up.world.root)
    assert again.returncode == 1
    assert "the services run already" in again.stderr


def test_nothing_phones_home(up: Up) -> None:
    for name in ("prefect-server", "prefect-worker"):
        process = next(service for service in up.services.processes if service.name == name)
        environment = psutil.Process(process.pid).environ()
        assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert environment["DO_NOT_TRACK"] == "1"
        assert environment["PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT"] == "false"
    settings = up.api("/admin/settings")
    assert settings["server"]["analytics_enabled"] is False


def test_the_nightly_cron_has_scheduled_runs_in_its_time_zone(up: Up) -> None:
    deployment = up.api("/deployments/name/evaluate-all-releases/nightly")
    assert [(each["schedule"]["cron"], each["schedule"]["timezone"], each["active"]) for each in deployment["schedules"]] == [
        ("0 2 * * *", "Europe/Berlin", True)
    ]
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    deadline = time.monotonic() + 60
    while not (runs := up.api("/flow_runs/filter", wanted)):
        assert time.monotonic() < deadline, "no run was scheduled within a minute"
        time.sleep(0.5)
    for run in runs:
        local = datetime.fromisoformat(run["expected_start_time"]).astimezone(ZoneInfo("Europe/Berlin"))
        assert (local.hour, local.minute) == (2, 0)


def test_every_flow_is_deployed(up: Up) -> None:
    flows = {flow["id"]: flow["name"] for flow in up.api("/flows/filter", {})}
    assert {f"{flows[each['flow_id']]}/{each['name']}" for each in up.api("/deployments/filter", {})} == {
        "evaluate-all-releases/nightly",
        "evaluate-submissions/evaluate",
        "ingest-session/on-demand",
        "publish-rankings/publish",
        "audit-release/audit",
    }


def test_a_night_evaluates_and_publishes_every_release(up: Up) -> None:
    deployment = up.api("/deployments/name/evaluate-all-releases/nightly")
    run = up.api(f"/deployments/{deployment['id']}/create_flow_run", {})
    deadline = time.monotonic() + 120
    while (state := up.api(f"/flow_runs/{run['id']}")["state"])["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        assert time.monotonic() < deadline, state
        time.sleep(0.5)
    assert state["type"] == "COMPLETED", state["message"]
    assert latest_publication(up.world.workspace.open, OTHER_RELEASE) is not None
    publication = latest_publication(up.world.workspace.open, RELEASE)
    assert publication is not None
    table = publication.table("sensorium", "test")
    assert table is not None
    assert [(row.team, row.rank) for row in table.rows] == [("nightly-team", 1)]
    # The command line finds these services, and has nothing to add.
    again = sensorium("publish", "--release", RELEASE, "--root", up.world.root, "--json")
    assert again.returncode == 0, again.stderr
    published = json.loads(again.stdout)
    assert (published["new"], published["number"]) == (False, publication.number)
    assert "starting the Prefect server" not in again.stderr


def test_cancelling_a_deployed_run_ends_its_training(up: Up, tmp_path: Path) -> None:
    slow = "def build(context):\n        import time; time.sleep(0 if context.smoke_run else 600)"
    code = MEAN_RESPONSE.replace("def build(context):", slow)
    if probe_isolation().tier is IsolationTier.REFUSE:
        pytest.skip("no isolation here")
    send(up.world.workspace, write_code(tmp_path / "endless", "Endless", code), "endless", "sensorium")
    deployment = up.api("/deployments/name/evaluate-submissions/evaluate")
    run = up.api(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"release": RELEASE}})

    def sandboxes() -> list[psutil.Process]:
        workers = next(service for service in up.services.processes if service.name == "dask-workers")
        return [child for child in psutil.Process(workers.pid).children(recursive=True) if child.name() == "bwrap"]

    def state() -> str:
        found: str = up.api(f"/flow_runs/{run['id']}")["state"]["type"]
        return found

    deadline = time.monotonic() + 120
    while not sandboxes():
        assert time.monotonic() < deadline, state()
        time.sleep(0.1)
    up.api(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    deadline = time.monotonic() + 60
    while state() != "CANCELLED" or sandboxes():
        assert time.monotonic() < deadline, (state(), sandboxes())
        time.sleep(0.1)


def test_down_leaves_no_process_and_no_record(up: Up) -> None:
    done = sensorium("down", "--root", up.world.root)
    assert done.returncode == 0, done.stderr
    assert "prefect-server" in done.stdout
    assert psutil.wait_procs(up.family, timeout=20)[1] == []
    assert not (Path(up.world.root) / "services" / "services.json").exists()
    again = sensorium("down", "--root", up.world.root)
    assert again.returncode == 1
    assert "sensorium up" in again.stderr
