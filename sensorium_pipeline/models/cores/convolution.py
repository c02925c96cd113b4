"""The convolutional core of the SENSORIUM 2022 baselines.

Willeke et al. 2022 (arXiv:2206.08666), depth-separable after Lurz et al. 2021: a large unpadded convolution, then depth-separable
layers; batch normalisation and ELU after each; the last layer is read. Without ELU it is the LN model. With a factorised readout it
is the model of Klindt et al. 2017.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.models.configuration import ConvolutionConfiguration, SqueezeExcitationConfiguration
from sensorium_pipeline.models.cores.base import Core, ImageConvolution, glorot, roughness
from sensorium_pipeline.models.depthwise import depthwise


class DepthSeparable(nn.Module):
    """1 x 1 convolution, depthwise convolution padded to the same size, 1 x 1 convolution; no biases."""

    def __init__(self, channels: int, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inwards = nn.Conv2d(channels, channels, 1, bias=False)
        self.spatial = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.outwards = nn.Conv2d(channels, channels, 1, bias=False)
        for layer in (self.inwards, self.spatial, self.outwards):
            glorot(layer.weight, generator)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (trials, channels, y, x) to the same shape."""
        return self.outwards(depthwise(self.inwards(maps), self.spatial.weight))


class ConvolutionCore(Core):
    """Images to feature maps; the linear variant has no ELU and makes the LN model.

    Args:
        configuration: sizes.
        behavior: whether behaviour enters as constant channels.
        generator: of the initial weights (Glorot normal).
    """

    linear = False

    def __init__(
        self, configuration: ConvolutionConfiguration | SqueezeExcitationConfiguration, behavior: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.channels = configuration.channels
        self.laplace_weight = configuration.laplace_weight
        if isinstance(configuration, ConvolutionConfiguration):
            self.linear = configuration.linear
        self.first = ImageConvolution(self.channels, configuration.input_kernel, behavior, generator)
        hidden = range(configuration.layers - 1)
        self.hidden = nn.ModuleList(DepthSeparable(self.channels, configuration.hidden_kernel, generator) for _ in hidden)
        momentum = configuration.batch_norm_momentum
        self.norms = nn.ModuleList(nn.BatchNorm2d(self.channels, momentum=momentum) for _ in range(configuration.layers))

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Feature maps (trials, channels, y - kernel + 1, x - kernel + 1); see `Core.forward`."""
        maps = self.activate(self.first(images, behavior), 0)
        for layer, block in enumerate(self.hidden, start=1):
            maps = self.activate(block(maps), layer)
        return maps

    def activate(self, maps: Tensor, layer: int) -> Tensor:
        """Batch normalisation and nonlinearity after a layer (0 is the first)."""
        maps = self.norms[layer](maps)
        return maps if self.linear else functional.elu(maps, inplace=True)

    def regularizer(self) -> Tensor:
        """Weighted roughness of the first layer's kernels."""
        return self.laplace_weight * roughness(self.first.weight)
