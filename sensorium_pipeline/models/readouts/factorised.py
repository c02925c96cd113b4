"""The factorised readout: every neuron weighs pixels with a mask and features with weights, the same for all pixels.

Klindt, Ecker, Euler & Bethge 2017 (NeurIPS, arXiv:1711.02653). Mask times features is far smaller than a weight for each pixel and
feature; the penalty on the absolute product keeps receptive fields small and features few.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sensorium_pipeline.models.configuration import FactorisedConfiguration

# So many neurons' features at all trials are held at a time.
_NEURONS_PER_BLOCK = 1024


class FactorisedReadout(nn.Module):
    """Rates of one session's neurons before the output nonlinearity.

    Args:
        configuration: the penalty.
        channels: of the feature maps.
        map_shape: rows and columns of the feature maps.
        bias: (neurons,) start of the bias.
    """

    def __init__(
        self, configuration: FactorisedConfiguration, channels: int, map_shape: tuple[int, int], bias: NDArray[np.float32]
    ) -> None:
        super().__init__()
        self.feature_weight = configuration.feature_weight
        pixels = math.prod(map_shape)
        # Between the scale of a mask spread over all pixels and that of a mask on a few, so that steps of one size suit both.
        self.scale = 1 / math.sqrt(pixels)
        self.mask = nn.Parameter(torch.full((len(bias), pixels), self.scale))
        self.features = nn.Parameter(torch.full((len(bias), channels), 1 / channels))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))

    def forward(self, maps: Tensor, shift: Tensor | None = None, noise: torch.Generator | None = None) -> Tensor:
        """Read feature maps (trials, channels, rows, columns): (trials, neurons). There is nothing to shift and nothing to draw."""
        flat = maps.permute(0, 2, 3, 1).flatten(1, 2)
        blocks = zip(self.mask.split(_NEURONS_PER_BLOCK), self.features.split(_NEURONS_PER_BLOCK), strict=True)

        # Recomputed in the backward pass, so that one block is all that is ever kept.
        def read(mask: Tensor, features: Tensor) -> Tensor:
            result: Tensor = checkpoint(_read, flat, mask * self.scale, features, use_reentrant=False, preserve_rng_state=False)
            return result

        return torch.cat([read(mask, features) for mask, features in blocks], dim=1) + self.bias

    def regularizer(self) -> Tensor:
        """Weighted sum of the absolute products of mask and features."""
        return self.feature_weight * self.scale * (self.mask.abs().sum(1) * self.features.abs().sum(1)).sum()


def _read(flat: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """Maps (trials, pixels, channels), mask (neurons, pixels), features (neurons, channels) to (trials, neurons)."""
    masked = torch.matmul(mask, flat)
    return (masked * features).sum(2)
