"""From dF/F to activity: OASIS with autoregressive calcium of first or second order.

Friedrich, Zhou and Paninski, Fast online deconvolution of calcium imaging data, PLoS Computational Biology 2017. Calcium follows
c[t] = g1 c[t-1] + g2 c[t-2] + s[t] with s >= 0, and the trace is y = baseline + c + noise.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class DeconvolutionParameters(BaseModel):
    """Parameters of the deconvolution.

    Attributes:
        order: order of the calcium's autoregression: 1 is an exponential decay, 2 adds a finite rise.
        decay: limits of the decay time constant, s: what calcium indicators show.
        rise: limits of the rise time constant, s.
    """

    model_config = ConfigDict(frozen=True)

    order: Literal[1, 2] = 2
    decay: tuple[float, float] = Field(default=(0.1, 3.0))
    rise: tuple[float, float] = Field(default=(0.005, 0.3))


@dataclass(frozen=True)
class Deconvolution:
    """Activity inferred from traces.

    Attributes:
        activity: (neurons, frames) float32, >= 0, in units of the trace's jump caused by what happened in that frame; NaN where the trace is.
        denoised: (neurons, frames) float32, the calcium without noise and baseline; NaN where the trace is.
        baseline: (neurons,) float32, what was subtracted from the trace.
        noise: (neurons,) float32, standard deviation of the noise within a frame.
        time_constants: (neurons, order) float32, s: the decay, and for order 2 the rise.
        penalty: (neurons,) float32, the L1 penalty with which the residual equals the noise.
    """

    activity: NDArray[np.float32]
    denoised: NDArray[np.float32]
    baseline: NDArray[np.float32]
    noise: NDArray[np.float32]
    time_constants: NDArray[np.float32]
    penalty: NDArray[np.float32]


def deconvolve(
    dff: NDArray[np.float32], frame_rate: float, parameters: DeconvolutionParameters = DeconvolutionParameters()
) -> Deconvolution:
    """Infer activity from traces (neurons, frames) sampled at `frame_rate` Hz."""
    raise NotImplementedError
