"""Help reads well: of every command, found in the command line itself."""

import re

import pytest
import typer.main

from sensorium_pipeline import cli

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_the_commands_of_the_design_are_there() -> None:
    recordings = {"simulate-recording", "inspect", "ingest", "extract", "deconvolve"}
    sessions = {"sessions", "show", "release", "audit"}
    submissions = {"new-submission", "check", "submit", "predict"}
    ranking = {"evaluate", "score", "rank", "publish", "explain"}
    assert set(COMMANDS) >= {"demo", "up", "down"} | recordings | sessions | submissions | ranking


def test_help_lists_every_command_in_its_group(sensorium) -> None:
    said = sensorium("--help")
    assert said.code == 0
    for group in ("Run", "Recordings", "Sessions and releases", "Submissions", "Evaluation and ranking"):
        assert f"─ {group} ─" in said.out
    for command in COMMANDS:
        assert re.search(rf"^│ {command} +\w", said.out, re.MULTILINE), f"{command} has no description"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(sensorium, command: str) -> None:
    said = sensorium(command, "--help")
    assert said.code == 0
    assert said.error == ""
    usage, _, rest = re.sub(r" +\n", "\n", said.out).strip().partition("\n\n")
    assert f"sensorium {command}" in usage
    assert re.match(r" *[A-Z][^│]{15,}", rest), rest
    # Every option and argument is explained.
    for line in re.findall(r"^│ .*--[a-z].*│$", said.out, re.MULTILINE):
        assert re.search(r"--[a-z0-9-]+.*[a-z]{2,} [a-z]{2,}|--[a-z0-9-]+ .*[A-Z]\w+", line), line


@pytest.mark.parametrize("arguments", [["nothing"], ["rank", "--tier", "test", "--nothing"], ["rank"], ["rank", "--track", "sensorium2"]])
def test_wrong_usage_is_explained(sensorium, arguments: list[str]) -> None:
    said = sensorium(*arguments)
    assert said.code == 1
    assert "Usage:" in said.error
    assert "Traceback" not in said.error
