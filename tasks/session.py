"""A session's three parts, published together or not at all."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

from sensorium_pipeline.ingestion import PlaneRecord, ingest_session_parts
from sensorium_pipeline.sessions.records import SessionParameters, SessionRecord
from sensorium_pipeline.storage import read_file
from tasks.common import RETRIES, RETRY_DELAY, workspace_at, worth_a_retry
from tasks.reporting import TaskProgress


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
    record = ingest_session_parts(workspace, Path(raw), planes, parameters, progress=TaskProgress(f"session {name}"))
    report = read_file(workspace.lab, record.report_digest, "report.md").decode()
    create_markdown_artifact(report, key="quality-report", description=f"Quality report of session {name}")
    return record
