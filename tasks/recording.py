"""Look at a raw session before anything is computed from it."""

from pathlib import Path

from prefect import task
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.recordings import open_session


class RecordingSummary(BaseModel):
    """What the flow needs to know of a raw session."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    planes: int
    volumes: int


@task(name="check recording", task_run_name="check {raw}")
def check_recording(raw: str) -> RecordingSummary:
    """Open a raw session, which checks every file of it, and take its digest."""
    session = open_session(Path(raw))
    return RecordingSummary(name=session.name, digest=session.digest, planes=session.planes, volumes=session.volumes)
