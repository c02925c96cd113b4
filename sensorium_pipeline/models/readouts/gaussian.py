"""The Gaussian readout: every neuron reads the feature maps at one position of its own.

Lurz et al. 2021. The mean position is predicted from the neuron's cortical coordinates (retinotopy); in training a position is
drawn around it for each image, so that gradients reach beyond one pixel; at evaluation the mean is read.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sensorium_pipeline.models.configuration import GaussianConfiguration
from sensorium_pipeline.models.dense import dense
from sensorium_pipeline.models.sampling import read_positions


def source_grid(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cortical x and y of neurons, centred and divided by the largest absolute value of both: (neurons, 3) um -> (neurons, 2)."""
    plane = np.asarray(positions, np.float64)[:, :2]
    plane = plane - plane.mean(axis=0, keepdims=True)
    largest = np.abs(plane).max(initial=0.0)
    return (plane / largest if largest > 0 else plane).astype(np.float32)


class GaussianReadout(nn.Module):
    """Rates of one session's neurons before the output nonlinearity.

    Args:
        configuration: sizes.
        channels: of the feature maps.
        grid: (neurons, 2), see `source_grid`.
        bias: (neurons,) start of the bias.
        generator: of the initial weights.
    """

    grid: Tensor

    def __init__(
        self,
        configuration: GaussianConfiguration,
        channels: int,
        grid: NDArray[np.float32],
        bias: NDArray[np.float32],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        neurons, sigma = len(grid), configuration.initial_sigma
        self.feature_weight = configuration.feature_weight
        self.register_buffer("grid", torch.tensor(grid, dtype=torch.float32))
        last = dense(configuration.position_features, 2, generator)
        # Every neuron starts in the middle of the image: a random map of the cortex onto the image, mirrored perhaps, would first
        # have to be unlearnt, and with few trials never is.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.position = nn.Sequential(dense(2, configuration.position_features, generator), nn.ELU(), last, nn.Tanh())
        self.sigma = nn.Parameter(torch.empty(neurons, 2, 2).uniform_(-sigma, sigma, generator=generator))
        self.features = nn.Parameter(torch.full((neurons, channels), 1 / channels))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))

    def forward(self, maps: Tensor, shift: Tensor | None = None, noise: torch.Generator | None = None) -> Tensor:
        """Read feature maps.

        Args:
            maps: (trials, channels, y, x).
            shift: (trials, 2), added to all positions of a trial.
            noise: generator (on the maps' device) of the positions drawn in training; None reads the means.

        Returns:
            (trials, neurons).
        """
        positions = self.position(self.grid)[None]
        if noise is not None:
            drawn = torch.randn(maps.shape[0], *self.grid.shape, generator=noise, device=maps.device)
            # Column by column of sigma: the product of all four entries would be the largest array of the readout.
            positions = positions + self.sigma[:, :, 0] * drawn[:, :, :1] + self.sigma[:, :, 1] * drawn[:, :, 1:]
        positions = positions.clamp(-1, 1)
        if shift is not None:
            positions = positions + shift[:, None, :]
        return read_positions(maps, positions, self.features) + self.bias

    def regularizer(self) -> Tensor:
        """Weighted sum of absolute features."""
        return self.feature_weight * self.features.abs().sum()
