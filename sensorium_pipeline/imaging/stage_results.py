"""The finished stages of a plane's extraction: motion, cells, traces and activity, each in the store as soon as it is done.

A stage's key is made of the raw frames, its parameters and the stage before it, so whatever run comes next, of whoever, finds what it
can use and repeats only what it cannot: after a kill the stage that was under way, after a change of a parameter the stages from there on.
"""

from dataclasses import dataclass

import xarray as xr
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.storage import Store, digest_of, open_dataset, read_result, record_result, write_dataset

MOTION_VERSION = 5
"""Counted up whenever the same frames and parameters give another result of this stage; likewise those of the other stages."""
CELLS_VERSION = 10
TRACES_VERSION = 6
ACTIVITY_VERSION = 8
STAGE_VERSIONS = (MOTION_VERSION, CELLS_VERSION, TRACES_VERSION, ACTIVITY_VERSION)


class StageKeys(BaseModel):
    """The key of every stage's result in a store."""

    model_config = ConfigDict(frozen=True)

    motion: str
    cells: str
    traces: str
    activity: str


class StageDigests(BaseModel):
    """The digests of the four stages' datasets in a store."""

    model_config = ConfigDict(frozen=True)

    motion: str
    cells: str
    traces: str
    activity: str


def stage_keys(
    raw: str, *, frame_rate: float, pixel_size: float | None, bidirectional: bool | None, parameters: ImagingParameters
) -> StageKeys:
    """Keys of a plane's stages.

    Args:
        raw: digest of the plane's raw frames.
        frame_rate: Hz; motion does not depend on it.
        pixel_size: um, or None.
        bidirectional: whether odd lines were scanned backwards; None where that is not known.
        parameters: of every stage.
    """
    motion = digest_of([raw, bidirectional, parameters.motion, MOTION_VERSION])
    cells = digest_of([motion, float(frame_rate), pixel_size, parameters.segmenter, parameters.cells, CELLS_VERSION])
    traces = digest_of([cells, parameters.traces, TRACES_VERSION])
    return StageKeys(
        motion=f"stages/motion/{motion}",
        cells=f"stages/cells/{cells}",
        traces=f"stages/traces/{traces}",
        activity=f"stages/activity/{digest_of([traces, parameters.deconvolution, ACTIVITY_VERSION])}",
    )


class _StageRecord(BaseModel):
    model_config = ConfigDict(frozen=True)

    digest: str


@dataclass(frozen=True)
class StageResults:
    """Where the stages of one plane are kept.

    Attributes:
        store: the lab store of a workspace, or one of its own.
        keys: of the plane.
    """

    store: Store
    keys: StageKeys

    def find(self, stage: str) -> xr.Dataset | None:
        """The result of a stage, in memory; None where it is not finished."""
        record = read_result(self.store, getattr(self.keys, stage), _StageRecord)
        if record is None:
            return None
        with open_dataset(self.store, record.digest) as tree:
            return tree.to_dataset().load()

    def keep(self, stage: str, result: xr.Dataset) -> None:
        """Put the result of a stage away; when this returns, any later run finds it."""
        digest = write_dataset(self.store, xr.DataTree(result)).digest
        record_result(self.store, getattr(self.keys, stage), _StageRecord(digest=digest))

    def digests(self) -> StageDigests:
        """Digests of the datasets of all stages, which have to be finished."""
        records = {stage: read_result(self.store, getattr(self.keys, stage), _StageRecord) for stage in StageKeys.model_fields}
        return StageDigests(**{stage: record.digest for stage, record in records.items() if record is not None})
