"""Feature maps read at one position a neuron: the costly part of the Gaussian readout.

Reading with `grid_sample` first makes a (trials, channels, neurons) tensor, 262 MB for a batch of 128 and 8000 neurons, writes
it, reads it and keeps it for the backward pass. Interpolation and the sum over channels are both linear, so each of the four
pixels around a position can be multiplied with the neuron's features where it lies, and only four numbers a trial and neuron
are kept. On CPU this is done by compiled loops over channels-last maps, one thread a block of trials (or neurons, for their
features), so the sums do not depend on the number of threads. On other devices `grid_sample` does it for blocks of neurons.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sensorium_pipeline.models.compiled import take_compiled

# Sums over channels may be reordered (that makes them vector instructions); NaN and infinity keep their meaning.
take_compiled(Path(__file__))
# Compiled at the first import and kept beside this file.
_options: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    "boundscheck": False,
    "error_model": "numpy",
    "cache": True,
}
_matrix, _cube = "float32[:, ::1]", "float32[:, :, ::1]"

_NEURONS_PER_BLOCK = 2048


def read_positions(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    """Interpolate feature maps at each neuron's position and weigh them with the neuron's features.

    Args:
        maps: (trials, channels, y, x); channels-last in memory avoids a copy.
        positions: (trials, neurons, 2) or (1, neurons, 2) = x, y in -1..1 from the centre of the first to that of the last pixel
            (bilinear, align_corners); outside the maps are zero.
        features: (neurons, channels).

    Returns:
        (trials, neurons).
    """
    if maps.device.type == "cpu" and maps.dtype == torch.float32:
        result: Tensor = _ReadPositions.apply(maps, positions, features)
        return result
    blocks = range(0, features.shape[0], _NEURONS_PER_BLOCK)
    positions = positions.expand(maps.shape[0], -1, -1)
    read = [_grid_sample(maps, positions[:, i : i + _NEURONS_PER_BLOCK], features[i : i + _NEURONS_PER_BLOCK]) for i in blocks]
    return torch.cat(read, dim=1)


def _grid_sample(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    # Recomputed in the backward pass, so that one block's samples are all that is ever kept.
    def read(maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
        samples = functional.grid_sample(maps, positions[:, :, None], mode="bilinear", padding_mode="zeros", align_corners=True)
        return torch.einsum("bcn,nc->bn", samples[..., 0], features)

    result: Tensor = checkpoint(read, maps, positions, features, use_reentrant=False, preserve_rng_state=False)
    return result


class _ReadPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, positions: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(maps, positions, features)
        trials, _, height, width = maps.shape
        pixels = _pixels(maps)
        result = np.empty((trials, features.shape[0]), np.float32)
        ctx.products = np.empty((trials, features.shape[0], 4), np.float32)
        where, weights = positions.detach().contiguous().numpy(), features.detach().contiguous().numpy()
        _in_blocks(trials, lambda start, stop: _forward(pixels, where, weights, height, width, ctx.products, result, start, stop))
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        maps, positions, features = ctx.saved_tensors
        trials, channels, height, width = maps.shape
        neurons = features.shape[0]
        upstream = gradients[0].contiguous().numpy()
        where, weights = positions.detach().contiguous().numpy(), features.detach().contiguous().numpy()
        to_maps = to_positions = to_features = None
        if ctx.needs_input_grad[0]:
            pixels = np.zeros((trials, height * width, channels), np.float32)
            _in_blocks(trials, lambda start, stop: _backward_maps(upstream, where, weights, height, width, pixels, start, stop))
            to_maps = torch.from_numpy(pixels).view(trials, height, width, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            moved = np.empty((trials, neurons, 2), np.float32)
            _in_blocks(trials, lambda start, stop: _backward_positions(upstream, where, ctx.products, height, width, moved, start, stop))
            to_positions = torch.from_numpy(moved)
            if positions.shape[0] == 1:
                to_positions = to_positions.sum(0, keepdim=True)
        if ctx.needs_input_grad[2]:
            source = _pixels(maps)
            summed = np.zeros((neurons, channels), np.float32)
            _in_blocks(neurons, lambda start, stop: _backward_features(upstream, where, source, height, width, summed, start, stop))
            to_features = torch.from_numpy(summed)
        return to_maps, to_positions, to_features


def _pixels(maps: Tensor) -> NDArray[np.float32]:
    """(trials, pixels, channels) of (trials, channels, y, x), without a copy where they are channels-last."""
    return maps.detach().permute(0, 2, 3, 1).contiguous().flatten(1, 2).numpy()


def _in_blocks(total: int, work: Callable[[int, int], None]) -> None:
    """Call `work(start, stop)` for as many blocks as PyTorch may use threads; the blocks write to different places."""
    threads = min(torch.get_num_threads(), total)
    if threads <= 1:
        work(0, total)
        return
    edges = [total * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, edges[:-1], edges[1:]))


@numba.njit(**_options)
def _corner(where: Any, trial: int, neuron: int, height: int, width: int) -> Any:
    """Pixel up and left of a position, and how far beyond it the position lies, in pixels; far outside: one that nobody reads."""
    row = trial if where.shape[0] > 1 else 0
    x = (where[row, neuron, 0] + np.float32(1)) * np.float32(0.5 * (width - 1))
    y = (where[row, neuron, 1] + np.float32(1)) * np.float32(0.5 * (height - 1))
    if not (x > -1 and x < width and y > -1 and y < height):
        return -2, -2, np.float32(0), np.float32(0)
    left, top = np.floor(x), np.floor(y)
    return int(top), int(left), np.float32(y - top), np.float32(x - left)


@numba.njit(f"void({_cube}, {_cube}, {_matrix}, int64, int64, {_cube}, {_matrix}, int64, int64)", **_options)
def _forward(pixels: Any, where: Any, features: Any, height: int, width: int, products: Any, result: Any, start: int, stop: int) -> None:
    neurons, channels = features.shape
    for trial in range(start, stop):
        for neuron in range(neurons):
            top, left, down, right = _corner(where, trial, neuron, height, width)
            total = np.float32(0)
            for k in range(4):
                y, x = top + k // 2, left + k % 2
                product = np.float32(0)
                if y >= 0 and y < height and x >= 0 and x < width:
                    pixel = y * width + x
                    for c in range(channels):
                        product += pixels[trial, pixel, c] * features[neuron, c]
                products[trial, neuron, k] = product
                total += (down if k // 2 else np.float32(1) - down) * (right if k % 2 else np.float32(1) - right) * product
            result[trial, neuron] = total


@numba.njit(f"void({_matrix}, {_cube}, {_matrix}, int64, int64, {_cube}, int64, int64)", **_options)
def _backward_maps(upstream: Any, where: Any, features: Any, height: int, width: int, pixels: Any, start: int, stop: int) -> None:
    neurons, channels = features.shape
    for trial in range(start, stop):
        for neuron in range(neurons):
            top, left, down, right = _corner(where, trial, neuron, height, width)
            for k in range(4):
                y, x = top + k // 2, left + k % 2
                if y >= 0 and y < height and x >= 0 and x < width:
                    weight = (down if k // 2 else np.float32(1) - down) * (right if k % 2 else np.float32(1) - right)
                    scale = upstream[trial, neuron] * weight
                    pixel = y * width + x
                    for c in range(channels):
                        pixels[trial, pixel, c] += scale * features[neuron, c]


@numba.njit(f"void({_matrix}, {_cube}, {_cube}, int64, int64, {_cube}, int64, int64)", **_options)
def _backward_positions(upstream: Any, where: Any, products: Any, height: int, width: int, moved: Any, start: int, stop: int) -> None:
    for trial in range(start, stop):
        for neuron in range(products.shape[1]):
            _, _, down, right = _corner(where, trial, neuron, height, width)
            product = products[trial, neuron]
            along_x = (product[1] - product[0]) * (np.float32(1) - down) + (product[3] - product[2]) * down
            along_y = (product[2] - product[0]) * (np.float32(1) - right) + (product[3] - product[1]) * right
            moved[trial, neuron, 0] = upstream[trial, neuron] * along_x * np.float32(0.5 * (width - 1))
            moved[trial, neuron, 1] = upstream[trial, neuron] * along_y * np.float32(0.5 * (height - 1))


@numba.njit(f"void({_matrix}, {_cube}, {_cube}, int64, int64, {_matrix}, int64, int64)", **_options)
def _backward_features(upstream: Any, where: Any, pixels: Any, height: int, width: int, summed: Any, start: int, stop: int) -> None:
    channels = summed.shape[1]
    # A few hundred neurons' sums stay in the cache while all trials pass by.
    for first in range(start, stop, 512):
        for trial in range(pixels.shape[0]):
            for neuron in range(first, min(first + 512, stop)):
                top, left, down, right = _corner(where, trial, neuron, height, width)
                for k in range(4):
                    y, x = top + k // 2, left + k % 2
                    if y >= 0 and y < height and x >= 0 and x < width:
                        weight = (down if k // 2 else np.float32(1) - down) * (right if k % 2 else np.float32(1) - right)
                        scale = upstream[trial, neuron] * weight
                        pixel = y * width + x
                        for c in range(channels):
                            summed[neuron, c] += scale * pixels[trial, pixel, c]
