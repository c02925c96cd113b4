"""Scores -> ranking -> publication."""

from prefect import flow

from sensorium_pipeline.rankings.publication import Published
from tasks.ranking import publish_tables


@flow(name="publish-rankings", flow_run_name="publish {release}")
def publish_rankings(release: str | None = None, root: str | None = None) -> Published:
    """Compute every table that the release may show now, and publish them through the pointer.

    Args:
        release: name of the release; the only one where it is left out.
        root: root URL of the workspace; the environment's where it is left out.
    """
    return publish_tables(release, root)
