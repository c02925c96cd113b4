"""The trainer: one plain loop, deterministic on CPU for a thread count, resumable after any epoch.

As in SENSORIUM 2022: Poisson loss scaled with the square root of trials over batch size, plus the regularisers; one Adam step
after one batch of every session; after `patience` epochs without a better single-trial correlation on the validation trials
the best state is taken up again and the learning rate falls. Unlike 2022, Adam's moments start anew with each stage: they
belong to weights that were given up, and a stage that diverged cannot spoil the next.
"""

import io
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.encoder import Encoder
from sensorium_pipeline.models.inputs import ModelInputs, take
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.training.batches import ResidentSession, epoch_batches, seeded_generator, steps_per_epoch
from sensorium_pipeline.training.memory import keep_freed_memory
from sensorium_pipeline.training.parameters import TrainerParameters

_EPSILON = 1e-8
_REPORT_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: its number from 1, learning rate, mean loss of a step, validation score and seconds since training began."""

    epoch: int
    learning_rate: float
    loss: float
    score: float
    seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """How training went: all epochs, the best validation score and its epoch, and why it ended."""

    epochs: tuple[EpochRecord, ...]
    best_score: float
    best_epoch: int
    ended: str


@dataclass(frozen=True)
class _State:
    """What changes from epoch to epoch, beside weights and optimiser."""

    epoch: int = 0
    stage: int = 0
    waited: int = 0
    best_score: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains an encoder on resident sessions.

    Args:
        encoder: on the sessions' device; afterwards it holds the best state, in evaluation mode.
        sessions: all known to the encoder.
        parameters: how to train.
        seed: of the order of trials and the readout's positions.
        progress: called about once a second; raising in it ends training.
        after_epoch: called with this trainer after each epoch, where given; it may take a `checkpoint`.

    Raises:
        InputError: for no session or one that the encoder does not know.
    """

    def __init__(
        self,
        encoder: Encoder,
        sessions: Sequence[ResidentSession],
        parameters: TrainerParameters,
        *,
        seed: int,
        progress: ProgressCallback = silent,
        after_epoch: "Callable[[Trainer], None] | None" = None,
    ) -> None:
        unknown = [session.name for session in sessions if session.name not in encoder.sessions]
        if unknown or not sessions:
            raise InputError(
                f"the model knows the sessions {encoder.sessions}", where=unknown or "sessions", advice="Train on some of them"
            )
        self._encoder, self._sessions, self._parameters, self._seed = encoder, list(sessions), parameters, seed
        self._progress, self._after_epoch = progress, after_epoch
        self._device = sessions[0].training.responses.device
        self._state, self._epochs = _State(), list[EpochRecord]()
        self._best = {name: value.clone() for name, value in encoder.state_dict().items()}
        self._optimizer = self._new_optimizer()
        self._begun = self._reported = time.monotonic()

    def train(self) -> TrainingResult:
        """Train to the end, from the start or from what `resume` took up.

        Raises:
            InputError: when no epoch gave a finite validation score.
        """
        if self._device.type == "cpu":
            keep_freed_memory()
        self._begun = time.monotonic() - self._state.seconds
        ended = self._ended()
        while not ended:
            loss = self._train_epoch()
            self._finish_epoch(loss, validation_score(self._encoder, self._sessions, self._parameters.batch_size))
            ended = self._ended()
            if self._after_epoch is not None:
                self._after_epoch(self)
            self._report(self._state.epoch * self._steps, always=True)
        if self._state.best_epoch == 0:
            raise InputError("training diverged: no validation score was finite", where="training", advice="Lower the learning rate")
        self._encoder.load_state_dict(self._best)
        self._encoder.eval()
        return TrainingResult(tuple(self._epochs), self._state.best_score, self._state.best_epoch, ended)

    @property
    def epochs(self) -> Sequence[EpochRecord]:
        """The epochs so far, those before `resume` among them."""
        return self._epochs

    def checkpoint(self) -> bytes:
        """Everything needed to go on after the last finished epoch."""
        buffer = io.BytesIO()
        content = {
            "identity": self._identity(),
            "state": asdict(self._state),
            "epochs": [asdict(epoch) for epoch in self._epochs],
            "weights": self._encoder.state_dict(),
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
        }
        torch.save(content, buffer)
        return buffer.getvalue()

    def resume(self, checkpoint: bytes) -> None:
        """Go on from a checkpoint of a trainer with the same model, sessions, parameters and seed.

        Raises:
            InputError: when it cannot be read or belongs to another training.
        """
        advice = "start this training anew"
        try:
            content: dict[str, Any] = torch.load(io.BytesIO(checkpoint), map_location=self._device, weights_only=True)
            identity = content["identity"]
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError, pickle.UnpicklingError) as error:
            raise InputError("the training checkpoint cannot be read", where="checkpoint", advice=advice) from error
        if identity != self._identity():
            raise InputError("the checkpoint belongs to another model, session, parameter or seed", where="checkpoint", advice=advice)
        self._encoder.load_state_dict(content["weights"])
        self._best = content["best"]
        self._state = _State(**content["state"])
        self._epochs = [EpochRecord(**epoch) for epoch in content["epochs"]]
        self._optimizer = self._new_optimizer()
        self._optimizer.load_state_dict(content["optimizer"])

    def _train_epoch(self) -> float:
        """Mean loss of a step. Nothing here waits for the device before the epoch is over."""
        encoder, number = self._encoder, self._state.epoch
        encoder.train()
        order = seeded_generator(self._seed, f"order {number}")
        noise = seeded_generator(self._seed, f"positions {number}", self._device)
        total = torch.zeros((), device=self._device)
        for step, batches in enumerate(epoch_batches(self._sessions, self._parameters.batch_size, order)):
            self._optimizer.zero_grad(set_to_none=True)
            for session, trials in zip(self._sessions, batches, strict=True):
                training = session.training
                prediction = encoder(session.name, training.inputs.select(trials), noise)
                scale = math.sqrt(len(training) / len(trials))
                loss = scale * poisson_loss(prediction, take(training.responses, trials)) + encoder.regularizer(session.name)
                loss.backward()
                total += loss.detach()
            self._optimizer.step()
            self._report(number * self._steps + step + 1)
        return float(total) / self._steps

    def _finish_epoch(self, loss: float, score: float) -> None:
        parameters, state = self._parameters, self._state
        seconds = time.monotonic() - self._begun
        self._epochs.append(EpochRecord(state.epoch + 1, self._learning_rate, loss, score, seconds))
        state = replace(state, epoch=state.epoch + 1, seconds=seconds)
        if score > state.best_score + parameters.tolerance:
            self._best = {name: value.clone() for name, value in self._encoder.state_dict().items()}
            state = replace(state, best_score=score, best_epoch=state.epoch, waited=0)
        else:
            state = replace(state, waited=state.waited + 1)
        if state.waited >= parameters.patience:
            state = replace(state, stage=state.stage + 1, waited=0)
            self._encoder.load_state_dict(self._best)
            self._state = state
            self._optimizer = self._new_optimizer()
        self._state = state

    def _ended(self) -> str:
        state, parameters = self._state, self._parameters
        if state.stage >= parameters.stages:
            return "no better validation score in the last stage"
        if state.epoch >= parameters.epochs:
            return "all epochs done"
        if parameters.time_limit is not None and state.epoch and state.seconds * (state.epoch + 1) / state.epoch > parameters.time_limit:
            return "no time for a further epoch"
        return ""

    @property
    def _steps(self) -> int:
        return steps_per_epoch(self._sessions, self._parameters.batch_size)

    @property
    def _learning_rate(self) -> float:
        return self._parameters.learning_rate * self._parameters.decay**self._state.stage

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self._encoder.parameters(), lr=self._learning_rate)

    def _report(self, done: int, *, always: bool = False) -> None:
        now = time.monotonic()
        if not always and now - self._reported < _REPORT_EVERY:
            return
        self._reported = now
        total = self._parameters.epochs * self._steps
        left = (now - self._begun) / done * (total - done)
        detail = f"epoch {min(done // self._steps + 1, self._parameters.epochs)}, at most {left:.0f} s left"
        if self._epochs:
            last = self._epochs[-1]
            detail = f"epoch {last.epoch}: loss {last.loss:.4g}, validation {last.score:.4f}, at most {left:.0f} s left"
        self._progress(Progress("training", done, total, detail))

    def _identity(self) -> str:
        """What a checkpoint must agree in: anything else would go on with another training."""
        sessions = [(s.name, len(s.training), len(s.validation), s.training.responses.shape[1]) for s in self._sessions]
        return repr((self._encoder.configuration.model_dump_json(), self._parameters.model_dump_json(), self._seed, sessions))


