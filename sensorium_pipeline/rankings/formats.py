"""A table as CSV, Parquet, JSON and Markdown. Undefined is an empty cell or null in all of them, never 0."""

import csv
import io
import json
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from sensorium_pipeline.rankings.records import METRIC_LABELS, TIER_LABELS, TRACK_LABELS, Estimate, RankingTable, Row

Cell = str | int | float | bool | datetime | None


def as_json(table: RankingTable) -> bytes:
    """The whole record; `json_schema` describes it."""
    return (table.model_dump_json(indent=1) + "\n").encode()


def json_schema() -> bytes:
    """JSON schema (2020-12) of `as_json`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RankingTable.model_json_schema(mode="serialization")}
    return (json.dumps(schema, indent=1) + "\n").encode()


def as_csv(table: RankingTable) -> bytes:
    """One line a submission, numbers in full precision; text that a spreadsheet would run as a formula gets an apostrophe before it."""
    text = io.StringIO()
    names = list(_columns(table))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in table.rows:
        cells = _cells(table, row)
        writer.writerow([_csv_cell(cells[name]) for name in names])
    return text.getvalue().encode()


def as_parquet(table: RankingTable) -> bytes:
    """The same columns as the CSV, typed; whole files of the same table are the same bytes."""
    columns = _columns(table)
    rows = [_cells(table, row) for row in table.rows]
    data = pa.table({name: pa.array([row[name] for row in rows], type=kind) for name, kind in columns.items()})
    out = io.BytesIO()
    pq.write_table(data, out, compression="zstd")
    return out.getvalue()


def as_markdown(table: RankingTable) -> bytes:
    """A table to read, and the unranked with their reasons."""
    metric = METRIC_LABELS[table.metric]
    lines = [
        f"# {TRACK_LABELS[table.track]}, {TIER_LABELS[table.tier]}: {_escape(table.release)}",
        "",
        f"Ranked by {metric} (mean over sessions and neurons; several seeds are one ensemble). Brackets: 95 % interval. "
        "No model of a tier can be told from the first of it.",
        "",
    ]
    if table.ranked:
        others = [name for name in METRIC_LABELS if name != table.metric]
        heads = ["rank", "tier", "team", "model", metric, "to leader", "P(best)", *(METRIC_LABELS[name] for name in others)]
        lines += [_line([*heads, "of ceiling", "to baseline", "change"]), _line(["---"] * (len(heads) + 3))]
        for row in table.ranked:
            cells = [f"{row.rank} ({row.rank_low}–{row.rank_high})", str(row.rank_tier), row.team, row.model]
            cells += [_estimate(row.score), _estimate(row.difference_to_leader), chance(row.p_best)]
            cells += [_number(row.metrics.value(name)) for name in others]
            improvement = "" if row.improvement_percent is None else f"{row.improvement_percent:+.1f} %"
            lines.append(_line([*cells, _percent(row.relative_score), improvement, row.change.reason]))
    else:
        lines.append("No submission is ranked yet.")
    if table.unranked:
        lines += ["", "Not ranked:", "", _line(["team", "model", "status", metric, "reason"]), _line(["---"] * 5)]
        lines += [_line([row.team, row.model, row.status, _estimate(row.score), row.reason]) for row in table.unranked]
    data = ", ".join(f"{data.session} ({data.open_digest[:12]})" for data in table.data)
    lines += ["", f"Metric version {table.metric_version}; data {data}.", ""]
    return "\n".join(lines).encode()


def chance(value: float | None) -> str:
    """A probability: never shown as certain, because it is estimated."""
    if value is None:
        return "–"
    if value < 0.01:
        return "< 1 %"
    return "> 99 %" if value > 0.99 else f"{100 * value:.0f} %"


def _columns(table: RankingTable) -> dict[str, pa.DataType]:
    number, count, text, flag = pa.float64(), pa.int64(), pa.string(), pa.bool_()
    columns: dict[str, pa.DataType] = {
        "release": text,
        "track": text,
        "tier": text,
        "rank": count,
        "rank_tier": count,
        "rank_low": count,
        "rank_high": count,
        "team": text,
        "model": text,
        "submission_digest": text,
        "reference": flag,
        "phase": text,
        "status": text,
        "reason": text,
        "metric": text,
        "score": number,
        "score_low": number,
        "score_high": number,
        "difference_to_leader": number,
        "difference_low": number,
        "difference_high": number,
        "p_best": number,
        "seed_deviation": number,
        **dict.fromkeys(METRIC_LABELS, number),
        "noise_ceiling": number,
        "relative_score": number,
        "improvement_percent": number,
    }
    for data in table.data:
        for name in METRIC_LABELS:
            columns[f"{data.session} {name}"] = number
    return columns | {
        "neurons": count,
        "images": count,
        "trials": count,
        "data_digests": text,
        "predictions_digests": text,
        "score_digests": text,
        "metric_version": text,
        "seeds": text,
        "device_class": text,
        "environment_digests": text,
        "code_versions": text,
        "wall_seconds": number,
        "device_seconds": number,
        "received": text,
        "rank_before": count,
        "score_before": number,
        "change": text,
    }


def _cells(table: RankingTable, row: Row) -> dict[str, Cell]:
    results = {result.session: result for result in row.sessions}
    cells: dict[str, Cell] = {
        **row.model_dump(include=set(_columns(table)) - {"score", "difference_to_leader", "change", "seeds"}),
        "release": table.release,
        "track": table.track,
        "tier": table.tier,
        "metric": table.metric,
        "metric_version": table.metric_version,
        **{name: row.metrics.value(name) for name in METRIC_LABELS},
        **_bounds("score", "score", row.score),
        **_bounds("difference_to_leader", "difference", row.difference_to_leader),
        "data_digests": " ".join(data.open_digest for data in table.data),
        "predictions_digests": " ".join(digest for result in row.sessions for digest in result.predictions_digests),
        "score_digests": " ".join(digest for result in row.sessions for digest in result.score_digests),
        "environment_digests": " ".join(row.environment_digests),
        "code_versions": " ".join(row.code_versions),
        "seeds": " ".join(str(seed) for seed in row.seeds),
        "received": None if row.received is None else row.received.isoformat(),
        "rank_before": row.change.rank_before,
        "score_before": row.change.score_before,
        "change": row.change.reason,
    }
    for data in table.data:
        for name in METRIC_LABELS:
            cells[f"{data.session} {name}"] = results[data.session].metrics.value(name) if data.session in results else None
    return cells


def _bounds(value: str, bounds: str, estimate: Estimate | None) -> dict[str, Cell]:
    if estimate is None:
        return {value: None, f"{bounds}_low": None, f"{bounds}_high": None}
    return {value: estimate.value, f"{bounds}_low": estimate.low, f"{bounds}_high": estimate.high}


def _csv_cell(cell: Cell) -> Cell:
    # A team called "=HYPERLINK(...)" must stay a team in the organisers' spreadsheet.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _estimate(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _escape(text: str) -> str:
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else _escape(cell) for cell in cells) + " |"
