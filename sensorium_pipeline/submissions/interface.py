"""What a submission's Python must offer.

`submission.toml` names an entry point, `"module:function"`. The function is called once, inside the sandbox:

    def build(context: Context) -> Model

and the model it returns is trained (where it can be) and asked for predictions. It may also return a mere network, whose features
are then read out by the platform (`FeatureModel`). A submission may import this module, torch and everything else of the
environment; it needs no base class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.training.data import SessionData, SessionDescription, TrialInputs


class Checkpoints(Protocol):
    """Where training puts everything away that it needs to go on, in case the machine fails in the middle.

    What was saved is given back to the same submission with the same seed alone, inside the sandbox; nobody else reads it. The last
    two are kept until the run has ended. Saving is optional: without it an interrupted run starts anew.
    """

    def due(self) -> bool:
        """Whether the last one is long enough ago for another to be worth its time; `save` does nothing before that."""
        ...

    def save(self, content: bytes) -> None:
        """Put a checkpoint away (weights, optimiser, generators, epoch: whatever makes the rest of the training the same)."""
        ...

    def latest(self) -> bytes | None:
        """What an interrupted run with this seed saved last; None where this run is the first."""
        ...


class NoCheckpoints:
    """Nothing is put away, and nothing is there."""

    def due(self) -> bool:
        """Never."""
        return False

    def save(self, content: bytes) -> None:
        """Do nothing."""

    def latest(self) -> None:
        """None."""
        return


class EpochCallback(Protocol):
    """Receives the points of a learning curve."""

    def __call__(self, number: int, loss: float, validation: float) -> None:
        """One epoch: its number from 1, mean loss of training and validation score; of two calls for one epoch the later counts."""
        ...


def no_curve(number: int, loss: float, validation: float) -> None:
    """Keep no learning curve."""


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
        epoch: call it after each epoch; the learning curve is drawn from it.
        checkpoints: see `Checkpoints`.
        smoke_run: this is only a try on few trials of one session, to see that everything works before the real run: train for
            one epoch at most. What it predicts is thrown away.
    """

    sessions: Sequence[SessionDescription]
    track: str
    seed: int
    device: str
    parameters: Mapping[str, object]
    folder: Path
    progress: ProgressCallback = field(default=silent)
    epoch: EpochCallback = field(default=no_curve)
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)
    smoke_run: bool = False


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


@runtime_checkable
class FeatureModel(Protocol):
    """A network that is trained on no neuron: the platform fits a readout to its features (see `submissions.features`)."""

    def features(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of images (images, y, x) with grey values 0..255: (images, features), or maps (images, channels, y, x)."""
        ...
