"""Commands of the organiser about teams: their tokens, and what they sent."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from sensorium_pipeline.cli.common import Json, Root, workspace_of
from sensorium_pipeline.terminal import console, messages, print_json, print_table

PANEL = "Evaluation and ranking"
Name = Annotated[str, typer.Argument(help="Name of the team: small letters, digits, - and _.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    team = typer.Typer(no_args_is_help=True, help="Issue and revoke the tokens with which teams submit.")
    team.command()(add)
    team.command("list")(list_teams)
    team.command()(revoke)
    app.add_typer(team, name="team", rich_help_panel=PANEL)
    app.command(rich_help_panel=PANEL)(inbox)


def add(
    name: Name,
    organisers: Annotated[bool, typer.Option("--organisers", help="A team of the organisers: no quota and no dates hold for it.")] = False,
    root: Root = None,
) -> None:
    """Add a team and print its token, once; the team keeps it in SENSORIUM_TEAM_TOKEN."""
    from sensorium_pipeline.submissions.teams import add_team

    token = add_team(workspace_of(root).sealed, name, datetime.now(UTC), kind="organisers" if organisers else "team")
    messages.print(f"Team {name} submits with this token; hand it over in private, it is not shown again:")
    print(token.get_secret_value())


def list_teams(root: Root = None, json: Json = False) -> None:
    """List the teams, and whether their tokens hold."""
    from sensorium_pipeline.submissions import teams

    found = teams.list_teams(workspace_of(root).sealed)
    if json:
        print_json(found)
        return
    rows = [(team.name, team.kind, team.state, f"{team.at:%Y-%m-%d %H:%M}") for team in found]
    print_table("Teams", ("team", "kind", "token", "since (UTC)"), rows)


def revoke(name: Name, root: Root = None) -> None:
    """Let a team's token hold no longer; what was taken in with it stays."""
    from sensorium_pipeline.submissions.teams import revoke_team

    revoke_team(workspace_of(root).sealed, name, datetime.now(UTC))
    console.print(f"The token of {name} holds no longer; `sensorium team add {name}` issues a new one.", highlight=False)


def inbox(root: Root = None, json: Json = False) -> None:
    """List what lies in the inbox: what waits, what was taken in, and what was refused with its reason."""
    from sensorium_pipeline.submissions.inbox import (
        REQUESTS,
        SUBMISSIONS,
        Decision,
        RequestDecision,
        list_decisions,
        list_requests,
        waiting,
    )

    workspace = workspace_of(root)

    def line(what: str, received: datetime, state: str, reason: str = "") -> dict[str, str]:
        return {"what": what, "received": f"{received:%Y-%m-%d %H:%M:%S}", "state": state, "reason": reason}

    decided: list[Decision | RequestDecision] = [*list_decisions(workspace), *list_requests(workspace)]
    lines = [line(each.identifier, each.received, "refused" if each.reason else "taken in", each.reason) for each in decided]
    lines += [line(f"{one.team}/{one.track}/{one.number}", one.received, "waiting") for one in waiting(workspace, SUBMISSIONS)]
    lines += [line(f"{one.team}/{one.track}/request {one.number}", one.received, "waiting") for one in waiting(workspace, REQUESTS)]
    if json:
        print_json({"inbox": lines})
    else:
        print_table("Inbox", ("what", "received (UTC)", "state", ""), [tuple(line.values()) for line in lines])
