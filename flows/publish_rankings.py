"""Scores -> ranking -> publication."""

from prefect import flow

from sensorium_pipeline.rankings.publication import Published
from sensorium_pipeline.sessions.release import choose_release
from tasks.common import named_by_release
from tasks.ranking import publish_tables
from tasks.workspaces import workspace_at


@flow(name="publish-rankings", flow_run_name=named_by_release("publish"))
def publish_rankings(release: str | None = None, root: str | None = None) -> Published:
    """Compute every table that the release may show now, and publish them through the pointer.

    Args:
        release: name of the release; the only one where it is left out.
        root: root URL of the workspace; the environment's where it is left out.
    """
    return publish_tables(choose_release(workspace_at(root).open, release).name, root)
