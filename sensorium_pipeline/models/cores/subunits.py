"""The subunit model, LN-LN: filters repeated over the image, half-squared, pooled by every neuron, rectified.

Rust, Schwartz, Movshon & Simoncelli 2005 (Neuron 46, 945); Vintch, Movshon & Simoncelli 2015 (J. Neurosci. 35, 14829), whose subunits
are convolutional: a few kinds of filters, and for every neuron weights over space. Use it with the factorised readout, which is that
pooling: a spatial mask times a weight for every kind.
"""

import torch
from torch import Tensor, nn

from sensorium_pipeline.models.configuration import SubunitConfiguration
from sensorium_pipeline.models.cores.base import Core, ImageConvolution, roughness


class SubunitCore(Core):
    """Images to responses of subunits; every kind is a channel.

    Args:
        configuration: sizes.
        generator: of the initial weights (Glorot normal).
    """

    def __init__(self, configuration: SubunitConfiguration, generator: torch.Generator) -> None:
        super().__init__()
        self.channels, self.laplace_weight = configuration.channels, configuration.laplace_weight
        self.first = ImageConvolution(self.channels, configuration.input_kernel, False, generator)
        self.norm = nn.BatchNorm2d(self.channels, momentum=configuration.batch_norm_momentum)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Responses (trials, channels, y - kernel + 1, x - kernel + 1); see `Core.forward`."""
        return torch.relu(self.norm(self.first(images, None))).square()

    def regularizer(self) -> Tensor:
        """Weighted roughness of the filters."""
        return self.laplace_weight * roughness(self.first.weight)
