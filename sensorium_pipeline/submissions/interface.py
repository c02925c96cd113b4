"""What a submission's Python must offer.

`submission.toml` names an entry point, `"module:function"`. The function is called once, inside the sandbox:

    def build(context: Context) -> Model

and the model it returns is trained (where it can be) and asked for predictions. A submission may import this module, torch and
everything else of the environment; it needs no base class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.training.data import SessionData, SessionDescription, TrialInputs


@dataclass(frozen=True)
class Context:
    """What a submission is built from.

    Attributes:
        sessions: descriptions of all sessions of the release that its track may use.
        track: "sensorium" or "sensorium+".
        seed: of this run; use it for every random draw.
        device: torch device, "cpu" or "cuda:0".
        parameters: the `[parameters]` table of submission.toml.
        folder: the submission's own files, read-only (weights lie here).
        progress: call it with a `Progress` to show how far training is.
    """

    sessions: Sequence[SessionDescription]
    track: str
    seed: int
    device: str
    parameters: Mapping[str, object]
    folder: Path
    progress: ProgressCallback = field(default=silent)


class Model(Protocol):
    """The least that a submission's model must do."""

    def predict(self, session: str, inputs: TrialInputs) -> NDArray[np.float32]:
        """Responses (trials, neurons) of a session to the inputs, in standardised units (raw response x precision)."""
        ...


@runtime_checkable
class TrainableModel(Model, Protocol):
    """A model that is trained here, and whose trained state can be put away and taken up again (for `sensorium predict`)."""

    def train(self, sessions: Sequence[SessionData]) -> None:
        """Train on the visible tiers of the sessions."""
        ...

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Everything that training changed, as named arrays."""
        ...

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up what `state` returned."""
        ...


EntryPoint = Callable[[Context], Model]
