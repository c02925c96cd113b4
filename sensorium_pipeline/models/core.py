"""The convolutional core shared by all sessions: from images to feature maps.

The core of the SENSORIUM 2022 baselines (Willeke et al. 2022; depth-separable after Lurz et al. 2021): a large unpadded
convolution, then depth-separable layers; batch normalisation and ELU after each; the last layer is read.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.models.configuration import ModelConfiguration
from sensorium_pipeline.models.depthwise import depthwise


class DepthSeparable(nn.Module):
    """1 x 1 convolution, depthwise convolution padded to the same size, 1 x 1 convolution; no biases."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.inwards = nn.Conv2d(channels, channels, 1, bias=False)
        self.spatial = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.outwards = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (trials, channels, y, x) to the same shape."""
        return self.outwards(depthwise(self.inwards(maps), self.spatial.weight))


class Core(nn.Module):
    """Images to feature maps; the linear variant has no ELU and makes the LN model.

    Args:
        configuration: sizes.
        generator: of the initial weights (Glorot normal).
    """

    def __init__(self, configuration: ModelConfiguration, generator: torch.Generator) -> None:
        super().__init__()
        channels = configuration.hidden_channels
        self.linear = configuration.linear
        self.laplace_weight = configuration.laplace_weight
        self.first = nn.Conv2d(configuration.input_channels, channels, configuration.input_kernel, bias=False)
        self.hidden = nn.ModuleList(DepthSeparable(channels, configuration.hidden_kernel) for _ in range(configuration.layers - 1))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels, momentum=configuration.batch_norm_momentum) for _ in range(configuration.layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, generator=generator)
                # Twice as fast on CPU as the default layout, and no copies between layers.
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Feature maps of normalised images.

        Args:
            images: (trials, 1, y, x).
            behavior: (trials, 3), where the configuration uses it.

        Returns:
            (trials, channels, y - kernel + 1, x - kernel + 1), channels last in memory.
        """
        maps = functional.conv2d(images, self.first.weight[:, :1])
        if behavior is not None:
            # A constant channel through an unpadded convolution is its value times the sum of the kernel: no need to convolve.
            maps = maps + (behavior @ self.first.weight[:, 1:].sum((2, 3)).T)[:, :, None, None]
        maps = self._normalise(maps.contiguous(memory_format=torch.channels_last), 0)
        for layer, block in enumerate(self.hidden, start=1):
            maps = self._normalise(block(maps), layer)
        return maps

    def _normalise(self, maps: Tensor, layer: int) -> Tensor:
        maps = self.norms[layer](maps)
        return maps if self.linear else functional.elu(maps, inplace=True)

    def regularizer(self) -> Tensor:
        """Weighted roughness of the first layer's kernels: sum of squares of their Laplacian over their own sum of squares."""
        kernels = self.first.weight.reshape(-1, 1, *self.first.weight.shape[2:])
        laplacian = kernels.new_tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
        return self.laplace_weight * functional.conv2d(kernels, laplacian, padding=1).square().sum() / kernels.square().sum()
