"""Commands of the organiser: evaluate, score, rank, publish, explain."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sensorium_pipeline.cli.common import Json, ReleaseName, Root, flows_ready, settings_of, workspace_of
from sensorium_pipeline.terminal import console, emphasised, print_json, print_table

if TYPE_CHECKING:
    from sensorium_pipeline.rankings.explain import Explanation, Origin
    from sensorium_pipeline.rankings.records import RankingTable

PANEL = "Evaluation and ranking"
TrackOption = Annotated[Literal["sensorium", "sensorium+"], typer.Option(help="Track.")]
TierOption = Annotated[Literal["test", "final_test"], typer.Option(help="test (live) or final_test (final).")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(evaluate)
    app.command(rich_help_panel=PANEL)(score)
    app.command(rich_help_panel=PANEL)(rank)
    app.command(rich_help_panel=PANEL)(publish)
    app.command(rich_help_panel=PANEL)(explain)


def evaluate(
    release: ReleaseName = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this one (team/track/number, team or digest); may be given often.", show_default=False),
    ] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Evaluate every submission that is new, then publish the tables; what was evaluated before is not run again."""
    from sensorium_pipeline.rankings.publication import latest_page
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.tables import nothing_new

    settings, workspace = settings_of(root), workspace_of(root)
    chosen = choose_release(workspace.open, release)
    known = nothing_new(workspace, chosen, only or ())
    if known is not None:
        if json:
            print_json({"release": chosen.name, "evaluated": [], "known": known, "refused": []})
        else:
            console.print(f"0 evaluated, {len(known)} known before")
            console.print(f"Ranking page: {latest_page(workspace.open, chosen.name)}", highlight=False)
        return
    with flows_ready(settings):
        from flows.evaluate_submissions import evaluate_submissions

        summary = evaluate_submissions(chosen.name, settings.root, only)
    if json:
        print_json(summary)
        return
    for result in summary.evaluated:
        console.print(f"{result.identifier}  {result.name}: {result.status} {result.reason}".rstrip(), highlight=False)
    for refused in summary.refused:
        console.print(f"{refused.identifier} was not taken in: {refused.reason}", highlight=False)
    console.print(f"{len(summary.evaluated)} evaluated, {len(summary.known)} known before")
    console.print(f"Ranking page: {latest_page(workspace.open, chosen.name)}", highlight=False)


def score(
    predictions: Annotated[Path, typer.Argument(help=".npz with trial_id, unit_id and prediction (trials, neurons).")],
    session: Annotated[str, typer.Option(help="Name of the session.")],
    tier: Annotated[str, typer.Option(help="Tier whose responses this root may read.")],
    root: Root = None,
    json: Json = False,
) -> None:
    """Compute the three metrics of one prediction file against one tier of one session."""
    from sensorium_pipeline.hidden_scores import score_file
    from sensorium_pipeline.rankings.records import METRIC_LABELS

    result = score_file(workspace_of(root), predictions, session, tier)
    if json:
        print_json(result.metrics)
        return
    for name, label in METRIC_LABELS.items():
        value = result.metrics.value(name)
        console.print(f"{label}: {'undefined' if value is None else f'{value:.4f}'}")
    console.print(f"{result.trials} trials of {result.images} images, {result.neurons} neurons")


def rank(track: TrackOption, tier: TierOption = "test", release: ReleaseName = None, root: Root = None, json: Json = False) -> None:
    """Compute and print the table of one track on one tier, from stored scores."""
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.tables import rank as compute

    workspace = workspace_of(root)
    table = compute(workspace, choose_release(workspace.open, release), track, tier)
    if json:
        print_json(table)
    else:
        print_ranking(table)


