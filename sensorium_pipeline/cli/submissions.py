"""Commands of the participant: start, check, submit, and use a model as a digital twin."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sensorium_pipeline.cli.common import Json, ReleaseName, Root, settings_of, workspace_of
from sensorium_pipeline.errors import InputError
from sensorium_pipeline.submissions.package import template_names
from sensorium_pipeline.terminal import console, messages, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from sensorium_pipeline.progress import ProgressCallback
    from sensorium_pipeline.sessions.release import Release
    from sensorium_pipeline.storage import Workspace
    from sensorium_pipeline.submissions.check import Cost
    from sensorium_pipeline.submissions.teams import Token
    from sensorium_pipeline.submissions.transfer import Epoch

PANEL = "Submissions"
Folder = Annotated[
    Path, typer.Argument(metavar="PATH", help="Folder of the submission; or of the two CSV files of 2022, or a checkpoint of 2022.")
]
Identifier = Annotated[str, typer.Argument(metavar="TEAM/TRACK/N", help="One of the team's own submissions, as `submit` named it.")]
TeamOption = Annotated[str | None, typer.Option(help="Name of the team; the token says it where it is left out.", show_default=False)]
TrackOption = Annotated[str, typer.Option(help="sensorium or sensorium+.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("new-submission", rich_help_panel=PANEL)(new_submission)
    app.command(rich_help_panel=PANEL)(check)
    app.command(rich_help_panel=PANEL)(submit)
    app.command("submissions", rich_help_panel=PANEL)(list_sent)
    app.command(rich_help_panel=PANEL)(choose)
    app.command(rich_help_panel=PANEL)(withdraw)
    app.command(rich_help_panel=PANEL)(predict)


def new_submission(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must not exist yet, or be empty.")],
    template: Annotated[str, typer.Option(help=f"Baseline to start from: {', '.join(template_names())}.")] = "cnn",
) -> None:
    """Write a submission that runs as it is, to start from."""
    from sensorium_pipeline.submissions.package import new_submission as write

    write(folder, template)
    console.print(f"{folder}: change it, then `sensorium check {folder}`")


def check(
    folder: Folder,
    track: TrackOption = "sensorium",
    release: ReleaseName = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Validate a submission as the server would, try it in the same sandbox, and say what the whole release would cost.

    It is trained with all its epochs and predicts, on at most 64 visible trials of each tier of every session of its track; and once
    before on a quarter of them, since the difference tells the cost. Without a release in the workspace only the files are checked.
    """
    from sensorium_pipeline.prediction_runs import stage_slice
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.submissions.check import WholeRelease, check_submission
    from sensorium_pipeline.submissions.package import load_submission
    from sensorium_pipeline.submissions.release import expected_predictions, visible_trials

    workspace = workspace_of(root)
    chosen = choose_release(workspace.open, release) if release or workspace.open.list("releases") else None
    with (
        tempfile.TemporaryDirectory(prefix="sensorium-slice-") as area,
        progress_bars() as show,
        _of_today(folder, None, workspace, chosen, track, show) as ready,
    ):
        staged = whole = None
        if chosen is not None:
            whole = WholeRelease(visible_trials(workspace.open, chosen, track), expected_predictions(workspace.open, chosen, track))
            if load_submission(ready).predictions is None:
                staged = stage_slice(workspace, chosen, track, Path(area, "slice"))
        report = check_submission(ready, staged, whole, progress=show)
    if json:
        run = report.run.model_dump(mode="json") if report.run else None
        cost = asdict(report.cost) if report.cost else None
        print_json({"passed": report.passed, "submission": report.submission.model_dump(mode="json"), "run": run, "cost": cost})
    elif chosen is None:
        console.print(f"{report.submission.name}: the files are right; it was not run, as there is no release in {workspace.url}")
    elif report.run is None:
        console.print(f"{report.submission.name}: ready to submit; it predicts all that release {chosen.name} asks for")
    elif report.passed:
        memory = f", {_bytes(report.run.peak_memory_bytes)}" if report.run.peak_memory_bytes else ""
        console.print(f"{report.submission.name}: ready to submit (smoke run {report.run.wall_seconds:.1f} s{memory}, {report.run.tier})")
        _print_curve(report.run.epochs)
        if report.cost is not None:
            _print_cost(report.cost, len(report.submission.seeds))
    if report.run is not None and report.run.failure is not None:
        report.run.failure.raise_it()


def _print_curve(epochs: "Sequence[Epoch]") -> None:
    """First, best and last point of the learning curve; of the real run organisers alone see it, as it could carry images out."""
    known = [epoch for epoch in epochs if epoch.validation is not None]
    if known:
        best = max(known, key=lambda epoch: epoch.validation or 0.0)
        points = [f"{epoch.validation:.3f} after epoch {epoch.number}" for epoch in dict.fromkeys((known[0], best, known[-1]))]
        console.print(f"Validation score on the slice: {', '.join(points)}.", highlight=False)


def _bytes(number: int) -> str:
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.0f} MB"


def _print_cost(cost: "Cost", seeds: int) -> None:
    time = f"{cost.seconds:.0f} s" if cost.seconds < 90 else f"{cost.seconds / 60:.1f} min"
    each = f" for each of {seeds} seeds, {cost.device_seconds:.0f} s of a device together" if seeds > 1 else ""
    memory = f", {_bytes(cost.memory_bytes)} of memory" if cost.memory_bytes else ""
    console.print(
        f"The whole release would take about {time}{each}{memory}, on a machine like this and with as many epochs.", highlight=False
    )
    if cost.seconds > cost.limit_seconds:
        messages.print(f"That is more than the limit of {cost.limit_seconds / 60:.0f} min: train for less time.")


