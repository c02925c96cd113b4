"""What a person at a terminal sees: progress bars while something runs, tables and plain sentences when it is done."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from sensorium_pipeline.progress import Pace, Progress, ProgressCallback


class PlainConsole(Console):
    """Shows every text as it is: names and reasons may be strangers', so nothing in them is markup or reaches the terminal as a command."""

    def render_str(self, text: str, **named: Any) -> Text:
        """The text with control characters, and those that turn the direction of writing, replaced."""
        return super().render_str(_harmless(text), **{**named, "markup": False, "emoji": False})


console = PlainConsole(soft_wrap=True)
messages = PlainConsole(stderr=True, soft_wrap=True)

LINE_SECONDS = 10.0
"""Between two lines about one stage, where there is no terminal to draw a bar in."""


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """One bar a stage on the error stream; where that is no terminal, a line when a stage begins, one when it ends, and now and then."""
    if not messages.is_terminal:
        yield _Lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )
    with Bars(*columns, console=messages, transient=False) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._pace = Pace()
        self._lock = Lock()

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            if progress.stage not in self._tasks:
                self._tasks[progress.stage] = self._bars.add_task(progress.stage, total=progress.total, detail="")
            self._pace.see(progress)
            speed = self._pace.speed(progress)
            self._bars.update(self._tasks[progress.stage], completed=progress.done, total=progress.total, detail=speed)


class _Lines:
    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._pace = Pace()
        self._lock = Lock()

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            self._pace.see(progress)
            now = time.monotonic()
            if progress.done >= progress.total:
                self._said.pop(progress.stage, None)
                speed = self._pace.speed(progress)
                print(f"{progress.stage}: done{f' ({speed})' if speed else ''}", file=sys.stderr, flush=True)
            elif progress.stage not in self._said:
                self._said[progress.stage] = now
                print(f"{progress.stage} ...", file=sys.stderr, flush=True)
            elif now - self._said[progress.stage] >= LINE_SECONDS:
                self._said[progress.stage] = now
                print(self._pace.describe(progress), file=sys.stderr, flush=True)


def emphasised(text: str, style: str = "bold") -> Text:
    """A text to be printed in another style."""
    return Text(_harmless(text), style)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, object]) -> None:
    """Print records as JSON on the output stream, and nothing else."""
    if isinstance(value, BaseModel):
        text = value.model_dump_json(indent=2)
    elif isinstance(value, dict):
        text = json.dumps(value, indent=2)
    else:
        text = json.dumps([record.model_dump(mode="json") for record in value], indent=2)
    print(text)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; where the output is no terminal, it is as wide as it needs to be. Without rows it says so."""
    if not rows:
        console.print(f"{title}: none")
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    target = console if console.is_terminal else PlainConsole(width=220)
    target.print(table)


def _harmless(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text)