def poisson_loss(prediction: Tensor, response: Tensor) -> Tensor:
    """Negative log likelihood of rates (trials, neurons), summed, without the term that the prediction cannot change."""
    return (prediction - response * torch.log(prediction + _EPSILON)).sum()


def predict_inputs(encoder: Encoder, session: str, inputs: ModelInputs, batch_size: int) -> Tensor:
    """Predicted standardised responses (trials, neurons), at the mean positions; leaves the encoder in evaluation mode."""
    encoder.eval()
    with torch.inference_mode():
        blocks = [encoder(session, inputs.select(slice(i, i + batch_size))) for i in range(0, len(inputs), batch_size)]
        return torch.cat(blocks)


def validation_score(encoder: Encoder, sessions: Sequence[ResidentSession], batch_size: int) -> float:
    """Single-trial correlation on the validation trials, the mean over all neurons of all sessions."""
    scores = []
    for session in sessions:
        prediction = predict_inputs(encoder, session.name, session.validation.inputs, batch_size)
        scores.append(single_trial_correlation(prediction, session.validation.responses))
    return float(torch.cat(scores).mean())


def single_trial_correlation(prediction: Tensor, response: Tensor) -> Tensor:
    """Correlation over trials of each neuron, (trials, neurons) twice -> (neurons,); 0 where one does not vary (2022's convention)."""
    prediction, response = prediction.double(), response.double()
    prediction, response = prediction - prediction.mean(0), response - response.mean(0)
    spread = (prediction.square().mean(0).sqrt() + _EPSILON) * (response.square().mean(0).sqrt() + _EPSILON)
    return (prediction * response).mean(0) / spread
