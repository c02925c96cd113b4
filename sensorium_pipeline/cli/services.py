"""Commands of the operator: the demo, and the services of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from sensorium_pipeline.cli.common import Json, Root, flows_ready, settings_of, workspace_of
from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.terminal import console, print_json, progress_bars

PANEL = "Run"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(demo)
    app.command(rich_help_panel=PANEL)(up)
    app.command(rich_help_panel=PANEL)(down)
    app.command("collect-garbage", rich_help_panel=PANEL)(collect_garbage)
    app.command(rich_help_panel=PANEL)(verify)


def demo(
    root: Root = None,
    s3: Annotated[bool, typer.Option("--s3", help="Keep everything in a real S3 server, started on this machine.")] = False,
) -> None:
    """The main job on this machine: raw recordings of three mice to a published ranking.

    Simulates the recordings, ingests them, makes and audits a release, submits baselines and two misbehaving models, evaluates all of
    them in isolation on Dask through Prefect, ranks and publishes. What is done already is not done again.
    """
    settings = settings_of(root)
    folder = Path(settings.root)
    if "://" in settings.root:
        advice = "Give a folder of this machine; --s3 keeps the workspace in an S3 server inside it."
        raise InputError("the demonstration needs a folder", where=settings.root, advice=advice)
    with flows_ready(settings) as show:
        from sensorium_pipeline.cli.demonstration import print_demo, run_demo

        demonstration = run_demo(folder, show, s3=s3)
    print_demo(demonstration)


def up(root: Root = None, json: Json = False) -> None:
    """Keep a Prefect server with its deployments, a Prefect worker and a Dask cluster running on this machine."""
    from sensorium_pipeline.services import start_services

    settings = settings_of(root)
    with progress_bars() as show:
        services = start_services(settings, _deployments(), show)
    if json:
        print_json(services)
        return
    console.print(f"Prefect:   {services.prefect_ui}   (runs, artifacts, schedules)")
    console.print(f"Dask:      {services.dask_dashboard}   (scheduler {services.dask_address})")
    console.print(f"Workspace: {settings.root}   Logs: {services.folder / 'logs'}")
    console.print("Commands with the same --root use them from now on; stop them with `sensorium down`.")


def down(root: Root = None, json: Json = False) -> None:
    """Stop what `sensorium up` started."""
    from sensorium_pipeline.services import stop_services

    services = stop_services(settings_of(root))
    if json:
        print_json(services)
    else:
        console.print(f"Stopped {', '.join(process.name for process in services.processes)}.")


def collect_garbage(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    root: Root = None,
    json: Json = False,
) -> None:
    """Remove what failed or killed runs left in the workspace a week ago or earlier: data that nothing names, and their checkpoints."""
    from sensorium_pipeline.storage import collect_garbage as collect

    workspace = workspace_of(root)
    reports = {store.name: collect(store, dry_run=dry_run) for store in (workspace.lab, workspace.open, workspace.sealed, workspace.inbox)}
    if json:
        print_json({name: report.model_dump(mode="json") for name, report in reports.items()})
        return
    for name, report in reports.items():
        left = f", {len(report.too_young)} too young to tell" if report.too_young else ""
        freed = f"{report.freed_bytes / 1e6:.1f} MB in {len(report.removed)} pieces {'would be ' if dry_run else ''}removed"
        console.print(f"{name}: {freed}{left}", highlight=False)


def verify(root: Root = None, json: Json = False) -> None:
    """Read everything that is stored and compare it with its digests, as after a damaged disk; exit code 2 where something differs."""
    from sensorium_pipeline.storage import list_datasets, verify_dataset

    workspace = workspace_of(root)
    counts: dict[str, int] = {}
    damaged: list[str] = []
    with progress_bars() as show:
        for store in (workspace.lab, workspace.open, workspace.sealed, workspace.inbox):
            digests = list_datasets(store)
            counts[store.name] = len(digests)
            for number, digest in enumerate(digests):
                show(Progress(f"verify {store.name}", number, len(digests)))
                try:
                    verify_dataset(store, digest)
                except PlatformError as error:
                    damaged.append(str(error))
            show(Progress(f"verify {store.name}", len(digests), len(digests)))
    if json:
        print_json({"datasets": counts, "damaged": damaged})
    else:
        for line in damaged:
            console.print(line, highlight=False, markup=False)
        if not damaged:
            console.print("All is as it was written: " + ", ".join(f"{count} datasets in {name}" for name, count in counts.items()))
    if damaged:
        raise PlatformError(f"{len(damaged)} of {sum(counts.values())} datasets are damaged", where=workspace.url)


def _deployments() -> Path:
    """prefect.yaml of this checkout."""
    import sensorium_pipeline

    path = Path(sensorium_pipeline.__file__).resolve().parent.parent / "prefect.yaml"
    if not path.is_file():
        raise InputError("the deployments are missing", where=path, advice="Run `sensorium up` from an installation of the checkout.")
    return path
