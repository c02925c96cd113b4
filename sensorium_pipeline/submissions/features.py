"""A features-only submission: it brings a network that saw no neuron, and the readout is fitted here, inside the same sandbox.

So any model of vision can be asked how well its features explain these neurons (Yamins et al. 2014; as Brain-Score does, Schrimpf et al.
2018), and all that are asked are read in the same way:

- **A vector for each image**: ridge regression on all visible trials, the penalty chosen for each neuron by leave-one-out prediction.
- **Maps**: the Gaussian readout of Lurz et al. 2021, the penalty of its features chosen on the validation tier.

In track SENSORIUM+ behaviour and pupil are further features of the ridge regression; over maps they move and multiply what is read.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import FeaturesConfiguration, GaussianConfiguration, ModelConfiguration, parse_configuration
from sensorium_pipeline.models.encoder import Encoder, encoder_state, load_encoder_state
from sensorium_pipeline.models.inputs import ModelInputs, normalise_inputs, standardise_responses
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.submissions.interface import Context, FeatureModel
from sensorium_pipeline.training.batches import ResidentSession, ResidentTrials, seeded_generator
from sensorium_pipeline.training.data import SessionData, SessionDescription, TrialInputs, Trials
from sensorium_pipeline.training.parameters import TrainerParameters
from sensorium_pipeline.training.ridge import Ridge, fit_ridge
from sensorium_pipeline.training.trainer import Trainer, predict_inputs

IMAGES_AT_A_TIME = 256
MOST_FEATURES = 16384
FEATURE_WEIGHTS = (0.001, 0.01, 0.1)
_RIDGE = ("mean", "scale", "weights", "intercept")


class FittedReadout:
    """A network's features with a readout fitted to them: a model as the runner trains and asks any other.

    Args:
        context: of the submission.
        network: what its entry point returned.
    """

    def __init__(self, context: Context, network: FeatureModel) -> None:
        self._context, self._network = context, network
        self._descriptions = {session.name: session for session in context.sessions}
        self._ridge: dict[str, Ridge] = {}
        self._encoder: Encoder | None = None

    def train(self, sessions: Sequence[SessionData]) -> None:
        """Fit the readout on the visible tiers of the sessions.

        Raises:
            InputError: for features of a wrong shape or number, or that are not finite.
        """
        shape = self._features(sessions[0].training.inputs[:2]).shape[1:]
        if len(shape) == 1:
            for done, session in enumerate(sessions):
                self._context.progress(Progress("fit", done, len(sessions), f"session {done + 1} of {len(sessions)}"))
                self._ridge[session.description.name] = self._fit_ridge(session)
        else:
            self._encoder = self._fit_gaussian(sessions, shape)

    def predict(self, session: str, inputs: TrialInputs) -> NDArray[np.float32]:
        """Responses (trials, neurons) in standardised units.

        Raises:
            InputError: as `train`, or for a session whose readout was not fitted.
        """
        description = self._descriptions[session]
        if len(inputs) == 0:
            return np.empty((0, description.neurons), np.float32)
        if session in self._ridge:
            return self._ridge[session].predict(self._vectors(description, inputs)).astype(np.float32)
        if self._encoder is None:
            raise InputError("no readout was fitted", where=f"session {session}", advice="Train first")
        encoder = self._encoder
        return predict_inputs(encoder, session, self._maps(encoder.configuration, description, inputs), IMAGES_AT_A_TIME).cpu().numpy()

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """The readout as named arrays; the network is in the submission's own files."""
        if self._encoder is not None:
            return encoder_state(self._encoder)
        return {f"{session}.{name}": getattr(ridge, name) for session, ridge in self._ridge.items() for name in _RIDGE}

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up what `state` returned.

        Raises:
            InputError: when it belongs to other sessions.
        """
        if "configuration" in state:
            configuration = parse_configuration(np.asarray(state["configuration"], np.uint8).tobytes(), "model state")
            self._encoder = self._new_encoder(configuration)
            load_encoder_state(self._encoder, state)
            return
        names = {name.rpartition(".")[0] for name in state}
        if not names <= set(self._descriptions):
            raise InputError(f"the readouts belong to {sorted(names)}", where="model state", advice="Build the model for those sessions")
        self._ridge = {name: Ridge(*(np.asarray(state[f"{name}.{part}"], np.float32) for part in _RIDGE)) for name in names}

    def _features(self, inputs: TrialInputs) -> NDArray[np.float32]:
        """What the network makes of images, checked: (trials, features) or (trials, channels, y, x)."""
        blocks = []
        for start in range(0, len(inputs), IMAGES_AT_A_TIME):
            images = np.array(inputs.images[start : start + IMAGES_AT_A_TIME])
            found = np.asarray(self._network.features(images))
            if found.ndim not in (2, 4) or len(found) != len(images) or found.dtype.kind not in "fiu" or 0 in found.shape:
                raise InputError(
                    f"{found.dtype} of shape {found.shape} for {len(images)} images",
                    where="features",
                    advice="Return (images, features) or (images, channels, y, x), float32",
                )
            if not np.isfinite(found).all():
                raise InputError("some are NaN or infinite", where="features", advice="Return finite numbers")
            blocks.append(found.astype(np.float32))
        if len({block.shape[1:] for block in blocks}) > 1:
            raise InputError("their number changes from image to image", where="features", advice="Return the same for all images")
        return np.concatenate(blocks)

    def _vectors(self, session: SessionDescription, inputs: TrialInputs) -> NDArray[np.float32]:
        """Features beside behaviour and pupil, where the track shows them: (trials, features)."""
        features = self._features(inputs)
        if features.ndim != 2 or features.shape[1] > MOST_FEATURES:
            raise InputError(
                f"{features.shape[1:]} for each image", where="features", advice=f"Return at most {MOST_FEATURES} numbers, or maps"
            )
        if self._context.track != "sensorium+":
            return features
        given = normalise_inputs(ModelConfiguration(modulator=True, shifter=True), session, inputs)
        states = [part.numpy() for part in (given.behavior, given.pupil_center) if part is not None]
        return np.concatenate([features, *states], axis=1)

    def _fit_ridge(self, session: SessionData) -> Ridge:
        description = session.description
        features, responses = zip(
            *(
                (self._vectors(description, tier.inputs), standardise_responses(description, tier.responses).numpy())
                for tier in (session.training, session.validation)
            ),
            strict=True,
        )
        return fit_ridge(np.concatenate(features), np.concatenate(responses), self._context.device)

    def _maps(self, configuration: ModelConfiguration, session: SessionDescription, inputs: TrialInputs) -> ModelInputs:
        """Maps in the place of images, beside normalised behaviour and pupil, on the device."""
        given = normalise_inputs(configuration, session, inputs)
        return ModelInputs(torch.from_numpy(self._features(inputs)), given.behavior, given.pupil_center).to(self._context.device)

    def _resident(self, configuration: ModelConfiguration, session: SessionDescription, trials: Trials) -> ResidentTrials:
        responses = standardise_responses(session, trials.responses).to(self._context.device)
        return ResidentTrials(self._maps(configuration, session, trials.inputs), responses)

    def _new_encoder(self, configuration: ModelConfiguration) -> Encoder:
        generator = seeded_generator(self._context.seed, "weights")
        return Encoder.for_sessions(configuration, list(self._descriptions.values()), generator).to(self._context.device)

    def _fit_gaussian(self, sessions: Sequence[SessionData], shape: tuple[int, ...]) -> Encoder:
        """The encoder with the best validation score of all penalties that are tried."""
        plus, context = self._context.track == "sensorium+", self._context
        core = FeaturesConfiguration(channels=shape[0], map_shape=(shape[1], shape[2]))
        plain = ModelConfiguration(core=core, shifter=plus, modulator=plus)
        resident = [
            ResidentSession(s.description.name, *(self._resident(plain, s.description, tier) for tier in (s.training, s.validation)))
            for s in sessions
        ]
        parameters = TrainerParameters(epochs=1) if context.smoke_run else TrainerParameters()
        fitted = []
        for weight in FEATURE_WEIGHTS[:1] if context.smoke_run else FEATURE_WEIGHTS:
            encoder = self._new_encoder(plain.model_copy(update={"readout": GaussianConfiguration(feature_weight=weight)}))
            result = Trainer(encoder, resident, parameters, seed=context.seed, progress=context.progress).train()
            fitted.append((result.best_score, encoder))
        return max(fitted, key=lambda one: one[0])[1]
