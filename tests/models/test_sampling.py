"""The compiled readout against PyTorch's own grid_sample, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sensorium_pipeline.models.sampling import _grid_sample, read_positions


def plainly(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    positions = positions.expand(maps.shape[0], -1, -1)
    samples = functional.grid_sample(maps, positions[:, :, None], align_corners=True)
    return (samples[..., 0] * features.T).sum(1)


def draw(seed: int, same_positions: bool, trials: int = 3, neurons: int = 700, channels: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(trials, channels, 6, 9, generator=generator).contiguous(memory_format=torch.channels_last)
    # Many positions outside, some on edges and corners, some on pixel centres.
    positions = torch.randn(1 if same_positions else trials, neurons, 2, generator=generator) * 0.9
    positions[0, :4] = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 1.0], [1.0, -0.2]])
    features = torch.randn(neurons, channels, generator=generator)
    return maps.requires_grad_(), positions.requires_grad_(), features.requires_grad_()


@pytest.mark.parametrize("same_positions", [False, True])
def test_equals_grid_sample_forward_and_backward(same_positions: bool) -> None:
    arrays = draw(1, same_positions)
    ours, theirs = read_positions(*arrays), plainly(*arrays)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    # On a pixel centre the slope of bilinear interpolation has two sides; positions 0 to 3 of trial 0 lie there.
    for mine, peer in zip(torch.autograd.grad(ours, arrays, upstream), torch.autograd.grad(theirs, arrays, upstream), strict=True):
        torch.testing.assert_close(mine, peer, atol=2e-4, rtol=1e-4)


def test_the_way_of_other_devices_gives_the_same() -> None:
    arrays = draw(3, False)
    ours, theirs = read_positions(*arrays), _grid_sample(*arrays)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    upstream = torch.ones_like(ours)
    for mine, peer in zip(torch.autograd.grad(ours, arrays, upstream), torch.autograd.grad(theirs, arrays, upstream), strict=True):
        torch.testing.assert_close(mine, peer, atol=2e-4, rtol=1e-4)


def test_same_bytes_whatever_the_threads() -> None:
    arrays = draw(4, False, trials=5)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            result = read_positions(*arrays)
            found.append([result, *torch.autograd.grad(result.square().sum(), arrays)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_far_outside_and_not_a_number_read_nothing_and_touch_nothing() -> None:
    maps, _, features = draw(5, False, neurons=4)
    positions = torch.tensor([[[1e30, 0.0], [float("nan"), 0.0], [0.0, -3.0], [float("inf"), 0.0]]], requires_grad=True)
    result = read_positions(maps, positions, features)
    to_maps, to_positions = torch.autograd.grad(result.sum(), (maps, positions))
    assert torch.equal(result, torch.zeros_like(result))
    assert not to_maps.any()
    assert not to_positions.any()


def test_maps_that_are_not_a_number_are_not_hidden() -> None:
    maps, positions, features = draw(6, False)
    with torch.no_grad():
        maps[0, 2] = float("nan")
    result = read_positions(maps, positions.clamp(-1, 1), features)
    assert result[0].isnan().all()
    assert not result[1:].isnan().any()
