"""One plane of a recording: from raw frames to activity, and its raw frames into the archive."""

from concurrent.futures import CancelledError
from pathlib import Path

from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from sensorium_pipeline import archive
from sensorium_pipeline.archive import PlaneArchive
from sensorium_pipeline.compute import Channel, run_on_cluster
from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.ingestion import PlaneRecord, ingest_plane
from sensorium_pipeline.progress import Progress, ProgressCallback, at_most_every
from tasks.cancellation import cancelled
from tasks.common import RETRIES, RETRY_DELAY, one_at_a_time, worth_a_retry
from tasks.reporting import TaskProgress
from tasks.workspaces import workspace_at

REPORT_SECONDS = 0.5
"""Between two reports of a stage on their way from the worker."""
KEPT = "The flow run was cancelled; stages that were finished are kept."


@task(
    name="extract plane",
    task_run_name="extract plane {plane} of {raw}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def extract_plane(raw: str, plane: int, root: str | None, parameters: ImagingParameters, address: str) -> PlaneRecord | State[PlaneRecord]:
    """Extract one plane on the Dask cluster at `address`; the result is in the lab store before this returns."""
    name, progress = f"plane {plane} of {raw}", TaskProgress()
    try:
        with one_at_a_time(name, [workspace_at(root).url, parameters], progress):
            return run_on_cluster(address, _extract_on_worker, raw, plane, root, parameters, name=name, progress=progress, stop=cancelled)
    except CancelledError:
        return Cancelled(message=KEPT)


def _extract_on_worker(raw: str, plane: int, root: str | None, parameters: ImagingParameters, channel: Channel) -> PlaneRecord:
    return ingest_plane(workspace_at(root), Path(raw), plane, parameters, progress=_reporter(raw, channel))


@task(
    name="archive plane",
    task_run_name="archive plane {plane} of {raw}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY,
    retry_condition_fn=worth_a_retry,
)
def archive_plane(raw: str, plane: int, root: str | None, address: str) -> PlaneArchive | State[PlaneArchive]:
    """Archive one plane's raw movie on the Dask cluster at `address`."""
    name, progress = f"archive of plane {plane} of {raw}", TaskProgress()
    try:
        return run_on_cluster(address, _archive_on_worker, raw, plane, root, name=name, progress=progress, stop=cancelled)
    except CancelledError:
        return Cancelled(message=KEPT)


def _archive_on_worker(raw: str, plane: int, root: str | None, channel: Channel) -> PlaneArchive:
    return archive.archive_plane(workspace_at(root), Path(raw), plane, progress=_reporter(raw, channel))


def _reporter(raw: str, channel: Channel) -> ProgressCallback:
    """Sends reports on their way; work that nobody waits for any more ends at its next one."""

    def report(progress: Progress) -> None:
        if channel.stopped():
            raise PlatformError("the run was stopped", where=raw, advice="It goes on with the next ingestion.")
        channel.report(progress)

    return at_most_every(REPORT_SECONDS, report)
