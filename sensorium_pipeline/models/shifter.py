"""The shifter: where the eye looks moves what all neurons of a session read (Walker et al. 2019)."""

import torch
from torch import Tensor, nn

from sensorium_pipeline.models.configuration import ModelConfiguration
from sensorium_pipeline.models.dense import dense


class Shifter(nn.Module):
    """Pupil centre to a shift of readout positions, through two hidden layers; tanh after every layer."""

    def __init__(self, configuration: ModelConfiguration, generator: torch.Generator) -> None:
        super().__init__()
        hidden = configuration.shifter_features
        last = dense(hidden, 2, generator)
        # No shift at first: random ones would scatter what every neuron reads, before there is anything to be read.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.network = nn.Sequential(dense(2, hidden, generator), nn.Tanh(), dense(hidden, hidden, generator), nn.Tanh(), last, nn.Tanh())

    def forward(self, pupil_center: Tensor) -> Tensor:
        """Map z-scored pupil centres (trials, 2) to shifts (trials, 2) in half image sides."""
        shift: Tensor = self.network(pupil_center)
        return shift
