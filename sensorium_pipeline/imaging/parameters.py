"""Parameters of every step of an extraction, in one record."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.deconvolution import DeconvolutionParameters
from sensorium_pipeline.imaging.motion_parameters import MotionParameters
from sensorium_pipeline.imaging.traces import TraceParameters

SegmenterName = Literal["sensorium", "suite2p"]


class ImagingParameters(BaseModel):
    """Parameters of every step of an extraction; what they leave out, the recording says.

    Attributes:
        motion, cells, traces, deconvolution: see there.
        segmenter: what finds the cells; see `segmenters`.
    """

    model_config = ConfigDict(frozen=True)

    motion: MotionParameters = MotionParameters()
    segmenter: SegmenterName = "sensorium"
    cells: CellParameters = CellParameters()
    traces: TraceParameters = TraceParameters()
    deconvolution: DeconvolutionParameters = DeconvolutionParameters()
