"""The ranking page: one self-contained HTML file that asks no other server for anything.

Intervals are drawn as inline SVG, so that a reader sees which models can be told apart. Without JavaScript everything is there, one table
below the other; with it, tables can be chosen and sorted. Names of teams and models are strangers' text: they are escaped, and the
page's content policy runs no script but its own.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sensorium_pipeline.rankings.formats import chance
from sensorium_pipeline.rankings.records import METRIC_LABELS, TIER_LABELS, TRACK_LABELS, RankingTable, Row
from sensorium_pipeline.scoring import MetricName

HERE = Path(__file__).parent
SHORT_LABELS: dict[MetricName, str] = {
    "single_trial_correlation": "Single trial",
    "correlation_to_average": "To average",
    "feve": "FEVE",
}
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Axis:
    """A scale of numbers across a drawing that is `width` units wide, with a margin for half a label at both ends."""

    low: float
    high: float
    width: float
    margin: float = 14.0

    def x(self, value: float) -> float:
        """Where a value lies."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.margin + share * (self.width - 2 * self.margin), 2)

    @cached_property
    def step(self) -> float:
        """The smallest round number that leaves room for a label at each of its multiples."""
        rough = (self.high - self.low) / max(self.width // 45, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)

    @cached_property
    def ticks(self) -> list[float]:
        """The multiples of `step` on the axis."""
        first = math.ceil(self.low / self.step - 1e-9)
        return [round(count * self.step, 10) for count in range(first, math.floor(self.high / self.step + 1e-9) + 1)]

    def label(self, tick: float) -> str:
        """A tick in as many digits as the step needs."""
        return _number(tick, max(0, -math.floor(math.log10(self.step) + 1e-9))) if tick else "0"


def _axis(values: Sequence[float], width: float) -> Axis:
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 0.01
    return Axis(low - pad, high + pad, width)


class Section:
    """One table as the page shows it."""

    def __init__(self, table: RankingTable) -> None:
        self.table = table
        self.name = table_name(table)
        self.track = TRACK_LABELS[table.track]
        self.tier = TIER_LABELS[table.tier]
        self.metric = METRIC_LABELS[table.metric]
        self.others: list[MetricName] = [name for name in METRIC_LABELS if name != table.metric]
        ceilings = [row.noise_ceiling for row in table.ranked if row.noise_ceiling is not None]
        self.ceiling = ceilings[0] if ceilings else None
        scores = [row.score for row in table.ranked if row.score is not None]
        differences = [row.difference_to_leader for row in table.ranked if row.difference_to_leader is not None]
        self.score_axis = _axis([bound for score in scores for bound in (score.low, score.high)], 190) if scores else None
        # Near the leader differences of 0.005 matter, and a weak baseline would squeeze them to nothing: what lies further off than
        # ten times the widest interval gets an arrow.
        reach = 10 * max((difference.high - difference.low) / 2 for difference in differences) if differences else 0.0
        near = [difference for difference in differences if difference.value >= -reach]
        bounds = [bound for difference in near for bound in (difference.low, difference.high)]
        self.difference_axis = _axis([0.0, *bounds], 168) if differences else None

    @property
    def tiers(self) -> int:
        """How many rank tiers there are."""
        return max((row.rank_tier or 0 for row in self.table.ranked), default=0)

    def opens_tier(self, row: Row) -> bool:
        """Whether a row is the first of its rank tier."""
        ranked = self.table.ranked
        place = ranked.index(row)
        return place == 0 or ranked[place - 1].rank_tier != row.rank_tier

    def size(self, row: Row) -> int:
        """How many models are in the row's rank tier."""
        return sum(other.rank_tier == row.rank_tier for other in self.table.ranked)

    def explanation(self, row: Row) -> str:
        """Path of the row's explanation inside the publication."""
        return explanation_path(self.table, row)


def table_name(table: RankingTable) -> str:
    """Name of a table's files, such as "sensorium-plus-live"."""
    return f"{table.track.replace('+', '-plus')}-{TIER_LABELS[table.tier]}"


def explanation_path(table: RankingTable, row: Row) -> str:
    """Path of a row's explanation inside a publication; the team is part of it, as two teams may send the same files."""
    known = hashlib.sha256(f"{row.team}\n{row.submission_digest}".encode()).hexdigest()[:16]
    return f"explain/{table_name(table)}-{known}.json"


def render_page(release: str, tables: Sequence[RankingTable]) -> str:
    """The page of a publication, with the tables in the order given; links lead to the files beside it."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, signed=_signed, percent=_percent, chance=chance, duration=_duration, short=_short)
    received = [row.received for table in tables for row in table.rows if row.received is not None]
    return environment.get_template("page.html").render(
        release=release,
        sections=[Section(table) for table in tables],
        received=max(received) if received else None,
        labels=METRIC_LABELS,
        short_labels=SHORT_LABELS,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %".replace("-", MINUS)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(digest: str) -> str:
    return digest[:12]