def submit(
    folder: Folder,
    track: TrackOption,
    team: TeamOption = None,
    name: Annotated[
        str | None, typer.Option(help="Name for one of 2022; its file's or folder's where left out.", show_default=False)
    ] = None,
    release: ReleaseName = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Validate a submission, sign it with the team's token (SENSORIUM_TEAM_TOKEN) and put it into the inbox.

    What was made for SENSORIUM 2022 is taken as it is: a folder with the two CSV files, or a checkpoint of the organisers (.pth).
    """
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.submissions.formats_2022 import is_of_2022
    from sensorium_pipeline.submissions.package import load_submission
    from sensorium_pipeline.submissions.sending import known_track
    from sensorium_pipeline.submissions.sending import submit as put

    workspace = workspace_of(root)
    # A mistake in the submission is the first thing to know, before there is a token or a release.
    known = known_track(track)
    if not is_of_2022(folder):
        load_submission(folder)
    token = _token(root, team)
    chosen = choose_release(workspace.open, release)
    with progress_bars() as show, _of_today(folder, name, workspace, chosen, known, show) as ready:
        sent = put(workspace, chosen, ready, token, known)
    if json:
        print_json({"identifier": sent.identifier, **sent.model_dump(mode="json")})
    elif sent.duplicate:
        console.print(f"{sent.name}: you submitted this already, as {sent.identifier}; no quota is used.", highlight=False)
    else:
        what = f"{sent.name} is submitted as {sent.identifier} (digest {sent.digest[:12]})"
        console.print(f"{what}; it is evaluated with the next run.", highlight=False)


@contextmanager
def _of_today(
    path: Path, name: str | None, workspace: "Workspace", release: "Release | None", track: str, show: "ProgressCallback"
) -> Iterator[Path]:
    """The folder of a submission; what was made for SENSORIUM 2022 is converted into one for a while."""
    from sensorium_pipeline.submissions.formats_2022 import convert, is_of_2022

    if not is_of_2022(path):
        yield path
        return
    if release is None:
        raise InputError("there is no release to convert it for", where=workspace.url, advice="Name the workspace with --root.")
    with tempfile.TemporaryDirectory(prefix="sensorium-2022-") as area:
        convert(path, name, workspace.open, release, track, Path(area, "submission"), show)
        yield Path(area, "submission")


def withdraw(identifier: Identifier, release: ReleaseName = None, root: Root = None) -> None:
    """Withdraw a submission of your team: it leaves the tables with the next evaluation; its results stay in the record."""
    _request(identifier, "withdraw", release, root)
    console.print(f"{identifier} is withdrawn; the tables and `sensorium submissions` show it after the next evaluation.", highlight=False)


def choose(identifier: Identifier, release: ReleaseName = None, root: Root = None) -> None:
    """Choose the submission that counts for your team on the final tier; without a choice its best on the live tier counts."""
    _request(identifier, "choose", release, root)
    console.print(f"{identifier} counts on the final tier.", highlight=False)


def list_sent(team: TeamOption = None, release: ReleaseName = None, root: Root = None, json: Json = False) -> None:
    """List what your team submitted, and what became of it."""
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.submissions import sending

    workspace = workspace_of(root)
    token = _token(root, team)
    sent = sending.list_sent(workspace, choose_release(workspace.open, release), token)
    if json:
        print_json(sent)
        return
    rows = [(f"{token.team}/{s.track}/{s.number}", f"{s.at:%Y-%m-%d %H:%M}", s.digest[:12], s.state, s.reason) for s in sent]
    print_table(f"Submissions of {token.team}", ("submission", "sent (UTC)", "digest", "state", ""), rows)


def _request(identifier: str, action: Literal["withdraw", "choose"], release: str | None, root: str | None) -> None:
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.submissions.sending import request

    workspace = workspace_of(root)
    token = _token(root, None)
    request(workspace, choose_release(workspace.open, release), identifier, action, token)


def _token(root: str | None, team: str | None) -> "Token":
    """The token of the environment, which must be the named team's."""
    from sensorium_pipeline.submissions.teams import check_team_name, parse_token

    if team is not None:
        check_team_name(team)
    token = parse_token(settings_of(root).team_token)
    if team not in (None, token.team):
        raise InputError(
            f"the token is team {token.team}'s", where="SENSORIUM_TEAM_TOKEN", advice=f"Leave --team out, or set the token of {team}"
        )
    return token


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
    from sensorium_pipeline.digital_twin import predict_twin
    from sensorium_pipeline.jobs import find_job
    from sensorium_pipeline.pictures import read_images, write_responses
    from sensorium_pipeline.sessions.release import choose_release

    workspace = workspace_of(root)
    names, pixels = read_images(images)
    with progress_bars() as show:
        job = find_job(workspace, choose_release(workspace.open, release), submission)
        name, unit_id, responses = predict_twin(workspace, job, pixels, session, progress=show)
    write_responses(out, names, unit_id, responses)
    messages.print(f"{out}: {len(names)} images x {len(unit_id)} neurons of session {name}")
