"""The depthwise convolution against PyTorch's own, forward and backward."""

import pytest
import torch
from torch.nn import functional

from sensorium_pipeline.models.depthwise import depthwise


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_equals_a_grouped_convolution_forward_and_backward(side: int, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(side)
    maps = torch.randn(5, 6, 9, 13, generator=generator).contiguous(memory_format=layout).requires_grad_()
    kernels = torch.randn(6, 1, side, side, generator=generator).contiguous(memory_format=layout).requires_grad_()
    ours, theirs = depthwise(maps, kernels), functional.conv2d(maps, kernels, padding=side // 2, groups=6)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, generator=generator)
    for mine, peer in zip(
        torch.autograd.grad(ours, (maps, kernels), upstream), torch.autograd.grad(theirs, (maps, kernels), upstream), strict=True
    ):
        torch.testing.assert_close(mine, peer, atol=1e-4, rtol=1e-4)


def test_only_what_is_asked_for_is_computed() -> None:
    maps, kernels = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)), torch.ones(3, 1, 5, 5, requires_grad=True)
    depthwise(maps, kernels).sum().backward()
    assert maps.grad is None
    assert kernels.grad is not None
    with torch.inference_mode():
        assert not depthwise(maps, kernels).requires_grad