def publish(release: ReleaseName = None, root: Root = None, json: Json = False) -> None:
    """Compute and publish every table that the release may show now."""
    from sensorium_pipeline.sessions.release import choose_release

    settings = settings_of(root)
    chosen = choose_release(workspace_of(root).open, release)
    with flows_ready(settings):
        from flows.publish_rankings import publish_rankings

        published = publish_rankings(chosen.name, settings.root)
    if json:
        print_json(published)
        return
    console.print("published" if published.new else "nothing has changed since the last publication")
    for change in published.changes:
        for row in change.rows:
            console.print(f"  {change.track} {change.tier}: {row.team}/{row.model}: {row.reason}")
    console.print(f"Ranking page: {published.latest}", highlight=False)


def explain(
    submission: Annotated[str, typer.Argument(help="team/track/number, team/name, or the beginning of its digest.")],
    tier: TierOption = "test",
    release: ReleaseName = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Say where each number of a submission came from, down to digests."""
    from sensorium_pipeline.jobs import find_job
    from sensorium_pipeline.rankings.explain import explain as explain_row
    from sensorium_pipeline.sessions.release import choose_release
    from sensorium_pipeline.tables import rank as compute

    workspace = workspace_of(root)
    chosen = choose_release(workspace.open, release)
    job = find_job(workspace, chosen, submission)
    table = compute(workspace, chosen, job.submission.track, tier)
    explanation = explain_row(table, job.submission.digest, job.submission.team)
    if json:
        print_json(explanation)
        return
    console.print(
        emphasised(f"{explanation.team}/{explanation.model}"), f"{explanation.status} {explanation.reason}".rstrip(), highlight=False
    )
    console.print(f"submission {explanation.submission_digest}; metric version {explanation.metric_version}")
    if taken := taken_by(explanation):
        console.print(taken, highlight=False)
    # Numbers of one origin stand together, and their digests once.
    for digests, origins in itertools.groupby(explanation.numbers, key=lambda origin: origin.digests):
        console.print()
        for origin in origins:
            console.print(f"{origin.number}:", emphasised(_explained(origin)), highlight=False)
            console.print(f"  {origin.how}", highlight=False)
        for what, named in digests.items():
            console.print(f"  {what}: {', '.join(named)}", highlight=False)


def _explained(origin: "Origin") -> str:
    if origin.value is None:
        return "undefined"
    value, *bounds = (f"{number:.6f}".rstrip("0").rstrip(".") for number in (origin.value, origin.low, origin.high) if number is not None)
    return f"{value} [{', '.join(bounds)}]" if bounds else value


def taken_by(explanation: "Explanation") -> str:
    """What the runs of a submission took, in a line; empty where nothing ran here."""
    if explanation.wall_seconds is None:
        return ""
    parts = [f"seeds {', '.join(str(seed) for seed in explanation.seeds)}", f"{explanation.wall_seconds:.1f} s"]
    device = f" ({explanation.device_class})" if explanation.device_class else ""
    parts.append(f"{explanation.device_seconds:.1f} device-seconds{device}")
    parts.append(f"{explanation.peak_memory_bytes / 2**20:.0f} MB at most" if explanation.peak_memory_bytes else "memory not counted")
    parts.append(f"{explanation.energy_joules:.0f} J" if explanation.energy_joules is not None else "energy not readable")
    return ", ".join((*parts, *explanation.isolation))


def print_ranking(table: "RankingTable") -> None:
    """The table as a person reads it in a terminal."""
    from sensorium_pipeline.rankings.records import METRIC_LABELS, TIER_LABELS, TRACK_LABELS

    rows = []
    for row in table.rows:
        score_text = f"{row.score.value:.4f} [{row.score.low:.4f}, {row.score.high:.4f}]" if row.score else ""
        difference = row.difference_to_leader
        to_leader = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]" if difference and row.rank != 1 else ""
        improvement = f"{row.improvement_percent:+.1f} %" if row.improvement_percent is not None else ""
        rows.append((row.rank or "-", row.rank_tier or "", row.team, row.model, score_text, to_leader, improvement, row.reason))
    title = f"{TRACK_LABELS[table.track]}, {TIER_LABELS[table.tier]} tier ({table.release})"
    columns = ("rank", "tier", "team", "model", METRIC_LABELS[table.metric], "to the leader", "to baseline", "")
    print_table(title, columns, rows)
