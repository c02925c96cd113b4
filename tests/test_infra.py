"""Infrastructure files say nothing that the library, the lock or the command line does not know. None of them is run here."""

import importlib
import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from sensorium_pipeline.cli import app
from sensorium_pipeline.rankings.publication import PublicationRecord
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Series, open_workspace, write_files

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
MANIFESTS = INFRA / "kubernetes"
FILES = sorted(
    path for path in INFRA.rglob("*") if path.is_file() and "credentials" not in path.relative_to(INFRA).parts and path.name != ".env"
)

# Which roots a process may hold keys of; everything else holds none.
ROOTS = {"evaluation": {"open", "sealed", "inbox"}, "ingestion": {"lab", "open", "sealed"}, "planes": {"lab"}}


def _variables(model: type[BaseModel], prefix: str) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            found |= _variables(nested, f"{prefix}{name.upper()}__")
        else:
            found.add(f"{prefix}{name.upper()}")
    return found


def _documents() -> list[dict[str, Any]]:
    return [
        document
        for path in sorted(MANIFESTS.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def _containers() -> dict[str, dict[str, Any]]:
    found = {}
    for document in _documents():
        if document["kind"] in ("Deployment", "Job"):
            (found[document["metadata"]["name"]],) = document["spec"]["template"]["spec"]["containers"]
    return found


def _compose() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    return services


def _roots(names: set[str]) -> set[str]:
    return {match[1].lower() for name in names if (match := re.match(r"SENSORIUM_([A-Z]+)__", name))}


def _example_variables(name: str) -> set[str]:
    lines = (INFRA / "credentials.example" / f"{name}.env").read_text().splitlines()
    return {line.split("=")[0] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_every_variable_is_one_that_the_settings_read(path: Path) -> None:
    named = set(re.findall(r"\bSENSORIUM_[A-Z0-9_]*[A-Z0-9]\b", path.read_text()))
    assert named <= _variables(Settings, "SENSORIUM_")


def test_registrations_name_existing_deployments() -> None:
    known = {deployment["name"] for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    for text in (_compose()["register-deployments"]["command"][-1], _containers()["register-deployments"]["command"][-1]):
        named = re.findall(r"deploy --name (\S+)", text)
        assert set(named) <= known
        assert {"on-demand", "audit"} <= set(named)


def test_image_has_the_versions_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dockerfile = (INFRA / "Dockerfile").read_text()
    (torch,) = [requirement for requirement in project["dependencies"] if requirement.startswith("torch==")]
    assert set(re.findall(r"torch==[0-9.]+", dockerfile)) == {torch}
    assert "--require-hashes --no-deps -r /tmp/requirements.lock" in dockerfile
    assert "gpu" in project["optional-dependencies"]
    assert project["requires-python"] == f">={re.search(r'^FROM python:([0-9.]+)-', dockerfile, re.MULTILINE)[1]}"  # type: ignore[index]
    for source in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        # README.md and LICENSE stand in pyproject.toml.
        assert all((ROOT / name).exists() or name == project["readme"] for name in source.split())


def test_commands_of_our_image_exist() -> None:
    known = {("prefect", "server"), ("prefect", "worker"), ("dask", "scheduler"), ("dask", "worker"), ("dask", "cuda"), ("sh", "-ec")}
    compose = {name: service["command"] for name, service in _compose().items() if service["image"] == "sensorium-pipeline"}
    manifests = {name: container["command"] for name, container in _containers().items() if container["image"] == "sensorium-pipeline"}
    assert len(manifests) == len(_containers())
    for command in (*compose.values(), *manifests.values()):
        assert tuple(command[:2]) in known


def test_readme_names_existing_commands() -> None:
    text = (INFRA / "README.md").read_text()
    root = typer.main.get_command(app)
    named = set(re.findall(r"(?:`|ingestion )sensorium ([a-z-]+)", text))
    assert {"up", "ingest", "release", "submit", "explain"} <= named
    assert named <= set(root.commands)  # type: ignore[attr-defined]
    flows = {
        f"{importlib.import_module(module).__dict__[function].name}/{deployment['name']}"
        for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
        for module, function in [deployment["entrypoint"].rsplit(".", 1)]
    }
    assert set(re.findall(r"deployment run (\S+?)[` ]", text)) <= flows


def test_readme_finds_an_older_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SENSORIUM_ROOT", str(tmp_path))
    store = open_workspace(Settings()).open
    for day in (1, 2):
        files = write_files(store, {"index.html": f"day {day}".encode()}).digest
        time = datetime(2026, 9, day, 2, tzinfo=UTC)
        record = PublicationRecord(release="RELEASE", content_digest=files, files_digest=files, tables=(), final_open=False, time=time)
        Series(store, "publications/RELEASE").append(record)
    (code,) = re.findall(r"```python\n(.*?)```", (INFRA / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2026-09-01", "2026-09-02"]
    assert [Path(line.split()[-1].removeprefix("file://")).read_text() for line in lines] == ["day 1", "day 2"]


def test_kustomization_lists_exactly_the_manifests() -> None:
    listed = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml")


def test_keys_are_split_over_the_processes() -> None:
    for name in ("evaluation", "ingestion"):
        assert _roots(_example_variables(name)) == ROOTS[name]
    for service in _compose().values():
        roots = _roots(set(service.get("environment", {})))
        for file in service.get("env_file", []):
            assert roots == ROOTS[Path(file).stem]
        if "env_file" not in service:
            assert not roots
    maps = {document["metadata"]["name"]: set(document["data"]) for document in _documents() if document["kind"] == "ConfigMap"}
    for container in _containers().values():
        sources = container["envFrom"]
        configured = [source["configMapRef"]["name"] for source in sources if "configMapRef" in source]
        secrets = [source["secretRef"]["name"].removeprefix("sensorium-") for source in sources if "secretRef" in source]
        assert _roots(set().union(*(maps[name] for name in configured))) == set().union(*(ROOTS[name] for name in secrets))


def test_manifests_hold_no_secret() -> None:
    assert not [document for document in _documents() if document["kind"] == "Secret"]
    identities = json.loads((INFRA / "credentials.example" / "s3.json").read_text())["identities"]
    assert {key["secretKey"] for identity in identities for key in identity["credentials"]} == {"CHANGE-ME"}


def test_only_gpu_workers_offer_gpus_on_the_cluster() -> None:
    offering = {name for name, container in _containers().items() if "GPU=1" in container["command"]}
    holding = {name for name, container in _containers().items() if "nvidia.com/gpu" in container["resources"]["limits"]}
    assert offering == holding == {"dask-gpu-workers"}


def test_nothing_phones_home() -> None:
    for service in _compose().values():
        if service["image"] == "sensorium-pipeline" and service["command"][0] != "dask":
            assert service["environment"]["DO_NOT_TRACK"] == "1"
            assert service["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    for container in _containers().values():
        assert {"configMapRef": {"name": "no-telemetry"}} in container["envFrom"]
