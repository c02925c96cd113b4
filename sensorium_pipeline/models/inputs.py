"""From a session's raw inputs to what a model's layers see: one place where normalisation happens.

As in SENSORIUM 2022: images are z-scored with the session's scalars, behaviour is divided by its standard deviation (and multiplied
with the configuration's factor, 1 in 2022), pupil centres are z-scored, responses are multiplied with the precision; all statistics
are those of the training trials.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import ModelConfiguration
from sensorium_pipeline.training.data import SessionDescription, TrialInputs


@dataclass(frozen=True)
class ModelInputs:
    """Normalised inputs of trials: images (trials, 1, y, x), behavior (trials, 3) or None, pupil_center (trials, 2) or None."""

    images: Tensor
    behavior: Tensor | None = None
    pupil_center: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def select(self, trials: Tensor | slice) -> Self:
        """The inputs of some trials."""
        pick = [None if part is None else take(part, trials) for part in (self.behavior, self.pupil_center)]
        return type(self)(take(self.images, trials), *pick)

    def to(self, device: torch.device | str) -> Self:
        """The same inputs on another device."""
        move = [None if part is None else part.to(device) for part in (self.behavior, self.pupil_center)]
        return type(self)(self.images.to(device), *move)


def take(values: Tensor, trials: Tensor | slice) -> Tensor:
    """Rows of some trials; by number, whole rows are copied at once, three times as fast as plain indexing on CPU."""
    return values[trials] if isinstance(trials, slice) else values.index_select(0, trials)


def normalise_inputs(configuration: ModelConfiguration, session: SessionDescription, inputs: TrialInputs) -> ModelInputs:
    """Normalise the inputs of some trials of a session, in float32; parts that the configuration does not use are left out.

    Raises:
        InputError: where shapes disagree with the session, a part that the model needs is missing, or a value is not finite.
    """
    statistics = session.statistics
    images = _checked(session, "images", inputs.images, (len(inputs), *session.image_shape))
    images = (images - np.float32(statistics.image_mean)) / np.float32(statistics.image_std)
    behavior = pupil = None
    if configuration.behavior or configuration.modulator:
        raw = _checked(session, "behavior", inputs.behavior, (len(inputs), 3))
        behavior = raw * (_precision(_known(session, "behavior_std", statistics.behavior_std)) * np.float32(configuration.behavior_scale))
    if configuration.shifter:
        raw = _checked(session, "pupil_center", inputs.pupil_center, (len(inputs), 2))
        mean = _known(session, "pupil_center_mean", statistics.pupil_center_mean)
        pupil = (raw - mean) / _above_zero(_known(session, "pupil_center_std", statistics.pupil_center_std))
    return ModelInputs(
        torch.from_numpy(images[:, None]),
        None if behavior is None else torch.from_numpy(behavior),
        None if pupil is None else torch.from_numpy(pupil),
    )


def standardise_responses(session: SessionDescription, responses: NDArray[np.float32]) -> Tensor:
    """Raw responses (trials, neurons) times the session's precision, float32.

    Raises:
        InputError: where the shape disagrees with the session or a response is not finite.
    """
    raw = _checked(session, "responses", responses, (len(responses), session.neurons))
    return torch.from_numpy(raw * session.statistics.response_precision)


def _precision(std: NDArray[np.float32]) -> NDArray[np.float32]:
    # The floor of 2022: something that hardly varies is not blown up.
    floor = 0.01 * float(std.mean())
    return (1.0 / _above_zero(np.where(std > floor, std, floor))).astype(np.float32)


def _above_zero(std: NDArray[np.floating]) -> NDArray[np.floating]:
    # A wheel that never turned, an eye that never moved: their constant stays a finite one.
    return np.where(std > 0, std, np.float32(1))


def _known(session: SessionDescription, name: str, values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if values is None:
        raise InputError(
            f"the model needs the statistic {name}", where=session.name, advice="Use a model without behaviour on this session"
        )
    return np.asarray(values, np.float32)


def _checked(session: SessionDescription, name: str, values: NDArray[np.float32] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    where = f"session {session.name}, {name}"
    if values is None:
        raise InputError(f"the model needs {name}, and these trials have none", where=where, advice="Use a model without behaviour here")
    if values.shape != shape:
        raise InputError(f"expected the shape {shape}, found {values.shape}", where=where, advice="Give trials of this very session")
    if not np.isfinite(values).all():
        raise InputError("not all values are finite", where=where, advice="Leave out trials with missing values")
    return np.asarray(values, np.float32)
