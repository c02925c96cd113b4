"""Recording -> motion -> cells -> traces -> activity -> trials -> session."""

from pathlib import Path
from typing import cast

from prefect import flow, get_run_logger
from prefect.states import Cancelled

from sensorium_pipeline.archive import archived_plane
from sensorium_pipeline.compute import cluster_address
from sensorium_pipeline.ingestion import PlaneRecord, finished_plane, finished_session, session_parameters
from sensorium_pipeline.sessions.records import SessionParameters, SessionRecord
from tasks.cancellation import cancellable
from tasks.common import WAITING
from tasks.plane import KEPT, archive_plane, extract_plane
from tasks.recording import check_recording
from tasks.session import publish_session
from tasks.workspaces import settings_for, workspace_at


@flow(name="ingest-session", flow_run_name="ingest {raw}", task_runner=WAITING)
def ingest_session(raw: str, root: str | None = None, parameters: SessionParameters | None = None, archive: bool = False) -> SessionRecord:
    """A raw recording to a checked, published session.

    Args:
        raw: folder of the raw session, readable by the workers.
        root: root URL of the workspace; the environment's where it is left out.
        parameters: of every step; left out, the defaults with what the recording's session.toml changes.
        archive: whether the raw movie is kept in the lab store as well.
    """
    workspace = workspace_at(root)
    recording = check_recording(raw)
    parameters = parameters or session_parameters(Path(raw))
    found = [finished_plane(workspace, recording.digest, plane, parameters.imaging) for plane in range(recording.planes)]
    missing = [plane for plane, record in enumerate(found) if record is None]
    planes = [record for record in found if record is not None]
    unarchived = [plane for plane in range(recording.planes) if archive and archived_plane(workspace, recording.digest, plane) is None]
    if missing or unarchived:
        with cluster_address(settings_for(root)) as address, cancellable() as stopped:
            extractions = [extract_plane.submit(raw, plane, root, parameters.imaging, address) for plane in missing]
            archives = [archive_plane.submit(raw, plane, root, address) for plane in unarchived]
            # Where one plane fails, the others are still extracted and kept.
            for extraction in extractions:
                extraction.wait()
            for kept in archives:
                kept.wait()
        if stopped.is_set():
            # Prefect takes a state that a flow returns for the state of the run.
            return cast(SessionRecord, Cancelled(message=KEPT))
        planes = sorted(planes + [cast(PlaneRecord, each.result()) for each in extractions], key=lambda record: record.plane)
        for kept in archives:
            kept.result()
    if not missing and (published := finished_session(workspace, recording.digest, planes, parameters)):
        get_run_logger().info("session %s was published before, nothing to do", recording.name)
        return published
    return publish_session(raw, recording.name, planes, root, parameters)
