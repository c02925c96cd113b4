"""The modulator: what the animal does multiplies the rates of a session's neurons (Sinz et al. 2018, NeurIPS; Walker et al. 2019)."""

import torch
from torch import Tensor, nn

from sensorium_pipeline.models.configuration import ModelConfiguration
from sensorium_pipeline.models.dense import dense


class Modulator(nn.Module):
    """Behaviour to a gain of every neuron, through one hidden layer; no gain at first.

    Args:
        configuration: sizes.
        neurons: of the session.
        generator: of the initial weights.
    """

    def __init__(self, configuration: ModelConfiguration, neurons: int, generator: torch.Generator) -> None:
        super().__init__()
        last = dense(configuration.modulator_features, neurons, generator)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.network = nn.Sequential(dense(3, configuration.modulator_features, generator), nn.Tanh(), last)

    def forward(self, behavior: Tensor) -> Tensor:
        """Gains (trials, neurons), above 0, of normalised behaviour (trials, 3)."""
        return torch.exp(self.network(behavior))
