"""Commands of the participant: start, check, submit, and use a model as a digital twin."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sensorium_pipeline.cli.common import Json, ReleaseName, Root, workspace_of
from sensorium_pipeline.terminal import console, messages, print_json, progress_bars

PANEL = "Submissions"
TrackOption = Annotated[str, typer.Option(help="sensorium or sensorium+.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("new-submission", rich_help_panel=PANEL)(new_submission)
    app.command(rich_help_panel=PANEL)(check)
    app.command(rich_help_panel=PANEL)(submit)
    app.command(rich_help_panel=PANEL)(predict)


def new_submission(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must not exist yet, or be empty.")],
    template: Annotated[str, typer.Option(help="ln or cnn, the baselines of SENSORIUM 2022.")] = "cnn",
) -> None:
    """Write a submission that runs as it is, to start from."""
    from sensorium_pipeline.submissions.package import new_submission as write

    write(folder, template)
    console.print(f"{folder}: change it, then `sensorium check {folder}`")


def check(
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the submission.")],
    track: TrackOption = "sensorium",
    release: ReleaseName = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Validate a submission as the server would, and run it in the same sandbox on a small public slice.

    Without a release in the workspace only the files are checked.
    """
    from sensorium_pipeline.evaluation import stage_slice
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.submissions.check import check_submission

    workspace = workspace_of(root)
    chosen = choose_release(workspace.open, release) if release or workspace.open.list("releases") else None
    with tempfile.TemporaryDirectory(prefix="sensorium-slice-") as area, progress_bars() as show:
        staged = stage_slice(workspace, chosen, track, Path(area, "slice")) if chosen else None
        report = check_submission(folder, staged, progress=show)
    if json:
        run = report.run.model_dump(mode="json") if report.run else None
        print_json({"passed": report.passed, "submission": report.submission.model_dump(mode="json"), "run": run})
    elif report.run is None:
        console.print(f"{report.submission.name}: the files are right; it was not run, as there is no release in {workspace.url}")
    elif report.passed:
        memory = f", {report.run.peak_memory_bytes / 2**20:.0f} MB" if report.run.peak_memory_bytes else ""
        console.print(f"{report.submission.name}: ready to submit (smoke run {report.run.wall_seconds:.1f} s{memory}, {report.run.tier})")
    if report.run is not None and report.run.failure is not None:
        report.run.failure.raise_it()


def submit(
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the submission.")],
    team: Annotated[str, typer.Option(help="Name of the team.")],
    track: TrackOption,
    root: Root = None,
    json: Json = False,
) -> None:
    """Validate a submission and put it into the inbox."""
    from sensorium_pipeline.submissions.inbox import submit as put

    record = put(workspace_of(root), folder, team, track)
    if json:
        print_json({"identifier": record.identifier, **record.model_dump(mode="json")})
        return
    said = "was submitted before as" if record.duplicate else "is submitted as"
    console.print(f"{record.name} {said} {record.identifier} (digest {record.digest[:12]}); it is evaluated with the next run.")


def predict(
    submission: Annotated[str, typer.Argument(help="An evaluated submission: team/track/number, team/name, or its digest's beginning.")],
    images: Annotated[Path, typer.Argument(help=".npy with grey values 0..255 (images, y, x), or a picture, or a folder of PNG pictures.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".npz for unit_id, prediction (images, neurons) and image names.")],
    session: Annotated[
        str | None, typer.Option(help="Whose neurons; the track's first competition session where it is left out.", show_default=False)
    ] = None,
    release: ReleaseName = None,
    root: Root = None,
) -> None:
    """Use an evaluated model as a digital twin: the responses of a session's neurons to any images, in standardised units.

    The model runs in the same sandbox as in its evaluation.
    """
    from sensorium_pipeline.evaluation import find_job, predict_twin
    from sensorium_pipeline.pictures import read_images, write_responses
    from sensorium_pipeline.sessions.release import choose_release

    workspace = workspace_of(root)
    names, pixels = read_images(images)
    with progress_bars() as show:
        job = find_job(workspace, choose_release(workspace.open, release), submission)
        name, unit_id, responses = predict_twin(workspace, job, pixels, session, progress=show)
    write_responses(out, names, unit_id, responses)
    messages.print(f"{out}: {len(names)} images x {len(unit_id)} neurons of session {name}")
