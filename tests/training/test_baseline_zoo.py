"""Every starter that `sensorium new-submission` writes: trained at the demo's size on cells with known truth, and built at full size."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starters import correlation, starter

from sensorium_pipeline.models.baselines import BASELINES, baseline
from sensorium_pipeline.models.configuration import ModelConfiguration
from sensorium_pipeline.models.cores.pretrained import random_vgg
from sensorium_pipeline.models.encoder import Encoder
from sensorium_pipeline.models.inputs import ModelInputs
from sensorium_pipeline.scoring import score_predictions
from sensorium_pipeline.submissions.interface import Context, TrainableModel
from sensorium_pipeline.training.data import SessionDescription, Statistics
from sensorium_pipeline.training.trainer import predict_inputs

# Correlation with the true rates of unseen images that each must pass, far above chance: 400 trials and 8 epochs are not enough for
# more, and the order of the models is no promise.
LEAST = {
    "ln": 0.05,
    "energy": 0.6,
    "subunit": 0.2,
    "factorised": 0.2,
    "cnn": 0.3,
    "rotation": 0.4,
    "squeeze": 0.25,
    "pretrained": 0.2,
    "transformer": 0.25,
}


def parameters_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {**tomllib.loads((folder / "submission.toml").read_text()).get("parameters", {}), **more}


def test_every_baseline_has_a_starter_and_a_paper() -> None:
    assert set(LEAST) == set(BASELINES)
    assert all(any(letter.isdigit() for letter in each.paper) for each in BASELINES.values())


@pytest.mark.parametrize("track", ["sensorium", "sensorium+"])
@pytest.mark.parametrize("template", list(LEAST))
def test_learns_at_the_size_of_the_demo(make_session: Callable, tmp_path: Path, template: str, track: str) -> None:
    plus = track == "sensorium+"
    # In the second track the way of behaviour and pupil through training is what is new: a few steps show it.
    made = make_session("a", 0, neurons=40, training=60 if plus else 400, shape=(20, 30), behavior=plus)
    module = starter(tmp_path / "mine", template)
    parameters = parameters_of(tmp_path / "mine", size="demo", training={"epochs": 1 if plus else 8})
    if template == "pretrained":
        torch.save(random_vgg(torch.Generator().manual_seed(1), ((24, 24),)), tmp_path / "mine" / "vgg.pth")
        parameters["model"] = {"core": {"weights": "vgg.pth", "layer": "features.2"}}
    context = Context([made.data.description], track, 0, "cpu", parameters, tmp_path / "mine")
    model = module.build(context)
    assert isinstance(model, TrainableModel)
    model.train([made.data])
    prediction = model.predict("a", made.unseen)
    again = module.build(context)
    again.load_state(model.state())
    assert np.array_equal(again.predict("a", made.unseen), prediction)
    if plus:
        assert made.unseen.behavior is not None
        shifted = type(made.unseen)(made.unseen.images, made.unseen.behavior + 1, made.unseen.pupil_center)
        assert not np.array_equal(model.predict("a", shifted), prediction)
    else:
        assert correlation(prediction, made.rates) > LEAST[template]


def full_size(configuration: ModelConfiguration) -> Encoder:
    rng = np.random.default_rng(0)
    ones = np.ones(30, np.float32)
    statistics = Statistics(110.0, 60.0, ones, ones, ones[:3], ones[:3], ones[:2], ones[:2])
    description = SessionDescription("a", np.arange(30), rng.uniform(-300, 300, (30, 3)).astype(np.float32), (36, 64), statistics)
    return Encoder.for_sessions(configuration, [description], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", list(BASELINES))
def test_can_be_trained_at_full_size(architecture: str) -> None:
    encoder = full_size(baseline(architecture, "sensorium+"))
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    inputs = ModelInputs(draw(2, 1, 36, 64), draw(2, 3), draw(2, 2))
    (encoder("a", inputs, generator).sum() + encoder.regularizer("a")).backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    rates = predict_inputs(encoder, "a", inputs, 2)
    assert rates.shape == (2, 30)
    assert (rates > 0).all()


def test_the_mean_response_is_the_floor_of_the_ranking(make_session: Callable, tmp_path: Path) -> None:
    made = make_session("a", 0, neurons=20, training=200)
    model = starter(tmp_path / "mine", "mean").build(Context([made.data.description], "sensorium", 0, "cpu", {}, tmp_path))
    model.train([made.data])
    prediction = model.predict("a", made.unseen)
    assert prediction.shape == made.rates.shape
    rng = np.random.default_rng(0)
    image_id = np.repeat(np.arange(len(prediction)), 10)
    mean, precision = made.data.training.responses.mean(0), made.data.description.statistics.response_precision
    shown = rng.gamma(4, mean / 4, made.rates.shape)[image_id]
    score = score_predictions(prediction[image_id], rng.gamma(4, shown / 4), image_id, precision)
    assert score.metrics.single_trial_correlation == 0
    assert score.metrics.correlation_to_average == 0
    assert score.metrics.feve == pytest.approx(0, abs=0.1)
