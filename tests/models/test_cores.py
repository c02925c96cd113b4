"""What each core promises beside shapes: invariances and symmetries, frozen weights, and images it cannot take."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.configuration import (
    EnergyConfiguration,
    FactorisedConfiguration,
    ModelConfiguration,
    PretrainedConfiguration,
    RotationConfiguration,
    SqueezeExcitationConfiguration,
    SubunitConfiguration,
    TransformerConfiguration,
)
from sensorium_pipeline.models.cores import Core, build_core
from sensorium_pipeline.models.cores.pretrained import PretrainedCore, random_vgg, read_network
from sensorium_pipeline.models.encoder import Encoder, encoder_state
from sensorium_pipeline.models.readouts.factorised import FactorisedReadout


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(core: object, **more: object) -> Core:
    return build_core(ModelConfiguration.model_validate({"core": core, **more}), seeded()).eval()


def grating(phase: float, angle: float, wavelength: float, side: int = 33) -> Tensor:
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 2, indexing="ij")
    return torch.cos(2 * torch.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle)) + phase)[None, None]


def test_energy_tells_orientation_and_not_phase() -> None:
    core = built(EnergyConfiguration(wavelengths=(8.0,), orientations=4, kernel=21))
    with torch.no_grad():
        found = torch.stack([core(grating(phase, 0.0, 8.0))[0, :, 16, 16] for phase in np.linspace(0, np.pi, 7)])
    assert found[:, 0].std() < 0.05 * found[:, 0].mean()
    assert found[0, 0] > 10 * found[0, 2]
    with torch.no_grad():
        assert core(torch.ones(1, 1, 33, 33))[0, :, 16, 16].abs().max() < 1e-3


@pytest.mark.parametrize("rotations", [4, 8])
def test_turning_the_image_turns_the_maps_and_moves_orientations_on(rotations: int) -> None:
    configuration = RotationConfiguration(rotations=rotations, features=3, input_kernel=7, hidden_kernel=5)
    core = built(configuration)
    image = torch.randn(2, 1, 21, 21, generator=seeded(1))
    with torch.no_grad():
        maps, turned = (core(each).unflatten(1, (rotations, 3)) for each in (image, torch.rot90(image, -1, (2, 3))))
    expected = torch.rot90(maps, -1, (3, 4)).roll(rotations // 4, dims=1)
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(turned, torch.rot90(maps, -1, (3, 4)), atol=1e-2)


def test_the_gate_sees_the_whole_image() -> None:
    core = built(SqueezeExcitationConfiguration(layers=2, channels=8, input_kernel=3, hidden_kernel=3, reduction=2))
    image = torch.randn(1, 1, 24, 24, generator=seeded(1))
    elsewhere = image.clone()
    elsewhere[..., 12:] *= 3
    with torch.no_grad():
        ratio = core(elsewhere)[..., 5, 5] / core(image)[..., 5, 5]
    assert (ratio > 0).all()
    assert ratio.std() > 1e-4


def test_subunits_are_half_squared() -> None:
    core = built(SubunitConfiguration(channels=4, input_kernel=5))
    image = torch.randn(1, 1, 12, 12, generator=seeded(1))
    with torch.no_grad():
        once, twice, turned = core(image), core(2 * image), core(-image)
    torch.testing.assert_close(twice, 4 * once)
    assert (once * turned == 0).all()
    assert once.max() > 0


def test_tokens_lie_where_their_patches_lay() -> None:
    core = built(TransformerConfiguration(patch=4, stride=4, channels=8, heads=2, blocks=1, hidden=16), image_shape=(12, 20))
    with torch.no_grad():
        for parameter in core.blocks.parameters():
            parameter.zero_()
        plain = core(torch.zeros(1, 1, 12, 20))
        image = torch.zeros(1, 1, 12, 20)
        image[..., 4:8, 12:16] = 1
        changed = (core(image) != plain).any(1)[0]
    assert plain.shape == (1, 8, 3, 5)
    assert changed.nonzero().tolist() == [[1, 3]]


def test_every_token_attends_to_the_whole_image() -> None:
    core = built(TransformerConfiguration(patch=4, stride=4, channels=8, heads=2, blocks=1, hidden=16), image_shape=(12, 20))
    image = torch.zeros(1, 1, 12, 20)
    image[..., 4:8, 12:16] = 1
    with torch.no_grad():
        assert (core(image) != core(torch.zeros(1, 1, 12, 20))).any(1).all()


def write_resnet(path: Path, bottleneck: bool) -> None:
    """A ResNet of two stages with few channels, under torchvision's names."""
    state, generator = {}, seeded(3)

    def convolution(name: str, norm: str, inputs: int, outputs: int, side: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, generator=generator) / (side * inputs**0.5)
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.full((outputs,), 1.5), torch.full((outputs,), 0.1)
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = torch.full((outputs,), 0.2), torch.full((outputs,), 0.7)

    convolution("conv1", "bn1", 3, 4, 7)
    before = 4
    for stage, channels in ((1, 4), (2, 6)):
        wide = 2 * channels if bottleneck else channels
        for block in range(2):
            name = f"layer{stage}.{block}"
            sizes = [(before, channels, 1), (channels, channels, 3), (channels, wide, 1)] if bottleneck else [(before, channels, 3)]
            sizes = sizes if bottleneck else [*sizes, (channels, wide, 3)]
            for i, (inputs, outputs, side) in enumerate(sizes, start=1):
                convolution(f"{name}.conv{i}", f"{name}.bn{i}", inputs, outputs, side)
            if before != wide:
                convolution(f"{name}.downsample.0", f"{name}.downsample.1", before, wide, 1)
            before = wide
    state["fc.weight"] = torch.zeros(10, before)
    torch.save(state, path)


