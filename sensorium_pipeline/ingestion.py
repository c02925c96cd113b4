"""A raw session on its way into the workspace: each stage of each plane is put away as soon as it is done, then the session is published.

Results are keyed by the recording's digest, the plane and the parameters, so a run that was killed goes on from the planes and stages
that were finished, and a second run finds everything done.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sensorium_pipeline.environment import code_version, environment_digest
from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.extraction import extract_plane
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.imaging.plane_dataset import assemble
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction
from sensorium_pipeline.imaging.quality import PlaneMetrics
from sensorium_pipeline.imaging.stage_results import STAGE_VERSIONS, StageDigests, StageResults, stage_keys
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings import open_session
from sensorium_pipeline.recordings.geometry import pixel_edge
from sensorium_pipeline.recordings.session_folder import SESSION_FILE, read_session_file
from sensorium_pipeline.sessions.catalogue import read_session
from sensorium_pipeline.sessions.publish import publish_session
from sensorium_pipeline.sessions.records import Provenance, SessionParameters, SessionRecord
from sensorium_pipeline.storage import Workspace, digest_of, open_dataset, read_result, record_result


class PlaneRecord(BaseModel):
    """What was extracted from one plane: where its stages lie in the lab store, and its measurements."""

    model_config = ConfigDict(frozen=True)

    plane: int
    frame_rate: float
    pixel_size: float
    stages: StageDigests
    metrics: PlaneMetrics


def session_parameters(raw: Path) -> SessionParameters:
    """The defaults, with what the table `parameters` of the recording's session.toml changes: `[parameters.gates.plane]` and so on.

    Raises:
        InputError: naming the field that is not known or has no such value.
    """
    path = raw / SESSION_FILE
    table = read_session_file(path).get("parameters", {})
    try:
        parameters = SessionParameters.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["parameters", *map(str, first["loc"])])
        raise InputError(f"{field}: {first['msg']}, got {first['input']!r}", where=path, advice=f"Correct {field}.") from error
    if unknown := _unknown(table, parameters.model_dump(mode="json"), "parameters"):
        raise InputError(f"{unknown} is no parameter", where=path, advice="Correct its name, or leave it out.")
    return parameters


def _unknown(given: Mapping[str, object], known: Mapping[str, object], path: str) -> str:
    """The first name that is given and not known, with the tables it stands in; empty where there is none."""
    for name, value in given.items():
        if name not in known:
            return f"{path}.{name}"
        below = known[name]
        if isinstance(value, dict) and isinstance(below, dict) and (found := _unknown(value, below, f"{path}.{name}")):
            return found
    return ""


class _PlaneKey(BaseModel):
    recording: str
    plane: int
    parameters: ImagingParameters
    versions: tuple[int, ...] = STAGE_VERSIONS


class _SessionKey(BaseModel):
    recording: str
    planes: list[PlaneRecord]
    parameters: SessionParameters
    provenance: Provenance


def plane_key(recording: str, plane: int, parameters: ImagingParameters) -> str:
    """Key of a plane's result in the lab store."""
    return f"planes/{digest_of(_PlaneKey(recording=recording, plane=plane, parameters=parameters))}"


def finished_plane(workspace: Workspace, recording: str, plane: int, parameters: ImagingParameters) -> PlaneRecord | None:
    """The record of a plane that is extracted already."""
    return read_result(workspace.lab, plane_key(recording, plane, parameters), PlaneRecord)


def session_key(recording: str, planes: Sequence[PlaneRecord], parameters: SessionParameters) -> str:
    """Key of a published session in the sealed store; the planes in their order."""
    return f"sessions/{digest_of(_SessionKey(recording=recording, planes=list(planes), parameters=parameters, provenance=_provenance()))}"


def finished_session(
    workspace: Workspace, recording: str, planes: Sequence[PlaneRecord], parameters: SessionParameters
) -> SessionRecord | None:
    """The record of a session that is published already and still the current version of its name."""
    record = read_result(workspace.sealed, session_key(recording, planes, parameters), SessionRecord)
    if record is None or read_session(workspace.open, record.name)[1].open_digest != record.open_digest:
        return None
    return record


def _provenance() -> Provenance:
    return Provenance(code_version=code_version(), lock_digest=environment_digest())


def ingest_plane(
    workspace: Workspace, raw: Path, plane: int, parameters: ImagingParameters, *, progress: ProgressCallback = silent
) -> PlaneRecord:
    """Extract one plane of a raw session and put it away in the lab store, or find it there.

    Raises:
        InputError: the recording cannot be used.
    """
    session = open_session(raw)
    if not 0 <= plane < session.planes:
        raise InputError(f"there is no plane {plane}", where=raw, advice=f"It has planes 0 to {session.planes - 1}.")
    if done := finished_plane(workspace, session.digest, plane, parameters):
        return done

    def report(step: Progress) -> None:
        progress(replace(step, stage=f"{session.name} plane {plane}: {step.stage}"))

    frame_rate, pixel_size = float(session.frame_rate), pixel_edge(session.description.planes[plane].pixel_size)
    keys = stage_keys(
        f"{session.digest} plane {plane}",
        frame_rate=frame_rate,
        pixel_size=pixel_size,
        bidirectional=session.bidirectional,
        parameters=parameters,
    )
    finished = StageResults(workspace.lab, keys)
    extraction = extract_plane(
        session.plane(plane),
        frame_rate=frame_rate,
        pixel_size=pixel_size,
        bidirectional=session.bidirectional,
        parameters=parameters,
        scratch=scratch_folder(),
        finished=finished,
        name=f"{raw}, plane {plane}",
        progress=report,
    )
    record = PlaneRecord(plane=plane, frame_rate=frame_rate, pixel_size=pixel_size, stages=finished.digests(), metrics=extraction.metrics)
    return record_result(workspace.lab, plane_key(session.digest, plane, parameters), record)


def scratch_folder() -> Path:
    """Where corrected movies lie until their plane is finished: below the folder for temporary files (`TMPDIR`), for this user alone."""
    return Path(tempfile.gettempdir()) / f"sensorium-scratch-{os.getuid()}"


def read_plane(workspace: Workspace, record: PlaneRecord) -> PlaneExtraction:
    """An extracted plane from the lab store."""
    stages = [open_dataset(workspace.lab, digest).to_dataset() for digest in record.stages.model_dump().values()]
    return assemble(stages, metrics=record.metrics, frame_rate=record.frame_rate, pixel_size=record.pixel_size)


def ingest_session_parts(
    workspace: Workspace, raw: Path, planes: Sequence[PlaneRecord], parameters: SessionParameters, *, progress: ProgressCallback = silent
) -> SessionRecord:
    """Align the planes' activity to the stimuli and publish the session's lab, open and sealed parts.

    Raises:
        QualityGateError: a gate refuses the session; its quality report is kept all the same.
        InputError: the recording cannot be used, or a plane is missing.
    """
    session = open_session(raw)
    ordered = sorted(planes, key=lambda record: record.plane)
    if [record.plane for record in ordered] != list(range(session.planes)):
        raise InputError("some planes are not extracted", where=raw, advice=f"Extract planes 0 to {session.planes - 1} first.")

    def report(step: Progress) -> None:
        progress(replace(step, stage=f"{session.name}: {step.stage}"))

    extractions = [read_plane(workspace, record) for record in ordered]
    record = publish_session(workspace, session, extractions, parameters=parameters, provenance=_provenance(), progress=report)
    return record_result(workspace.sealed, session_key(session.digest, ordered, parameters), record)
