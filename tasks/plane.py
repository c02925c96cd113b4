"""One plane of a recording, from raw frames to activity."""

from pathlib import Path

from prefect import task

from sensorium_pipeline.compute import Channel, run_on_cluster
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.ingestion import PlaneRecord, ingest_plane
from sensorium_pipeline.progress import at_most_every
from tasks.common import RETRIES, RETRY_DELAY, workspace_at, worth_a_retry
from tasks.reporting import TaskProgress

REPORT_SECONDS = 0.5
"""Between two reports of a stage on their way from the worker."""


@task(
    name="extract plane",
    task_run_name="extract plane {plane}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def extract_plane(raw: str, plane: int, root: str | None, parameters: ImagingParameters, address: str) -> PlaneRecord:
    """Extract one plane on the Dask cluster at `address`; the result is in the lab store before this returns."""
    return run_on_cluster(address, _extract_on_worker, raw, plane, root, parameters, progress=TaskProgress(f"plane {plane}"))


def _extract_on_worker(raw: str, plane: int, root: str | None, parameters: ImagingParameters, channel: Channel) -> PlaneRecord:
    return ingest_plane(workspace_at(root), Path(raw), plane, parameters, progress=at_most_every(REPORT_SECONDS, channel.report))
