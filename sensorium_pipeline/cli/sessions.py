"""Commands around the catalogue: sessions, releases and the leak audit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from sensorium_pipeline.cli.common import Json, ReleaseName, Root, settings_of, workspace_of
from sensorium_pipeline.errors import InputError
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.terminal import console, emphasised, print_json, print_table, progress_bars

PANEL = "Sessions and releases"
State = Literal["open", "closed"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sessions", rich_help_panel=PANEL)(list_sessions)
    app.command(rich_help_panel=PANEL)(show)
    app.command(rich_help_panel=PANEL)(download)
    app.command("import-release", rich_help_panel=PANEL)(import_release)
    app.command("export-release", rich_help_panel=PANEL)(export_release)
    app.command(rich_help_panel=PANEL)(release)
    app.command(rich_help_panel=PANEL)(audit)


def list_sessions(root: Root = None, json: Json = False) -> None:
    """List the published sessions."""
    from sensorium_pipeline.sessions import catalogue

    found = catalogue.list_sessions(workspace_of(root).open)
    if json:
        print_json(found)
        return
    rows = [(s.name, s.role, s.track or "", s.neurons, sum(s.trials.values()), s.open_digest[:12]) for s in found]
    print_table("Published sessions", ("session", "role", "track", "neurons", "trials", "digest"), rows)


def show(session: Annotated[str, typer.Argument(help="Name of the session.")], root: Root = None, json: Json = False) -> None:
    """Show what is in a published session, and the URL to open it with."""
    from sensorium_pipeline.sessions.catalogue import show_session
    from sensorium_pipeline.storage import dataset_url

    workspace = workspace_of(root)
    summary = show_session(workspace.open, session)
    if json:
        print_json(summary)
        return
    trials = ", ".join(f"{count} {tier}" for tier, count in summary.session.trials.items())
    console.print(emphasised(f"{summary.session.name}:"), f"{summary.session.role}, tracks {', '.join(summary.tracks)}", highlight=False)
    console.print(f"{summary.session.neurons} neurons; trials {trials}; {summary.images} images {summary.image_shape}", highlight=False)
    console.print(f"hidden: {', '.join(summary.hidden_tiers) or 'nothing'}; behaviour {'shown' if summary.behavior else 'not shown'}")
    url = dataset_url(workspace.open, summary.session.open_digest)
    console.print(
        f'xarray.open_datatree("{url}", engine="zarr"{_server(workspace.open.storage_options, settings_of(root))})', highlight=False
    )


def _server(options: Mapping[str, object], settings: Settings) -> str:
    """Storage options of the open store as they are written for xarray; keys by the variables that hold them."""
    own = settings.open
    prefix = "SENSORIUM_OPEN__" if own.access_key or own.secret_key else "SENSORIUM_"
    variables = {"key": f"{prefix}ACCESS_KEY", "secret": f"{prefix}SECRET_KEY"}
    written = [f'"{name}": ' + (f'os.environ["{variables[name]}"]' if name in variables else f'"{options[name]}"') for name in options]
    return f", storage_options={{{', '.join(written)}}}" if written else ""


def download(
    session: Annotated[str, typer.Argument(help="Name of the session.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for it; run again after an interruption, it fetches what is missing.")],
    root: Root = None,
) -> None:
    """Copy the open part of a published session to this machine, every file checked against its digest."""
    from sensorium_pipeline.sessions.catalogue import read_session
    from sensorium_pipeline.storage import download_files

    store = workspace_of(root).open
    digest = read_session(store, session)[1].open_digest
    with progress_bars() as bars:
        download_files(store, digest, out, progress=bars)
    console.print(f'session {session}, digest {digest[:12]}: xarray.open_datatree("{out}", engine="zarr")', highlight=False)


def release(
    name: Annotated[str, typer.Argument(help="Name of the release.")],
    sessions: Annotated[list[str] | None, typer.Argument(help="Its sessions; left out, the phases of the release change.")] = None,
    live: Annotated[State | None, typer.Option(help="Show scores of the live tier (test).", show_default=False)] = None,
    final: Annotated[
        State | None, typer.Option(help="Show scores of the final tier (final_test), of --phase or all.", show_default=False)
    ] = None,
    phase: Annotated[str | None, typer.Option(help="The one phase that --final is about.", show_default=False)] = None,
    phases: Annotated[
        Path | None, typer.Option(help="TOML with a table [[phase]] for each: name, opens, closes, time_zone, per_day.", show_default=False)
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Reference baseline of a track, TRACK=TEAM/NAME; may be given once for each track.", show_default=False),
    ] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Audit sessions for leaks and name them a release, or change its phases and the tiers it shows."""
    from sensorium_pipeline.sessions import release as releases
    from sensorium_pipeline.sessions.phases import read_phases

    workspace = workspace_of(root)
    if phase and not final:
        raise InputError("--phase says which phase --final is about", where="--final", advice="Add --final open or --final closed.")
    given = read_phases(phases) if phases else None
    if sessions:
        references = dict(_reference(each) for each in reference) if reference else None
        made, _ = releases.create_release(workspace, name, sessions, live=live, phases=given, references=references)
        if final:
            made = releases.change_phases(workspace, name, final=final, phase=phase)
    else:
        made = releases.change_phases(workspace, name, live=live, final=final, phase=phase, phases=given)
    if json:
        print_json(made)
        return
    rows = [(s.name, s.role, s.track or "both", s.open_digest[:12]) for s in made.sessions]
    print_table(f"Release {made.name}: live {made.live}, final {made.final}", ("session", "role", "track", "digest"), rows)
    for one in made.phases:
        quota = f"{one.per_day} a day for each team and track"
        shown = "final tier shown" if one.final_opened else "final tier closed"
        console.print(f"Phase {one.name}: {one.dates}, {quota} ({one.time_zone}), {shown}", highlight=False)


