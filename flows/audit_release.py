"""Look for leaks in the published bytes of a release."""

from prefect import flow

from sensorium_pipeline.sessions.audit import AuditReport
from sensorium_pipeline.sessions.release import choose_release
from tasks.audit import audit_session
from tasks.common import named_by_release
from tasks.workspaces import workspace_at


@flow(name="audit-release", flow_run_name=named_by_release("audit"))
def audit_release(release: str | None = None, root: str | None = None) -> list[AuditReport]:
    """Audit every session of a release; a leak fails the run.

    Args:
        release: name of the release; the only one where it is left out.
        root: root URL of the workspace; the environment's where it is left out.
    """
    sessions = choose_release(workspace_at(root).open, release).sessions
    audits = [audit_session.submit(session.name, session.open_digest, root) for session in sessions]
    reports = [audit.result() for audit in audits]
    for report in reports:
        report.refuse_leaks()
    return reports
