"""Progress of long work, in plain numbers: whoever shows it (a terminal bar, a Prefect artifact) passes a callable in."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report: `done` of `total` units of `stage`; `detail` is a short text such as "812 frames/s"."""

    stage: str
    done: int
    total: int
    detail: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Show nothing."""
