"""Features of a network that was trained on another task, frozen, below a readout that is trained on neurons.

Cadena et al. 2019 (PLoS Comput. Biol. 15, e1006897): VGG19 trained to name objects predicts V1 as well as networks trained on V1 do. The
weights come as a state dictionary with torchvision's names, from a file of the submission; sizes, strides and pools follow from names
and shapes, so that any VGG (with batch normalisation or without) and any ResNet can be given. Without a file a VGG19 with random weights,
their control, takes its place.
"""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import PretrainedConfiguration
from sensorium_pipeline.models.cores.base import Core, channels_last

_ADVICE = "Give a state dictionary of torchvision's VGG or ResNet, and a layer such as features.10 or layer2"
# Channels of VGG19's convolutions, block by block (Simonyan & Zisserman 2015).
_VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def read_network(path: Path) -> dict[str, Tensor]:
    """State dictionary of a pretrained network; read with `weights_only=True`, so nothing in it is executed.

    Raises:
        InputError: when the file is missing or holds anything but named tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"no readable weights ({type(error).__name__})", where=path, advice=_ADVICE) from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError("not a state dictionary (names to tensors)", where=path, advice=_ADVICE)
    return dict(state)


def random_vgg(generator: torch.Generator, blocks: tuple[tuple[int, ...], ...] = _VGG19) -> dict[str, Tensor]:
    """Convolutions of a VGG with random weights (He et al. 2015), under torchvision's names."""
    state: dict[str, Tensor] = {}
    before, index = 3, 0
    for block in blocks:
        for channels in block:
            spread = math.sqrt(2 / (9 * before))
            state[f"features.{index}.weight"] = spread * torch.randn(channels, before, 3, 3, generator=generator)
            state[f"features.{index}.bias"] = torch.zeros(channels)
            before, index = channels, index + 2
        index += 1
    return state


class PretrainedCore(Core):
    """Images to batch-normalised features of a frozen network.

    Args:
        configuration: which layer.
        network: weights under torchvision's names; they are not trained, and not part of the encoder's state.

    Raises:
        InputError: when the network has no such layer, or is neither a VGG nor a ResNet.
    """

    def __init__(self, configuration: PretrainedConfiguration, network: Mapping[str, Tensor]) -> None:
        super().__init__()
        where = f"weights {configuration.weights or 'drawn at random'}, layer {configuration.layer}"
        steps = _vgg(network, configuration.layer) if configuration.layer.startswith("features.") else _resnet(network, configuration.layer)
        if not steps:
            raise InputError("the network has no such layer", where=where, advice=_ADVICE)
        self.steps = nn.ModuleList(steps)
        first = next(self.steps.buffers())
        if first.ndim != 4 or first.shape[1] != 3:
            raise InputError(f"its first layer has the shape {tuple(first.shape)}, not one for colours", where=where, advice=_ADVICE)
        with torch.no_grad():
            self.channels = self._features(torch.zeros(1, 3, 64, 64)).shape[1]
        self.norm = nn.BatchNorm2d(self.channels, momentum=configuration.batch_norm_momentum)

    def forward(self, images: Tensor, behavior: Tensor | None = None) -> Tensor:
        """Features (trials, channels, rows, columns); see `Core.forward`.

        Grey images z-scored over a session stand for colours z-scored over ImageNet, three times the same.
        """
        with torch.no_grad():
            maps = self._features(images.expand(-1, 3, -1, -1))
        normalised: Tensor = self.norm(channels_last(maps))
        return normalised

    def _features(self, maps: Tensor) -> Tensor:
        for step in self.steps:
            maps = step(maps)
        return maps


class _Convolution(nn.Module):
    """A frozen convolution, its batch normalisation folded in, padded to keep the shape; then ReLU where wanted."""

    weight: Tensor
    bias: Tensor

    def __init__(self, network: Mapping[str, Tensor], name: str, norm: str, *, stride: int = 1, rectified: bool = True) -> None:
        super().__init__()
        weight = network[f"{name}.weight"].float()
        bias = network.get(f"{name}.bias", torch.zeros(weight.shape[0])).float()
        if f"{norm}.running_mean" in network:
            scale = network[f"{norm}.weight"] / (network[f"{norm}.running_var"] + 1e-5).sqrt()
            weight, bias = weight * scale[:, None, None, None], (bias - network[f"{norm}.running_mean"]) * scale + network[f"{norm}.bias"]
        self.register_buffer("weight", channels_last(weight), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.stride, self.rectified = stride, rectified

    def forward(self, maps: Tensor) -> Tensor:
        maps = functional.conv2d(maps, self.weight, self.bias, stride=self.stride, padding=self.weight.shape[-1] // 2)
        return functional.relu(maps, inplace=True) if self.rectified else maps


class _Residual(nn.Module):
    """One block of a ResNet: two convolutions (or three, the middle one with the stride), added to what came in."""

    def __init__(self, network: Mapping[str, Tensor], name: str, stride: int) -> None:
        super().__init__()
        number = 3 if f"{name}.conv3.weight" in network else 2
        strided = 2 if number == 3 else 1
        self.path = nn.Sequential(
            *(
                _Convolution(network, f"{name}.conv{i}", f"{name}.bn{i}", stride=stride if i == strided else 1, rectified=i < number)
                for i in range(1, number + 1)
            )
        )
        around = f"{name}.downsample"
        self.around = (
            _Convolution(network, f"{around}.0", f"{around}.1", stride=stride, rectified=False) if f"{around}.0.weight" in network else None
        )

    def forward(self, maps: Tensor) -> Tensor:
        around = maps if self.around is None else self.around(maps)
        return functional.relu(self.path(maps) + around)


def _vgg(network: Mapping[str, Tensor], layer: str) -> list[nn.Module]:
    """Steps up to a convolution of a VGG, named by its index in `features`; a gap between indices is a pool."""
    last = int(layer.removeprefix("features.")) if re.fullmatch(r"features\.\d+", layer) else -1
    names = (re.fullmatch(r"features\.(\d+)\.weight", name) for name in network)
    indices = sorted(int(match[1]) for match in names if match and network[match[0]].ndim == 4)
    if last not in indices:
        return []
    steps: list[nn.Module] = []
    expected = 0
    for index in indices[: indices.index(last) + 1]:
        if index > expected:
            steps.append(nn.MaxPool2d(2))
        steps.append(_Convolution(network, f"features.{index}", f"features.{index + 1}"))
        expected = index + (3 if f"features.{index + 1}.running_mean" in network else 2)
    return steps


def _resnet(network: Mapping[str, Tensor], layer: str) -> list[nn.Module]:
    """Steps up to the end of a stage of a ResNet, "layer1" to "layer4"."""
    last = int(layer.removeprefix("layer")) if re.fullmatch(r"layer[1-4]", layer) else 0
    if not last or f"layer{last}.0.conv1.weight" not in network or "conv1.weight" not in network:
        return []
    steps: list[nn.Module] = [_Convolution(network, "conv1", "bn1", stride=2), nn.MaxPool2d(3, 2, 1)]
    for stage in range(1, last + 1):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in network:
            steps.append(_Residual(network, f"layer{stage}.{block}", stride=2 if stage > 1 and block == 0 else 1))
            block += 1
    return steps
