"""What a model sees of a session: its description, its visible trials, and the inputs of trials to predict.

These are the arrays that both our own trainer and submitted code get. They are plain numpy (often memory-mapped read-only from
files that every sandbox of a machine shares), so a submission needs nothing of this package but may use all of it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation over the training trials of a session, in raw units.

    Shapes: images are scalars over all pixels (grey values 0..255); responses (neurons,); behavior (3,) = pupil dilation, its
    derivative, running speed; pupil_center (2,). Behaviour and pupil are None where the track shows none.
    """

    image_mean: float
    image_std: float
    response_mean: NDArray[np.float32]
    response_std: NDArray[np.float32]
    behavior_mean: NDArray[np.float32] | None = None
    behavior_std: NDArray[np.float32] | None = None
    pupil_center_mean: NDArray[np.float32] | None = None
    pupil_center_std: NDArray[np.float32] | None = None

    @property
    def response_precision(self) -> NDArray[np.float32]:
        """Factor from raw to standardised responses (neurons,): 1/std, with std floored at 1 % of its mean over neurons.

        The convention of SENSORIUM 2022 (neuralpredictors); predictions and scores are on the standardised scale.
        """
        std = self.response_std
        floor = 0.01 * float(std.mean())
        return (1.0 / np.where(std > floor, std, floor)).astype(np.float32)


@dataclass(frozen=True)
class SessionDescription:
    """What is known of a session before any trial: enough to build a model for it.

    Shapes: unit_ids (neurons,) integers with gaps; positions (neurons, 3) = x, y, z in micrometres; image_shape = (y, x) pixels
    of the model input.
    """

    name: str
    unit_ids: NDArray[np.int64]
    positions: NDArray[np.float32]
    image_shape: tuple[int, int]
    statistics: Statistics

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return len(self.unit_ids)


@dataclass(frozen=True)
class TrialInputs:
    """What was shown and measured beside the brain in some trials of one session.

    Shapes: images (trials, y, x) float32 grey values 0..255 at model-input scale; behavior (trials, 3) and pupil_center (trials, 2)
    float32 in raw units, or None where the track shows none.
    """

    images: NDArray[np.float32]
    behavior: NDArray[np.float32] | None = None
    pupil_center: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> "TrialInputs":
        behavior, pupil_center = self.behavior, self.pupil_center
        return TrialInputs(
            self.images[rows], None if behavior is None else behavior[rows], None if pupil_center is None else pupil_center[rows]
        )


@dataclass(frozen=True)
class Trials:
    """Trials with their responses (trials, neurons), float32 in raw units."""

    inputs: TrialInputs
    responses: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, rows: slice) -> "Trials":
        return Trials(self.inputs[rows], self.responses[rows])


@dataclass(frozen=True)
class SessionData:
    """A session as a model may train on it: the visible tiers."""

    description: SessionDescription
    training: Trials
    validation: Trials
