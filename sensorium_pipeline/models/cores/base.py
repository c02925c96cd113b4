"""What every core does: images to feature maps, shared by all sessions."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Core(nn.Module, ABC):
    """A core; `channels` is the number of its feature maps."""

    channels: int

    @abstractmethod
    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Feature maps of normalised images.

        Args:
            images: (trials, 1, y, x).
            behavior: (trials, 3), where the configuration lets it enter the core.

        Returns:
            (trials, channels, rows, columns), channels last in memory.
        """

    def regularizer(self) -> Tensor:
        """What the core adds to the loss of a step; nothing, unless a core says otherwise."""
        return torch.zeros((), device=next(self.parameters()).device)

    def map_shape(self, image_shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the feature maps of images of a shape."""
        training = self.training
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, 1, *image_shape, device=next(self.parameters()).device))
        self.train(training)
        return (maps.shape[2], maps.shape[3])


def channels_last(maps: Tensor) -> Tensor:
    """The same maps with channels last in memory: twice as fast on CPU, and what readouts take without a copy."""
    return maps.contiguous(memory_format=torch.channels_last)


def roughness(kernels: Tensor) -> Tensor:
    """Sum of squares of the Laplacian of kernels (..., y, x) over their own sum of squares (Klindt et al. 2017)."""
    planes = kernels.reshape(-1, 1, *kernels.shape[-2:])
    laplacian = kernels.new_tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
    return nn.functional.conv2d(planes, laplacian, padding=1).square().sum() / planes.square().sum()


class ImageConvolution(nn.Module):
    """The first layer: an unpadded convolution of the image, with behaviour as three further constant channels where wanted.

    Args:
        channels: of the result.
        kernel: side, pixels.
        behavior: whether there are channels of behaviour.
        generator: of the initial weights (Glorot normal).
    """

    def __init__(self, channels: int, kernel: int, behavior: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 4 if behavior else 1, kernel, kernel))
        glorot(self.weight, generator)

    def forward(self, images: Tensor, behavior: Tensor | None) -> Tensor:
        """Maps (trials, channels, y - kernel + 1, x - kernel + 1) of images (trials, 1, y, x) and behaviour (trials, 3)."""
        maps = nn.functional.conv2d(images, self.weight[:, :1])
        if behavior is not None:
            # A constant channel through an unpadded convolution is its value times the sum of the kernel: no need to convolve.
            maps = maps + (behavior @ self.weight[:, 1:].sum((2, 3)).T)[:, :, None, None]
        return channels_last(maps)


def glorot(weight: Tensor, generator: torch.Generator) -> None:
    """Draw a convolution's weights (Glorot normal) and lay them out channels last."""
    nn.init.xavier_normal_(weight, generator=generator)
    weight.data = channels_last(weight.data)
