"""The quality report of a session: Markdown with pictures. It shows traces and times, so it never leaves the lab store."""

from collections.abc import Sequence

from sensorium_pipeline.imaging.pictures import CAPTIONS, draw_all
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.imaging.plane_report import REPORT, flagged_frames, gate_table, measurement_table
from sensorium_pipeline.imaging.quality import GateResult
from sensorium_pipeline.recordings.raw_session import RawSession
from sensorium_pipeline.sessions.tiers import TIERS
from sensorium_pipeline.sessions.trials import AlignedTrials


def quality_report(
    raw: RawSession, planes: Sequence[PlaneExtraction], trials: AlignedTrials, gates: Sequence[GateResult]
) -> dict[str, bytes]:
    """Files of the report by name: `report.md` and the pictures it shows. Same session, same bytes."""
    lines = [f"# Quality of session {raw.name}", ""]
    failed = [gate for gate in gates if not gate.passed]
    lines += [f"**Refused**: {'; '.join(str(gate) for gate in failed)}." if failed else "**Passed** every gate.", ""]
    lines += [f"- {raw.volumes} volumes of {raw.planes} plane(s) at {raw.frame_rate:.2f} Hz", f"- recording `{raw.digest}`"]
    lines += [f"- warning: {warning}" for warning in raw.warnings]
    lines += ["", "## Gates", "", *gate_table(gates)]
    lines += ["", "## Trials", "", "| tier | shown | released |", "|---|---|---|"]
    for tier in TIERS:
        chosen = trials.tier == tier
        if chosen.any():
            lines.append(f"| {tier} | {int(chosen.sum())} | {int((chosen & trials.kept).sum())} |")
    if rejected := trials.rejected():
        lines += ["", "| not released because | trials |", "|---|---|"] + [f"| {reason} | {count} |" for reason, count in rejected.items()]
    lines += ["", "## Planes", "", *measurement_table(planes)]
    pictures: dict[str, bytes] = {}
    for index, plane in enumerate(planes):
        depth = raw.description.planes[index].depth
        lines += ["", f"## Plane {index}, {depth:g} um below the surface", "", f"{flagged_frames(plane)}."]
        for name, picture in draw_all(plane).items():
            file = f"plane_{index}_{name}"
            pictures[file] = picture
            lines += ["", f"![{CAPTIONS[name]}]({file})", "", f"*{CAPTIONS[name]}.*"]
    return {REPORT: ("\n".join(lines) + "\n").encode(), **pictures}
