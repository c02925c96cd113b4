"""Depthwise convolution, with a gradient of large kernels that is several times faster on CPU than PyTorch's own.

The gradient of a channel's kernel is that channel of the input convolved with the same channel of the upstream gradient, summed over
trials: for one trial again a depthwise convolution, whose kernel is as large as the image and whose result is as large as the kernel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Side from which on kernels gain: one small convolution a trial has its own cost.
_LARGE = 5


def depthwise(maps: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every channel with a kernel of its own, padded to keep the shape.

    Args:
        maps: (trials, channels, y, x).
        kernels: (channels, 1, side, side), side odd.

    Returns:
        (trials, channels, y, x).
    """
    if maps.device.type == "cpu" and kernels.shape[-1] >= _LARGE and torch.is_grad_enabled():
        convolved: Tensor = _Depthwise.apply(maps, kernels)
        return convolved
    return _convolve(maps, kernels)


def _convolve(maps: Tensor, kernels: Tensor) -> Tensor:
    return functional.conv2d(maps, kernels, padding=kernels.shape[-1] // 2, groups=kernels.shape[0])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(maps, kernels)
        return _convolve(maps, kernels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, kernels = ctx.saved_tensors
        (upstream,) = gradients
        to_maps = to_kernels = None
        if ctx.needs_input_grad[0]:
            # The kernels are symmetric in size, so the transposed convolution is a convolution with the kernels turned by 180 degrees.
            to_maps = _convolve(upstream, kernels.flip(2, 3))
        if ctx.needs_input_grad[1]:
            channels, _, side, _ = kernels.shape
            total = kernels.new_zeros(1, channels, side, side)
            for trial in range(maps.shape[0]):
                kernel = upstream[trial, :, None]
                total += functional.conv2d(maps[trial : trial + 1], kernel, padding=side // 2, groups=channels)
            to_kernels = total.transpose(0, 1)
        return to_maps, to_kernels
