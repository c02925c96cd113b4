"""The organisers' checkpoints of 2022 predict in our modules what they predicted in theirs."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.checkpoints import load_checkpoint
from sensorium_pipeline.models.configuration import ConvolutionConfiguration
from sensorium_pipeline.models.inputs import ModelInputs

# As printed in the submission tutorial of sinzlab/sensorium, whose model ran at full resolution.
PRINTED = {3438: (0.2734982967, 0.2858245373), 7017: (0.2263530493, 0.4477862716)}
IMAGE_MEAN, IMAGE_STD = 113.5246, 64.5583


def images(test_data: Path, ids: list[int]) -> torch.Tensor:
    folder = test_data / "sensorium" / "test_images"
    grey = np.stack([np.asarray(Image.open(folder / f"{image}.png"), np.float32) for image in ids])
    return torch.from_numpy((grey - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD))[:, None]


def test_ln_checkpoint_reproduces_the_printed_predictions(test_data: Path, checkpoints: Path) -> None:
    encoder = load_checkpoint(checkpoints / "sensorium_ln_model.pth", image_shape=(144, 256))
    with torch.no_grad():
        found = encoder("26872-17-20", ModelInputs(images(test_data, list(PRINTED))))
    assert found.shape == (2, 7776)
    np.testing.assert_allclose(found[:, :2].double().numpy(), np.array(list(PRINTED.values())), rtol=0, atol=1e-6)


# Computed once with the core, readout, shifter and rescaling of neuralpredictors and sinzlab/sensorium: neurons 0, 1 and 5000, images
# 3438 and 7017 at a quarter of their resolution. In track SENSORIUM+ the normalised behaviour and pupil are those of BEHAVIOR and PUPIL.
BEHAVIOR, PUPIL = [[1.0, 0.1, 0.5], [2.0, 0.0, 3.0]], [[0.5, -0.5], [1.0, -1.0]]
THEIRS = {
    "sensorium_ln_model": [[0.1230780, 0.1565167, 0.3901268], [0.4295757, 0.2610264, 0.2844678]],
    "sensorium_sota_model": [[0.0699551, 0.1645898, 0.4675970], [0.1925316, 0.1693993, 0.6084664]],
    "sensorium_p_ln_model": [[0.3706233, 0.2037461, 0.4036844], [0.0262747, 0.1248257, 0.4931599]],
    "sensorium_p_sota_model": [[0.3843096, 0.1670924, 0.5157673], [0.0600843, 0.2470414, 1.3394644]],
}


@pytest.mark.parametrize("name", list(THEIRS))
def test_all_four_checkpoints_predict_what_the_organisers_code_predicts(test_data: Path, checkpoints: Path, name: str) -> None:
    encoder = load_checkpoint(checkpoints / f"{name}.pth", image_shape=(36, 64))
    configuration, plus = encoder.configuration, "_p_" in name
    assert isinstance(configuration.core, ConvolutionConfiguration)
    assert (configuration.core.linear, configuration.behavior, configuration.shifter) == ("ln" in name, plus, plus)
    session, neurons = ("27204-5-13", 7538) if plus else ("26872-17-20", 7776)
    assert encoder.sessions == [session]
    full = images(test_data, list(PRINTED))
    small = torch.nn.functional.interpolate(full, scale_factor=0.25, mode="bilinear", align_corners=False, recompute_scale_factor=False)
    extra = (torch.tensor(BEHAVIOR), torch.tensor(PUPIL)) if plus else ()
    with torch.no_grad():
        rates = encoder(session, ModelInputs(small, *extra))
    assert rates.shape == (2, neurons)
    np.testing.assert_allclose(rates[:, [0, 1, 5000]].numpy(), np.array(THEIRS[name]), rtol=0, atol=1e-6)


def test_behaviour_through_kernel_sums_equals_constant_channels(test_data: Path, checkpoints: Path) -> None:
    core = load_checkpoint(checkpoints / "sensorium_p_sota_model.pth").core
    pictures, behavior = torch.randn(2, 1, 36, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0.2, 3.0], [0.5, 0, 0]])
    channels = torch.cat([pictures, behavior[:, :, None, None].expand(-1, -1, 36, 64)], dim=1)
    with torch.no_grad():
        maps = core.norms[0](torch.nn.functional.conv2d(channels, core.first.weight))
        for layer, block in enumerate(core.hidden, start=1):
            maps = core.norms[layer](block(torch.nn.functional.elu(maps)))
        torch.testing.assert_close(core(pictures, behavior), torch.nn.functional.elu(maps), atol=1e-4, rtol=1e-4)


class TestBadFiles:
    def refused(self, path: Path, text: str) -> None:
        with pytest.raises(InputError, match=text) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)
        assert caught.value.advice

    def test_missing(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none.pth", "no such file")

    def test_no_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "text.pth"
        path.write_text("hello")
        self.refused(path, "nothing but weights")

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "ran",))

        path = tmp_path / "hostile.pth"
        path.write_bytes(pickle.dumps(Payload(), protocol=2))
        self.refused(path, "nothing but weights")
        torch.save({"core": Payload()}, path)
        self.refused(path, "nothing but weights")
        assert not (tmp_path / "ran").exists()

    def test_not_a_state_dictionary(self, tmp_path: Path) -> None:
        torch.save([1, 2], tmp_path / "list.pth")
        self.refused(tmp_path / "list.pth", "state dictionary")

    def test_unknown_missing_and_misshaped_keys(self, tmp_path: Path, checkpoints: Path) -> None:
        original = torch.load(checkpoints / "sensorium_ln_model.pth", map_location="cpu", weights_only=True)
        path = tmp_path / "changed.pth"
        torch.save({**original, "core.extra": torch.zeros(1)}, path)
        self.refused(path, "core.extra")
        torch.save({k: v for k, v in original.items() if not k.endswith("sigma")}, path)
        self.refused(path, "missing.*sigma")
        torch.save({**original, "readout.26872-17-20.bias": torch.zeros(3)}, path)
        self.refused(path, r"bias \(3,\) instead of \(7776,\)")
        torch.save({k: v for k, v in original.items() if "layer2" not in k}, path)
        self.refused(path, "not those of an LN or CNN")
