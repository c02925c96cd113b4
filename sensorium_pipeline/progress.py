"""Progress of long work, in plain numbers: whoever shows it (a terminal bar, a Prefect artifact) passes a callable in."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report: `done` of `total` units of `stage`.

    Attributes:
        stage: what is being done, such as "motion".
        done, total: how much of it.
        detail: a short text, such as "812 frames/s".
        unit: what is counted, such as "frames"; left out, no speed is shown that `detail` does not say.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    unit: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Show nothing."""


def never() -> bool:
    """The stop signal of work that nobody stops."""
    return False


class Pace:
    """Speed of every stage of some work, and the time it has left, from its reports.

    Args:
        clock: seconds, always going on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[str, tuple[float, int]] = {}
        self._done: dict[str, int] = {}
        self._rates: dict[str, float] = {}

    def see(self, progress: Progress) -> None:
        """Take in a report; of a stage that begins anew, what was known of it is forgotten."""
        now = self._clock()
        if progress.done < self._done.get(progress.stage, 0):
            self._begun.pop(progress.stage)
            self._rates.pop(progress.stage, None)
        self._done[progress.stage] = progress.done
        begun, done = self._begun.setdefault(progress.stage, (now, progress.done))
        if progress.done > done and now > begun:
            self._rates[progress.stage] = (progress.done - done) / (now - begun)

    def speed(self, progress: Progress) -> str:
        """ "812 frames/s", or what the report says itself."""
        rate = self._rates.get(progress.stage)
        if progress.detail or rate is None or not progress.unit:
            return progress.detail
        return f"{rate:.3g} {progress.unit}/s" if rate < 1000 else f"{rate:.0f} {progress.unit}/s"

    def left(self, progress: Progress) -> str:
        """ "17 s left"; empty while it is not known, and at the end."""
        rate = self._rates.get(progress.stage)
        if rate is None or progress.done >= progress.total or progress.detail.endswith(" left"):
            return ""  # training knows better, as it may stop early
        seconds = (progress.total - progress.done) / rate
        if seconds < 90:
            return f"{seconds:.0f} s left"
        minutes = round(seconds / 60)
        return f"{minutes} min left" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min left"

    def describe(self, progress: Progress) -> str:
        """The report in a line: "motion 1200/2000 frames, 48 frames/s, 17 s left"."""
        counted = f"{progress.stage} {progress.done}/{progress.total} {progress.unit}".rstrip()
        return ", ".join(part for part in (counted, self.speed(progress), self.left(progress)) if part)


def at_most_every(seconds: float, show: ProgressCallback, clock: Callable[[], float] = time.monotonic) -> ProgressCallback:
    """Pass on only so many reports that `show` is not overrun: all that begin or end a stage, and of others one in so many seconds."""
    last: dict[str, float] = {}

    def report(progress: Progress) -> None:
        now = clock()
        if progress.done < progress.total and now - last.get(progress.stage, -float("inf")) < seconds:
            return
        last[progress.stage] = now
        show(progress)

    return report
