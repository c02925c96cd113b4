"""A network that saw no neuron, and the readout that is fitted to its features."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starters import correlation, starter

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.submissions.features import FittedReadout
from sensorium_pipeline.submissions.interface import Context, FeatureModel
from sensorium_pipeline.training.ridge import PENALTIES, fit_ridge


def ridge_by_hand(features: np.ndarray, responses: np.ndarray, penalty: float) -> np.ndarray:
    centred = features - features.mean(0)
    return np.linalg.solve(centred.T @ centred + penalty * np.eye(features.shape[1]), centred.T @ (responses - responses.mean(0)))


@pytest.mark.parametrize("number", [7, 60])
def test_the_penalty_is_the_one_that_leaving_each_trial_out_would_choose(number: int) -> None:
    rng = np.random.default_rng(number)
    trials = 40
    features = rng.standard_normal((trials, number))
    features = (features - features.mean(0)) / features.std(0)
    responses = features[:, :3] @ rng.standard_normal((3, 4)) + np.array([0.1, 1.0, 5.0, 50.0]) * rng.standard_normal((trials, 4))
    squares = np.linalg.svd(features, compute_uv=False) ** 2
    size = squares[squares > 1e-10 * squares.max()].mean()
    errors = np.zeros((len(PENALTIES), 4))
    for i, relative in enumerate(PENALTIES):
        for out in range(trials):
            rest = np.arange(trials) != out
            x, y = features[rest], responses[rest]
            weights = ridge_by_hand(x, y, relative * size)
            errors[i] += ((features[out] - x.mean(0)) @ weights + y.mean(0) - responses[out]) ** 2
    best = np.array(PENALTIES)[errors.argmin(0)] * size
    fitted = fit_ridge(features.astype(np.float32), responses.astype(np.float32))
    for neuron in range(4):
        weights = ridge_by_hand(features, responses[:, [neuron]], best[neuron])
        np.testing.assert_allclose(fitted.weights[:, neuron], weights[:, 0], rtol=2e-3, atol=2e-4)


def test_features_that_do_not_vary_are_ignored() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.standard_normal((30, 3)), np.full((30, 2), 7.0)], axis=1).astype(np.float32)
    responses = features[:, :1] @ np.ones((1, 2), np.float32)
    fitted = fit_ridge(features, responses)
    assert not fitted.weights[3:].any()
    elsewhere = features.copy()
    elsewhere[:, 3:] = -100
    np.testing.assert_allclose(fitted.predict(elsewhere), responses, atol=0.01)
    constant = fit_ridge(np.ones((10, 2), np.float32), responses[:10])
    np.testing.assert_allclose(constant.predict(np.zeros((3, 2), np.float32)), np.tile(responses[:10].mean(0), (3, 1)), rtol=1e-5)


class Vectors:
    def __init__(self, network: FeatureModel) -> None:
        self.network = network

    def features(self, images: np.ndarray) -> np.ndarray:
        return self.network.features(images)


class Maps(Vectors):
    def features(self, images: np.ndarray) -> np.ndarray:
        return self.network.features(images).reshape(len(images), -1, images.shape[1] // 3, images.shape[2] // 3)


@pytest.mark.parametrize("track", ["sensorium", "sensorium+"])
@pytest.mark.parametrize("kind", [Vectors, Maps])
def test_a_readout_is_fitted_to_vectors_and_to_maps(
    make_session: Callable, tmp_path: Path, kind: type[Vectors], track: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two penalties show that one is chosen.
    monkeypatch.setattr("sensorium_pipeline.submissions.features.FEATURE_WEIGHTS", (0.01, 1.0))
    plus = track == "sensorium+"
    made = [make_session(name, seed, neurons=20, training=250, shape=(18, 24), behavior=plus) for name, seed in (("a", 1), ("b", 2))]
    context = Context([m.data.description for m in made], track, 0, "cpu", {}, tmp_path)
    network = starter(tmp_path / "mine", "features").build(context)
    assert isinstance(network, FeatureModel)
    model = FittedReadout(context, kind(network))
    model.train([m.data for m in made])
    predictions = [model.predict(m.data.description.name, m.unseen) for m in made]
    for m, prediction in zip(made, predictions, strict=True):
        assert prediction.dtype == np.float32
        assert correlation(prediction, m.rates) > 0.35
    again = FittedReadout(context, kind(network))
    with pytest.raises(InputError, match="no readout was fitted"):
        again.predict("a", made[0].unseen)
    again.load_state({name: np.array(value) for name, value in model.state().items()})
    assert np.array_equal(again.predict("b", made[1].unseen), predictions[1])
    assert again.predict("b", made[1].unseen[:0]).shape == (0, 20)


@pytest.mark.parametrize(
    ("features", "text"),
    [
        (lambda images: images.mean(), "of shape"),
        (lambda images: images[1:].reshape(len(images) - 1, -1), "of shape"),
        (lambda images: np.full((len(images), 3), np.nan), "NaN"),
        (lambda images: np.array([["a"]] * len(images)), "Return"),
        (lambda images: np.zeros((len(images), 20_000), np.float32), "at most"),
    ],
)
def test_what_is_no_features_is_refused(make_session: Callable, tmp_path: Path, features: Callable, text: str) -> None:
    made = make_session("a", 1)
    network = type("Network", (), {"features": staticmethod(features)})()
    model = FittedReadout(Context([made.data.description], "sensorium", 0, "cpu", {}, tmp_path), network)
    with pytest.raises(InputError, match=text):
        model.train([made.data])