def import_release(
    tree: Annotated[Path, typer.Argument(metavar="TREE", help="Unpacked folder of one session of SENSORIUM 2022, with data/ and meta/.")],
    track: Annotated[
        Literal["sensorium", "sensorium+"] | None,
        typer.Option(help="Track of a competition session; left out, the session is open and nothing is hidden.", show_default=False),
    ] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Publish a file tree of SENSORIUM 2022 as a session."""
    from sensorium_pipeline.environment import code_version, environment_digest
    from sensorium_pipeline.sessions.exchange_2022 import import_tree
    from sensorium_pipeline.sessions.records import Provenance

    provenance = Provenance(code_version=code_version(), lock_digest=environment_digest())
    with progress_bars() as show:
        made = import_tree(workspace_of(root), tree, track, provenance, show)
    if json:
        print_json({"session": made.session.published().model_dump(mode="json"), "notes": list(made.notes)})
        return
    trials = ", ".join(f"{count} {tier}" for tier, count in made.session.trials.items())
    console.print(f"session {made.session.name}: {made.session.neurons} neurons; trials {trials}", highlight=False)
    for note in made.notes:
        console.print(note, highlight=False)


def export_release(
    session: Annotated[str, typer.Argument(help="Name of the session.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist yet.")],
    root: Root = None,
) -> None:
    """Write a published session as a file tree of SENSORIUM 2022; what is hidden is filled with zeros."""
    from sensorium_pipeline.sessions.exchange_2022 import export_tree

    with progress_bars() as show:
        export_tree(workspace_of(root).open, session, out, show)
    console.print(f"{out}: session {session} as SENSORIUM 2022 laid it out", highlight=False)


def audit(release: ReleaseName = None, root: Root = None, json: Json = False) -> None:
    """Look for leaks in the published bytes of a release; exit code 1 where there is one."""
    from sensorium_pipeline.sessions.audit import audit_session
    from sensorium_pipeline.sessions.release import choose_release

    workspace = workspace_of(root)
    reports = [audit_session(workspace, session.name, session.open_digest) for session in choose_release(workspace.open, release).sessions]
    if json:
        print_json(reports)
    else:
        for report in reports:
            verdict = "passed" if report.passed else f"{len(report.findings)} findings"
            console.print(f"{report.session}: {verdict} ({len(report.checks)} checks, {len(report.skipped)} skipped)")
    for report in reports:
        report.refuse_leaks()


def _reference(text: str) -> tuple[str, str]:
    track, equals, name = text.partition("=")
    if not equals:
        raise InputError(f'"{text}" is not TRACK=TEAM/NAME', where="--reference", advice='Write it like "sensorium=organisers/cnn".')
    return track, name
