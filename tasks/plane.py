"""One plane of a recording: from raw frames to activity, and its raw frames into the archive."""

from pathlib import Path

from prefect import task

from sensorium_pipeline import archive
from sensorium_pipeline.archive import PlaneArchive
from sensorium_pipeline.compute import Channel, run_on_cluster
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.ingestion import PlaneRecord, ingest_plane
from sensorium_pipeline.progress import at_most_every
from tasks.common import RETRIES, RETRY_DELAY, worth_a_retry
from tasks.reporting import TaskProgress
from tasks.workspaces import workspace_at

REPORT_SECONDS = 0.5
"""Between two reports of a stage on their way from the worker."""


@task(
    name="extract plane",
    task_run_name="extract plane {plane} of {raw}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def extract_plane(raw: str, plane: int, root: str | None, parameters: ImagingParameters, address: str) -> PlaneRecord:
    """Extract one plane on the Dask cluster at `address`; the result is in the lab store before this returns."""
    name, progress = f"plane {plane} of {raw}", TaskProgress(f"plane {plane}")
    return run_on_cluster(address, _extract_on_worker, raw, plane, root, parameters, name=name, progress=progress)


def _extract_on_worker(raw: str, plane: int, root: str | None, parameters: ImagingParameters, channel: Channel) -> PlaneRecord:
    return ingest_plane(workspace_at(root), Path(raw), plane, parameters, progress=at_most_every(REPORT_SECONDS, channel.report))


@task(
    name="archive plane",
    task_run_name="archive plane {plane} of {raw}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def archive_plane(raw: str, plane: int, root: str | None, address: str) -> PlaneArchive:
    """Archive one plane's raw movie on the Dask cluster at `address`."""
    name, progress = f"archive of plane {plane} of {raw}", TaskProgress(f"archive of plane {plane}")
    return run_on_cluster(address, _archive_on_worker, raw, plane, root, name=name, progress=progress)


def _archive_on_worker(raw: str, plane: int, root: str | None, channel: Channel) -> PlaneArchive:
    return archive.archive_plane(workspace_at(root), Path(raw), plane, progress=at_most_every(REPORT_SECONDS, channel.report))
