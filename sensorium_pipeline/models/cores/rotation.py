"""The rotation-equivariant core: every feature in all orientations, with one set of weights.

Ecker, Sinz, Froudarakis et al. 2019 (ICLR, arXiv:1809.10504). Filters are sums of two-dimensional Hermite functions, which can be
evaluated in a rotated frame exactly; so one set of coefficients gives the filter in every orientation. Hidden layers see the
orientations of the layer below relative to their own: turning the image turns the maps and moves them on by so many orientations.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.models.configuration import RotationConfiguration
from sensorium_pipeline.models.cores.base import Core, channels_last, roughness


def rotated_hermite(side: int, rotations: int) -> Tensor:
    """Hermite functions of rank below `side` in every orientation: (rotations, functions, side, side), each of unit energy.

    The width is chosen so that the functions of highest rank just fit into the square.
    """
    rank = max(side - 1, 1)
    half = side // 2
    width = (half + 0.5) / math.sqrt(2 * rank + 1)
    steps = torch.arange(-half, half + 1, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    frames = []
    for rotation in range(rotations):
        angle = 2 * math.pi * rotation / rotations
        along = _hermite((x * math.cos(angle) + y * math.sin(angle)) / width, rank)
        across = _hermite((y * math.cos(angle) - x * math.sin(angle)) / width, rank)
        frames.append(torch.stack([along[n] * across[m] for n in range(rank) for m in range(rank - n)]))
    functions = torch.stack(frames)
    return (functions / functions[:1].square().sum((2, 3), keepdim=True).sqrt()).float()


def _hermite(position: Tensor, number: int) -> list[Tensor]:
    """The first Hermite functions, by their recurrence."""
    found = [torch.exp(-position.square() / 2)]
    for order in range(1, number):
        before = found[order - 2] * math.sqrt((order - 1) / order) if order > 1 else 0.0
        found.append(position * math.sqrt(2 / order) * found[order - 1] - before)
    return found


class RotationCore(Core):
    """Images to feature maps; channels are all features of the first orientation, then of the next.

    Args:
        configuration: sizes.
        behavior: whether behaviour is added to the first layer, the same in all orientations.
        generator: of the initial weights.
    """

    first_functions: Tensor
    hidden_functions: Tensor

    def __init__(self, configuration: RotationConfiguration, behavior: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.rotations, self.features = configuration.rotations, configuration.features
        self.channels = self.rotations * self.features
        self.laplace_weight = configuration.laplace_weight
        first = rotated_hermite(configuration.input_kernel, self.rotations)
        hidden = rotated_hermite(configuration.hidden_kernel, self.rotations)
        self.register_buffer("first_functions", first, persistent=False)
        self.register_buffer("hidden_functions", hidden, persistent=False)
        self.first = _normal((self.features, first.shape[1]), first.shape[1], generator)
        shape = (self.features, self.features, self.rotations, hidden.shape[1])
        self.hidden = nn.ParameterList(_normal(shape, math.prod(shape[1:]), generator) for _ in range(configuration.layers - 1))
        self.behavior = nn.Parameter(torch.zeros(self.features, 3)) if behavior else None
        momentum = configuration.batch_norm_momentum
        self.norms = nn.ModuleList(nn.BatchNorm2d(self.features, momentum=momentum) for _ in range(configuration.layers))

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Feature maps (trials, rotations x features, y - kernel + 1, x - kernel + 1); see `Core.forward`."""
        maps = functional.conv2d(images, self._first_kernels()[:, None])
        if behavior is not None and self.behavior is not None:
            maps = maps + (behavior @ self.behavior.T).repeat(1, self.rotations)[:, :, None, None]
        maps = self._activate(maps, 0)
        for layer, coefficients in enumerate(self.hidden, start=1):
            kernels = self._hidden_kernels(coefficients)
            maps = self._activate(functional.conv2d(maps, kernels, padding=kernels.shape[-1] // 2), layer)
        return maps

    def _first_kernels(self) -> Tensor:
        return torch.einsum("fm,rmyx->rfyx", self.first, self.first_functions).flatten(0, 1)

    def _hidden_kernels(self, coefficients: Tensor) -> Tensor:
        """Kernels (rotations x features, rotations x features, y, x): those of an orientation turn, and see the others turned back."""
        turned = torch.stack([coefficients.roll(rotation, dims=2) for rotation in range(self.rotations)])
        kernels = torch.einsum("rfgsm,rmyx->rfsgyx", turned, self.hidden_functions)
        return channels_last(kernels.flatten(0, 1).flatten(1, 2))

    def _activate(self, maps: Tensor, layer: int) -> Tensor:
        """Batch normalisation of features over all orientations, and ELU."""
        trials, _, height, width = maps.shape
        # With channels last, orientations beside the columns are a view: no copy.
        features = channels_last(maps).permute(0, 2, 3, 1).reshape(trials, height, width * self.rotations, self.features)
        features = functional.elu(self.norms[layer](features.permute(0, 3, 1, 2)), inplace=True)
        return features.permute(0, 2, 3, 1).reshape(trials, height, width, self.channels).permute(0, 3, 1, 2)

    def regularizer(self) -> Tensor:
        """Weighted roughness of the first layer's kernels, in the first orientation."""
        kernels = torch.einsum("fm,myx->fyx", self.first, self.first_functions[0])
        return self.laplace_weight * roughness(kernels)


def _normal(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(inputs))
