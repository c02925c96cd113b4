"""Every command that a README shows exists, with the options it is shown with; every make target too."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from sensorium_pipeline.cli import app

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGES = (REPOSITORY / "README.md", REPOSITORY / "infra" / "README.md")


def shown(program: str) -> list[str]:
    text = "\n".join(page.read_text() for page in PAGES)
    return sorted({match[0].strip("`") for match in re.finditer(rf"(?m)(?:^ {{4}}|`){program} [^\n`#]*", text)})


@pytest.mark.parametrize("line", shown("sensorium"))
def test_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line.strip())[1:]
    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    used = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
    assert used <= options, f"{line}: unknown {used - options}"


def test_commands_were_found() -> None:
    names = {shlex.split(line.strip())[1] for line in shown("sensorium")}
    assert {"ingest", "submit", "rank", "evaluate", "up", "predict", "extract"} <= names


@pytest.mark.parametrize("line", shown("make"))
def test_make_target_exists(line: str) -> None:
    targets = re.findall(r"(?m)^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text())
    assert line.split()[1] in targets


def test_pictures_and_files_that_pages_link_to_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
