"""Recording -> motion -> cells -> traces -> activity -> trials -> session."""

from prefect import flow

from sensorium_pipeline.compute import cluster_address
from sensorium_pipeline.sessions.records import SessionParameters, SessionRecord
from tasks.common import WAITING, settings_for
from tasks.plane import extract_plane
from tasks.recording import check_recording
from tasks.session import publish_session


@flow(name="ingest-session", flow_run_name="ingest {raw}", task_runner=WAITING)
def ingest_session(raw: str, root: str | None = None, parameters: SessionParameters | None = None) -> SessionRecord:
    """A raw recording to a checked, published session.

    Args:
        raw: folder of the raw session, readable by the workers.
        root: root URL of the workspace; the environment's where it is left out.
        parameters: of every step; the defaults where they are left out.
    """
    parameters = parameters or SessionParameters()
    recording = check_recording(raw)
    with cluster_address(settings_for(root)) as address:
        planes = [extract_plane.submit(raw, plane, root, parameters.imaging, address) for plane in range(recording.planes)]
        return publish_session(raw, recording.name, [plane.result() for plane in planes], root, parameters)
