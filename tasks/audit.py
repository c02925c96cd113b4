"""The leak audit of one session."""

from prefect import task
from prefect.artifacts import create_table_artifact

from sensorium_pipeline.sessions import audit
from tasks.common import RETRIES, RETRY_DELAY, worth_a_retry
from tasks.workspaces import workspace_at


@task(
    name="audit session",
    task_run_name="audit session {name}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def audit_session(name: str, open_digest: str, root: str | None) -> audit.AuditReport:
    """Recompute from the published bytes what may be known of a session; the findings become an artifact."""
    report = audit.audit_session(workspace_at(root), name, open_digest)
    create_table_artifact(
        key="leak-audit", table=[finding.model_dump(mode="json") for finding in report.findings], description=f"Leak audit of {name}"
    )
    return report
