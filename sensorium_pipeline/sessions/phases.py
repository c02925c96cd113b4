"""The phases of a competition: when submissions are taken, how many, and whether they compete."""

import tomllib
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sensorium_pipeline.errors import InputError


class Phase(BaseModel):
    """One phase.

    Example, in the file of phases that `sensorium release --phases` takes:

        [[phase]]
        name = "competition"
        opens = 2022-06-20T00:00:00+02:00
        closes = 2022-10-15T23:59:00+02:00
        time_zone = "Europe/Berlin"

    Attributes:
        name: shown in tables.
        opens: first moment at which submissions are taken; None: any time before it closes.
        closes: first moment at which they are taken no longer; None: never.
        time_zone: whose midnight begins the day of the quota.
        per_day: submissions a day for each team and track.
        failed_per_day: so many that fail by their own fault do not count among those.
        after_competition: its entries are listed, but have no rank among those that competed.
        final_opened: since when the final tier of its entries is shown; None while it is closed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}$")] = "competition"
    opens: AwareDatetime | None = None
    closes: AwareDatetime | None = None
    time_zone: str = "UTC"
    per_day: Annotated[int, Field(ge=1, le=1000)] = 1
    failed_per_day: Annotated[int, Field(ge=0, le=1000)] = 3
    after_competition: bool = False
    final_opened: AwareDatetime | None = None

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError("no such time zone; write it like Europe/Berlin") from error
        return name

    @model_validator(mode="after")
    def _forward(self) -> "Phase":
        if self.opens is not None and self.closes is not None and self.opens >= self.closes:
            raise ValueError("it closes before it opens")
        return self

    def holds(self, moment: datetime) -> bool:
        """Whether submissions are taken at this moment."""
        return (self.opens is None or self.opens <= moment) and (self.closes is None or moment < self.closes)

    def day(self, moment: datetime) -> str:
        """The day of the quota that a moment belongs to, such as 2022-06-20."""
        return moment.astimezone(ZoneInfo(self.time_zone)).date().isoformat()

    def next_day(self, moment: datetime) -> datetime:
        """When the next day of the quota begins, in the phase's time zone."""
        zone = ZoneInfo(self.time_zone)
        tomorrow = moment.astimezone(zone).date() + timedelta(days=1)
        return datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=zone)

    @property
    def dates(self) -> str:
        """The dates in words, in the phase's time zone."""
        zone = ZoneInfo(self.time_zone)
        parts = [
            f"{word} {moment.astimezone(zone):%Y-%m-%d %H:%M}" for word, moment in (("from", self.opens), ("to", self.closes)) if moment
        ]
        return f"{' '.join(parts)} {self.time_zone}" if parts else "at any time"


def phase_at(phases: Sequence[Phase], moment: datetime) -> Phase | None:
    """The phase in which a submission that arrives at this moment is; None between phases."""
    return next((phase for phase in phases if phase.holds(moment)), None)


def dates_of(phases: Sequence[Phase]) -> str:
    """All phases with their dates, in one line."""
    return "; ".join(f"{phase.name} {phase.dates}" for phase in phases)


def read_phases(path: Path) -> tuple[Phase, ...]:
    """The phases in a TOML file, each a table `[[phase]]` with the fields of `Phase`.

    Raises:
        InputError: naming the file, the phase and the field.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"it cannot be read as TOML: {error}", where=path, advice="See https://toml.io") from error
    tables = content.get("phase")
    if set(content) != {"phase"} or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError("it must hold tables [[phase]] and nothing else", where=path, advice="Begin each phase with the line [[phase]]")
    phases = []
    for number, table in enumerate(tables, 1):
        try:
            phases.append(Phase.model_validate(table))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            advice = (
                f"Fields are {', '.join(name for name in Phase.model_fields if name != 'final_opened')}; dates need an offset, as +02:00"
            )
            message = first["msg"].removeprefix("Value error, ")
            raise InputError(message, where=f"{path}, phase {number}{', ' + field if field else ''}", advice=advice) from error
    return check_phases(phases, path)


def check_phases(phases: Sequence[Phase], where: object) -> tuple[Phase, ...]:
    """The phases in the order of time; `InputError` where there are none, two share a name, or two hold at the same time."""
    ordered = sorted(phases, key=lambda phase: (phase.opens is not None, phase.opens.timestamp() if phase.opens else 0.0))
    if not ordered or len({phase.name for phase in ordered}) < len(ordered):
        raise InputError("there is no phase, or two of one name", where=where, advice="Give each phase a name of its own")
    for before, after in pairwise(ordered):
        if before.closes is None or after.opens is None or after.opens < before.closes:
            problem = f"phases {before.name!r} and {after.name!r} hold at the same time"
            raise InputError(problem, where=where, advice="Let each open when the one before it has closed, or later")
    return tuple(ordered)
