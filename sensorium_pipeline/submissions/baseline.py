"""The baselines as a submission: entry point `sensorium_pipeline.submissions.baseline:build`.

The `[parameters]` table of submission.toml names the architecture and may set sizes and training otherwise:

    [parameters]
    architecture = "cnn"          # any of sensorium_pipeline.models.baselines.BASELINES
    size = "full"                 # or "demo": trains in under a minute on two cores
    [parameters.model.core]       # fields of ModelConfiguration, here of its core
    channels = 32
    [parameters.training]         # fields of TrainerParameters
    epochs = 30

The track decides whether behaviour and pupil are used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.baselines import DEMO_TRAINING, Size, baseline
from sensorium_pipeline.models.configuration import PretrainedConfiguration
from sensorium_pipeline.models.cores.pretrained import read_network
from sensorium_pipeline.models.encoder import Encoder, encoder_state, load_encoder_state
from sensorium_pipeline.models.inputs import normalise_inputs
from sensorium_pipeline.submissions.interface import Context
from sensorium_pipeline.training.batches import resident_session, seeded_generator
from sensorium_pipeline.training.data import SessionData, TrialInputs
from sensorium_pipeline.training.parameters import TrainerParameters
from sensorium_pipeline.training.trainer import Trainer, TrainingResult, predict_inputs


class BaselineParameters(BaseModel):
    """The `[parameters]` table of a baseline's submission.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    size: Size = "full"
    model: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def trainer(self) -> TrainerParameters:
        """How to train: the defaults of the size, with what the table says on top."""
        return TrainerParameters.model_validate({**(DEMO_TRAINING if self.size == "demo" else {}), **self.training})

    @field_validator("training")
    @classmethod
    def _known_fields(cls, training: dict[str, Any]) -> dict[str, Any]:
        TrainerParameters.model_validate(training)
        return training


class BaselineModel:
    """A baseline that trains on visible trials and predicts standardised responses (it is trained on those, so in their unit).

    Args:
        context: sessions, track, seed, device, parameters and progress.

    Raises:
        InputError: for parameters or sessions that do not fit.
    """

    def __init__(self, context: Context) -> None:
        self._parameters = _parse(context.parameters)
        parameters = self._parameters
        configuration = baseline(parameters.architecture, context.track, parameters.model, parameters.size)
        network = None
        if isinstance(configuration.core, PretrainedConfiguration) and configuration.core.weights is not None:
            network = read_network(context.folder / configuration.core.weights)
        self._descriptions = {session.name: session for session in context.sessions}
        self._context = context
        weights = seeded_generator(context.seed, "weights")
        self._encoder = Encoder.for_sessions(configuration, context.sessions, weights, network).to(context.device)
        self.result: TrainingResult | None = None

    def train(self, sessions: Sequence[SessionData]) -> None:
        """Train on the visible tiers of the sessions."""
        resident = [resident_session(self._encoder.configuration, session, self._context.device) for session in sessions]
        parameters, context = self._parameters.trainer, self._context
        if context.smoke_run:
            parameters = parameters.model_copy(update={"epochs": 1})
        trainer = Trainer(self._encoder, resident, parameters, seed=context.seed, progress=context.progress, after_epoch=self._after_epoch)
        if (latest := context.checkpoints.latest()) is not None:
            trainer.resume(latest)
            for epoch in trainer.epochs:
                context.epoch(epoch.epoch, epoch.loss, epoch.score)
        self.result = trainer.train()

    def _after_epoch(self, trainer: Trainer) -> None:
        epoch = trainer.epochs[-1]
        self._context.epoch(epoch.epoch, epoch.loss, epoch.score)
        if self._context.checkpoints.due():
            self._context.checkpoints.save(trainer.checkpoint())

    def predict(self, session: str, inputs: TrialInputs) -> NDArray[np.float32]:
        """Responses (trials, neurons) in standardised units, float32.

        Raises:
            InputError: for an unknown session or inputs that do not fit it.
        """
        if session not in self._descriptions:
            raise InputError(f"the model knows {sorted(self._descriptions)}", where=f"session {session}", advice="Ask for one of them")
        if len(inputs) == 0:
            return np.empty((0, self._descriptions[session].neurons), np.float32)
        normalised = normalise_inputs(self._encoder.configuration, self._descriptions[session], inputs).to(self._context.device)
        prediction = predict_inputs(self._encoder, session, normalised, self._parameters.trainer.batch_size)
        return prediction.cpu().numpy()

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Weights as named arrays, the configuration among them."""
        return encoder_state(self._encoder)

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up what `state` returned.

        Raises:
            InputError: when it belongs to another configuration or other sessions.
        """
        load_encoder_state(self._encoder, state)


def build(context: Context) -> BaselineModel:
    """Entry point of submission.toml."""
    return BaselineModel(context)


def _parse(parameters: Mapping[str, object]) -> BaselineParameters:
    try:
        return BaselineParameters.model_validate(dict(parameters))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["parameters", *(str(part) for part in first["loc"])])
        raise InputError(
            f"{field}: {first['msg']}",
            where="submission.toml",
            advice="A baseline takes architecture, size, [parameters.model] and [parameters.training]",
        ) from error
