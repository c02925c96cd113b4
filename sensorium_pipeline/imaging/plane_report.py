"""The quality report of one plane: gates, measurements and pictures, as Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence

from sensorium_pipeline.imaging.pictures import CAPTIONS, draw_all
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.imaging.quality import GateResult

REPORT = "report.md"


def gate_table(gates: Sequence[GateResult]) -> list[str]:
    """Lines of Markdown: every gate, what was measured, what was asked for, and the verdict."""
    lines = ["| gate | measured | asked for | verdict |", "|---|---|---|---|"]
    lines += [f"| {gate.name} | {gate.measured:.3g} | {gate.asked} | {gate.verdict} |" for gate in gates]
    return lines


def measurement_table(planes: Sequence[PlaneExtraction]) -> list[str]:
    """Lines of Markdown: every measurement, a column for every plane."""
    names = ["value"] if len(planes) == 1 else [f"plane {index}" for index in range(len(planes))]
    lines = [f"| measurement | {' | '.join(names)} |", f"|---|{'---|' * len(planes)}"]
    columns = [plane.metrics.model_dump() for plane in planes]
    for name in columns[0]:
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(f'{column[name]:.4g}' for column in columns)} |")
    return lines


def flagged_frames(plane: PlaneExtraction) -> str:
    """How many frames are flagged, and why: "12 of 2000 frames flagged: 8 blank, 4 unlike the template"."""
    count = Counter(str(reason) for reason in plane.flag_reason if reason)
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(count.items()))
    return f"{int(plane.flagged.sum())} of {len(plane.flagged)} frames flagged" + (f": {reasons}" if reasons else "")


def plane_report(
    name: str, plane: PlaneExtraction, gates: Sequence[GateResult], drawn: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """Files of the report by name: `report.md` and the pictures it shows. Same plane, same bytes.

    Args:
        name: of the movie.
        plane: extracted.
        gates: and how it passed them.
        drawn: pictures of `draw_after_motion`, where they are drawn already.
    """
    failed = [gate for gate in gates if not gate.passed]
    verdict = "A session with this plane would **not be published**: " + "; ".join(map(str, failed)) if failed else "**Passed** every gate"
    lines = [f"# {name}", "", f"{plane.metrics.kept_cells} cells at {plane.frame_rate:g} frames/s. {verdict}.", ""]
    lines += [*gate_table(gates), "", *measurement_table([plane]), "", f"{flagged_frames(plane)}."]
    pictures = draw_all(plane, drawn)
    for file in pictures:
        lines += ["", f"![{CAPTIONS[file]}]({file})", "", f"*{CAPTIONS[file]}.*"]
    return {REPORT: ("\n".join(lines) + "\n").encode(), **pictures}
