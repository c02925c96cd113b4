"""The whole model: one core for all sessions, a readout (and a shifter, a modulator) for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import GaussianConfiguration, ModelConfiguration, parse_configuration
from sensorium_pipeline.models.cores import Core, build_core
from sensorium_pipeline.models.inputs import ModelInputs
from sensorium_pipeline.models.modulator import Modulator
from sensorium_pipeline.models.readouts.factorised import FactorisedReadout
from sensorium_pipeline.models.readouts.gaussian import GaussianReadout, source_grid
from sensorium_pipeline.models.shifter import Shifter
from sensorium_pipeline.models.vector_functions import settle_vector_functions
from sensorium_pipeline.training.data import SessionDescription

_CONFIGURATION = "configuration"

settle_vector_functions()


@dataclass(frozen=True)
class SessionNeurons:
    """What a readout is built from: the session's name, grid (neurons, 2) and mean standardised responses (neurons,)."""

    name: str
    grid: NDArray[np.float32]
    mean_response: NDArray[np.float32]


class Encoder(nn.Module):
    """Predicted standardised responses, always above 0: ELU(readout(core(images))) + 1, times the modulator's gain where there is one.

    Args:
        configuration: sizes; kept as `configuration`.
        sessions: whose neurons to predict.
        generator: of all initial weights.
        network: weights of a pretrained network, where the configuration's core names some.

    Raises:
        InputError: when no session is given, a session's name is empty, holds a dot or comes twice, or the core does not fit the images.
    """

    def __init__(
        self,
        configuration: ModelConfiguration,
        sessions: Sequence[SessionNeurons],
        generator: torch.Generator,
        network: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        names = [session.name for session in sessions]
        if not names or len(set(names)) < len(names) or any(not name or "." in name for name in names):
            raise InputError(
                f"an encoder needs sessions with different names without dots, found {names}",
                where="sessions",
                advice="Name sessions like static1-1-1",
            )
        self.configuration = configuration
        self.core = build_core(configuration, generator, network)
        map_shape = _map_shape(self.core, configuration.image_shape)
        self.readouts = nn.ModuleDict({s.name: _readout(configuration, self.core, map_shape, s, generator) for s in sessions})
        self.shifters = nn.ModuleDict({name: Shifter(configuration, generator) for name in names} if configuration.shifter else {})
        self.modulators = nn.ModuleDict(
            {s.name: Modulator(configuration, len(s.grid), generator) for s in sessions} if configuration.modulator else {}
        )

    @classmethod
    def for_sessions(
        cls,
        configuration: ModelConfiguration,
        sessions: Sequence[SessionDescription],
        generator: torch.Generator,
        network: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """An untrained encoder of sessions; their image shape is written into its configuration.

        Raises:
            InputError: when the sessions' image shapes differ, are too small for the core, or not the configuration's.
        """
        shapes = sorted({session.image_shape for session in sessions})
        if len(shapes) > 1:
            raise InputError(f"sessions have different image shapes {shapes}", where="sessions", advice="Use sessions of one release")
        for shape in shapes:
            if configuration.image_shape not in (None, shape):
                raise InputError(
                    f"the model was made for images of {configuration.image_shape} pixels, the sessions have {shape}",
                    where="image_shape",
                    advice="Use sessions at the scale that the model was trained at",
                )
            configuration = configuration.model_copy(update={"image_shape": shape})
        neurons = [
            SessionNeurons(s.name, source_grid(s.positions), s.statistics.response_mean * s.statistics.response_precision) for s in sessions
        ]
        return cls(configuration, neurons, generator, network)

    @property
    def sessions(self) -> list[str]:
        """Names of the sessions whose neurons this encoder predicts."""
        return list(self.readouts)

    def forward(self, session: str, inputs: ModelInputs, noise: torch.Generator | None = None) -> Tensor:
        """Predict standardised responses (trials, neurons) of a session.

        Args:
            session: its name.
            inputs: normalised, on the encoder's device.
            noise: generator, on that device, of the readout positions drawn in training; None reads their means.

        Raises:
            InputError: for a session that this encoder does not know.
        """
        if session not in self.readouts:
            raise InputError(f"the model knows the sessions {self.sessions}, not {session}", where=session, advice="Choose one of them")
        maps = self.core(inputs.images, inputs.behavior if self.configuration.behavior else None)
        shift = self.shifters[session](inputs.pupil_center) if session in self.shifters else None
        rates = functional.elu(self.readouts[session](maps, shift, noise)) + 1
        return rates * self.modulators[session](inputs.behavior) if session in self.modulators else rates

    def regularizer(self, session: str) -> Tensor:
        """Penalty of the core and of one session's readout, as 2022 added it to the loss of each batch."""
        readout = self.readouts[session]
        penalty: Tensor = self.core.regularizer() + readout.regularizer()  # type: ignore[operator]
        return penalty


def encoder_state(encoder: Encoder) -> dict[str, NDArray[np.generic]]:
    """Weights of an encoder as named arrays, its configuration among them (UTF-8 JSON as uint8)."""
    text = encoder.configuration.model_dump_json().encode()
    arrays: dict[str, NDArray[np.generic]] = {_CONFIGURATION: np.frombuffer(text, np.uint8)}
    arrays.update({name: value.detach().cpu().numpy().copy() for name, value in encoder.state_dict().items()})
    return arrays


def load_encoder_state(encoder: Encoder, state: Mapping[str, NDArray[np.generic]], where: str = "model state") -> None:
    """Take up the weights of `encoder_state`.

    Raises:
        InputError: when the stored configuration is not the encoder's, or a name or shape differs.
    """
    if _CONFIGURATION not in state:
        raise InputError("the weights come without their configuration", where=where, advice="Save them with encoder_state")
    stored = parse_configuration(np.asarray(state[_CONFIGURATION], np.uint8).tobytes(), where)
    if stored != encoder.configuration:
        ours, theirs = encoder.configuration.model_dump(), stored.model_dump()
        differing = ", ".join(f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if ours[name] != theirs[name])
        raise InputError(f"the weights belong to another configuration: {differing}", where=where, advice="Build the model that was saved")
    load_tensors(encoder, {name: torch.from_numpy(np.array(value)) for name, value in state.items() if name != _CONFIGURATION}, where)


def load_tensors(encoder: Encoder, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy named tensors into an encoder; all names and shapes must fit, or nothing is copied and InputError says which do not."""
    wanted = encoder.state_dict()
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    shapes = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    problems = [f"missing {missing[:3]}"] * bool(missing) + [f"unknown {unknown[:3]}"] * bool(unknown) + shapes[:3]
    if problems:
        raise InputError(f"the weights do not fit the model: {'; '.join(problems)}", where=where, advice="Build the model that was saved")
    encoder.load_state_dict(dict(tensors))


def _map_shape(core: Core, image_shape: tuple[int, int] | None) -> tuple[int, int] | None:
    if image_shape is None:
        return None
    try:
        return core.map_shape(image_shape)
    except RuntimeError as error:  # what layers say to images that are smaller than their kernels
        raise InputError(
            f"images of {image_shape} pixels are too small for this core", where="image_shape", advice="Use smaller kernels or fewer pools"
        ) from error


def _readout(
    configuration: ModelConfiguration, core: Core, map_shape: tuple[int, int] | None, session: SessionNeurons, generator: torch.Generator
) -> GaussianReadout | FactorisedReadout:
    readout, bias = configuration.readout, _initial_bias(session.mean_response)
    if isinstance(readout, GaussianConfiguration):
        return GaussianReadout(readout, core.channels, session.grid, bias, generator)
    if map_shape is None:
        raise InputError("a factorised readout is made for one image shape", where="image_shape", advice="Build it for sessions")
    return FactorisedReadout(readout, core.channels, map_shape, bias)


def _initial_bias(mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bias (neurons,) for which ELU(bias) + 1 is the mean response: training starts where a constant model would end."""
    mean = np.maximum(np.asarray(mean, np.float32), np.float32(0.01))
    return np.where(mean > 1, mean - 1, np.log(mean)).astype(np.float32)
