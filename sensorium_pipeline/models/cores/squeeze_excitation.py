"""The convolutional core with squeeze-and-excitation: what the whole image holds scales every channel.

Hu, Shen & Sun 2018 (CVPR); a variant of the SENSORIUM 2022 baselines in neuralpredictors. After each hidden layer the mean of every
channel over the image passes a narrow network, whose output, between 0 and 1, multiplies the channel. Contrast normalisation is one of
the things it can learn.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.models.configuration import SqueezeExcitationConfiguration
from sensorium_pipeline.models.cores.convolution import ConvolutionCore
from sensorium_pipeline.models.dense import dense


class SqueezeExcitation(nn.Module):
    """Gate of every channel from the means of all channels.

    Args:
        channels: of the maps.
        reduction: the middle layer has channels / reduction units, at least one.
        generator: of the initial weights.
    """

    def __init__(self, channels: int, reduction: int, generator: torch.Generator) -> None:
        super().__init__()
        middle = max(channels // reduction, 1)
        self.squeeze, self.excite = dense(channels, middle, generator), dense(middle, channels, generator)

    def forward(self, maps: Tensor) -> Tensor:
        """Scale maps (trials, channels, y, x)."""
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(maps.mean((2, 3))))))
        return maps * gate[:, :, None, None]


class SqueezeExcitationCore(ConvolutionCore):
    """A convolutional core with a gate after each hidden layer.

    Args:
        configuration: sizes.
        behavior: whether behaviour enters as constant channels.
        generator: of the initial weights.
    """

    def __init__(self, configuration: SqueezeExcitationConfiguration, behavior: bool, generator: torch.Generator) -> None:
        super().__init__(configuration, behavior, generator)
        hidden = range(configuration.layers - 1)
        self.gates = nn.ModuleList(SqueezeExcitation(self.channels, configuration.reduction, generator) for _ in hidden)

    def activate(self, maps: Tensor, layer: int) -> Tensor:
        """Batch normalisation, ELU and, after a hidden layer, its gate."""
        maps = super().activate(maps, layer)
        return self.gates[layer - 1](maps) if layer else maps
