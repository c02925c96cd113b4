"""A session's three parts, published together or not at all."""

import base64
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

from sensorium_pipeline.imaging.plane_report import REPORT
from sensorium_pipeline.ingestion import PlaneRecord, ingest_session_parts
from sensorium_pipeline.sessions.records import SessionParameters, SessionRecord
from sensorium_pipeline.storage import Workspace, list_files, read_file
from tasks.common import RETRIES, RETRY_DELAY, worth_a_retry
from tasks.reporting import TaskProgress
from tasks.workspaces import workspace_at

LARGEST_ARTIFACT = 8 * 1024**2  # characters


@task(
    name="publish session",
    task_run_name="publish session {name}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def publish_session(raw: str, name: str, planes: list[PlaneRecord], root: str | None, parameters: SessionParameters) -> SessionRecord:
    """Align the planes' activity to the stimuli, pass the quality gates, publish; the quality report becomes an artifact."""
    workspace = workspace_at(root)
    record = ingest_session_parts(workspace, Path(raw), planes, parameters, progress=TaskProgress())
    create_markdown_artifact(_report(workspace, record), key="quality-report", description=f"Quality report of session {name}")
    return record


def _report(workspace: Workspace, record: SessionRecord) -> str:
    """The quality report with its pictures inside, as the interface cannot read the lab store; as many as an artifact can hold."""
    text = read_file(workspace.lab, record.report_digest, REPORT).decode()
    for entry in list_files(workspace.lab, record.report_digest):
        if entry.path.endswith(".png") and len(text) + entry.size < LARGEST_ARTIFACT:
            picture = base64.b64encode(read_file(workspace.lab, record.report_digest, entry.path)).decode()
            text = text.replace(f"]({entry.path})", f"](data:image/png;base64,{picture})")
    return text
