"""What is made of reports: speed, time left, and not more of them than can be shown."""

from collections.abc import Callable

import pytest

from sensorium_pipeline import terminal
from sensorium_pipeline.progress import Pace, Progress, at_most_every


@pytest.fixture
def clock() -> Callable[[float], float]:
    """`clock(2)` moves the time on by two seconds and returns it; `clock(0)` says it."""
    now = [100.0]

    def move(seconds: float) -> float:
        now[0] += seconds
        return now[0]

    return move


def test_speed_and_time_left(clock: Callable[[float], float]) -> None:
    pace = Pace(lambda: clock(0))

    def say(done: int, after: float = 0.0, detail: str = "") -> str:
        clock(after)
        report = Progress("motion", done, 2000, detail, "frames")
        pace.see(report)
        return pace.describe(report)

    assert say(0) == "motion 0/2000 frames"
    assert say(100, 2.0) == "motion 100/2000 frames, 50 frames/s, 38 s left"
    assert say(200, 2.0, "48 frames/s, read from disk") == "motion 200/2000 frames, 48 frames/s, read from disk, 36 s left"
    assert say(200, 0.0, "epoch 3, at most 5 s left") == "motion 200/2000 frames, epoch 3, at most 5 s left"
    assert say(240, 236.0) == "motion 240/2000 frames, 1 frames/s, 29 min left"
    assert say(250, 3600.0) == "motion 250/2000 frames, 0.0651 frames/s, 7 h 28 min left"
    assert say(2000, 100.0).endswith("frames/s")
    # Another plane, or the same once more: the stage begins anew.
    assert say(0) == "motion 0/2000 frames"


def test_a_report_without_a_unit_has_no_speed(clock: Callable[[float], float]) -> None:
    pace = Pace(lambda: clock(0))
    for done in (0, 5):
        pace.see(Progress("write", done, 10))
        clock(1.0)
    assert pace.describe(Progress("write", 5, 10)) == "write 5/10, 1 s left"


def test_not_more_reports_than_can_be_shown(clock: Callable[[float], float]) -> None:
    seen: list[Progress] = []
    show = at_most_every(1.0, seen.append, lambda: clock(0.1))
    for done in range(101):
        show(Progress("motion", done, 100))
    show(Progress("cells", 1, 9))
    assert seen[0] == Progress("motion", 0, 100)
    assert 11 <= len(seen) <= 13
    assert seen[-2:] == [Progress("motion", 100, 100), Progress("cells", 1, 9)]


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with terminal.progress_bars() as show:
        show(Progress("motion", 1, 4, unit="frames"))
        show(Progress("motion", 2, 4, unit="frames"))
        show(Progress("motion", 4, 4, "812 frames/s", "frames"))
        show(Progress("cells", 9, 9))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "motion ..."
    assert lines[1].startswith("motion 2/4 frames, ")
    assert lines[1].endswith(" left")
    assert lines[2:] == ["motion: done (812 frames/s)", "cells: done"]


def test_names_of_strangers_are_neither_markup_nor_commands_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[/red] [link=https://evil.example]a[/] :smile: \x1b]0;title\x07\x1b[2J\u202e<b>"
    shown = "[/red] [link=https://evil.example]a[/] :smile: �]0;title��[2J�<b>"
    terminal.print_table("Inbox", ("what",), [(name,)])
    terminal.console.print(f"{name} is submitted")
    terminal.console.print(terminal.emphasised(name))
    assert capsys.readouterr().out.count(shown) == 3