class TestPretrained:
    def test_vgg_is_convolutions_and_pools_in_order(self, tmp_path: Path) -> None:
        network = random_vgg(seeded(2), ((4, 5), (6, 7, 8)))
        torch.save(network, tmp_path / "vgg.pth")
        core = PretrainedCore(PretrainedConfiguration(weights="vgg.pth", layer="features.7"), read_network(tmp_path / "vgg.pth")).eval()
        image = torch.randn(2, 1, 16, 20, generator=seeded(1))
        maps = image.expand(-1, 3, -1, -1)
        for index, pooled in ((0, False), (2, False), (5, True), (7, False)):
            maps = functional.max_pool2d(maps, 2) if pooled else maps
            maps = functional.conv2d(maps, network[f"features.{index}.weight"], network[f"features.{index}.bias"], padding=1).relu()
        with torch.no_grad():
            torch.testing.assert_close(core(image), maps / (1 + 1e-5) ** 0.5, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("bottleneck", [False, True])
    def test_resnet_with_folded_normalisation_equals_the_plain_one(self, tmp_path: Path, bottleneck: bool) -> None:
        write_resnet(tmp_path / "resnet.pth", bottleneck)
        network = read_network(tmp_path / "resnet.pth")
        core = PretrainedCore(PretrainedConfiguration(weights="resnet.pth", layer="layer2"), network).eval()

        def layer(maps: Tensor, name: str, norm: str, stride: int) -> Tensor:
            weight = network[f"{name}.weight"]
            maps = functional.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2)
            return functional.batch_norm(
                maps, *(network[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=1e-5
            )

        image = torch.randn(2, 1, 33, 40, generator=seeded(1))
        maps = functional.max_pool2d(layer(image.expand(-1, 3, -1, -1), "conv1", "bn1", 2).relu(), 3, 2, 1)
        for name, stride in (("layer1.0", 1), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
            around = (
                layer(maps, f"{name}.downsample.0", f"{name}.downsample.1", stride) if f"{name}.downsample.0.weight" in network else maps
            )
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            for i, each in enumerate(strides, start=1):
                maps = layer(maps, f"{name}.conv{i}", f"{name}.bn{i}", each)
                maps = maps.relu() if i < len(strides) else maps
            maps = (maps + around).relu()
        with torch.no_grad():
            torch.testing.assert_close(core(image), maps / (1 + 1e-5) ** 0.5, atol=1e-5, rtol=1e-4)

    def test_its_weights_are_neither_trained_nor_kept(self, make_description: Callable) -> None:
        configuration = ModelConfiguration(core=PretrainedConfiguration(layer="features.2"))
        encoder = Encoder.for_sessions(configuration, [make_description()], seeded())
        assert {name for name, _ in encoder.core.named_parameters()} == {"norm.weight", "norm.bias"}
        assert not any(name.startswith("core.steps") for name in encoder_state(encoder))

    def test_what_does_not_fit_is_refused(self, tmp_path: Path, make_description: Callable) -> None:
        network = random_vgg(seeded(), ((4,), (4,)))
        for layer in ("features.1", "features.99", "layer1", "classifier"):
            with pytest.raises(InputError, match="no such layer"):
                PretrainedCore(PretrainedConfiguration(layer=layer), network)
        (tmp_path / "text.pth").write_text("hello")
        torch.save([1], tmp_path / "list.pth")
        for name in ("none.pth", "text.pth", "list.pth"):
            with pytest.raises(InputError, match=name):
                read_network(tmp_path / name)
        deep = ModelConfiguration(core=PretrainedConfiguration(layer="features.34"))
        with pytest.raises(InputError, match="too small for this core"):
            Encoder.for_sessions(deep, [make_description(image_shape=(9, 9))], seeded())


def test_factorised_readout_is_mask_times_features() -> None:
    readout = FactorisedReadout(FactorisedConfiguration(feature_weight=0.5), 3, (4, 5), np.array([0.5, 1.0, 2.0], np.float32))
    with torch.no_grad():
        readout.mask.normal_(generator=seeded(1))
        readout.features.normal_(generator=seeded(2))
    maps = torch.randn(2, 3, 4, 5, generator=seeded(3))
    weights = readout.features[:, :, None] * (readout.mask * readout.scale)[:, None]
    expected = torch.einsum("ncp,bcp->bn", weights, maps.flatten(2)) + readout.bias
    torch.testing.assert_close(readout(maps), expected)
    torch.testing.assert_close(readout.regularizer(), 0.5 * weights.abs().sum())
