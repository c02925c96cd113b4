"""The baselines as submissions, and what they reach on a population with known truth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.submissions.baseline import BaselineModel, build
from sensorium_pipeline.submissions.interface import Context, TrainableModel

SMALL = {"model": {"core": {"layers": 2, "channels": 4, "hidden_kernel": 3}}, "training": {"epochs": 2, "batch_size": 16}}


def context(made: list, architecture: str = "cnn", track: str = "sensorium", parameters: dict | None = None) -> Context:
    table = {"architecture": architecture, **(SMALL if parameters is None else parameters)}
    return Context([m.data.description for m in made], track, 0, "cpu", table, Path())


def correlation(model: BaselineModel, made: list) -> float:
    found = []
    for m in made:
        prediction = model.predict(m.data.description.name, m.unseen)
        found += [np.corrcoef(prediction[:, n], m.rates[:, n])[0, 1] for n in range(prediction.shape[1])]
    return float(np.mean(found))


@pytest.mark.parametrize("track", ["sensorium", "sensorium+"])
@pytest.mark.parametrize("architecture", ["ln", "cnn"])
def test_trains_predicts_and_is_put_away(make_session: Callable, architecture: str, track: str) -> None:
    made = [make_session("a", 1, behavior=track == "sensorium+"), make_session("b", 2, neurons=5, behavior=track == "sensorium+")]
    model = build(context(made, architecture, track))
    assert isinstance(model, TrainableModel)
    model.train([m.data for m in made])
    predictions = [model.predict(m.data.description.name, m.unseen) for m in made]
    for m, prediction in zip(made, predictions, strict=True):
        assert prediction.shape == m.rates.shape
        assert prediction.dtype == np.float32
        assert np.isfinite(prediction).all()
    again = build(context(made, architecture, track))
    again.load_state({name: np.array(value) for name, value in model.state().items()})
    assert np.array_equal(again.predict("b", made[1].unseen), predictions[1])


def test_predictions_are_in_standardised_units(make_session: Callable) -> None:
    made = make_session("a", 1, training=200)
    statistics = made.data.description.statistics
    model = build(context([made]))
    model.train([made.data])
    expected = (made.data.training.responses * statistics.response_precision).mean()
    assert model.predict("a", made.unseen).mean() == pytest.approx(expected, rel=0.25)
    assert made.data.training.responses.mean() > 1.5 * expected


@pytest.mark.slow
def test_cnn_beats_ln_on_energy_cells_in_the_demo_configuration(make_session: Callable) -> None:
    # A smaller image and half of the demo's epochs, which is enough for the order: LN cannot hold an energy cell.
    made = [make_session("a", 0, neurons=60, training=700, shape=(24, 36))]
    parameters = {"size": "demo", "training": {"epochs": 12}}
    reached = {}
    for architecture in ("ln", "cnn"):
        model = build(context(made, architecture, "sensorium", parameters))
        model.train([m.data for m in made])
        reached[architecture] = correlation(model, made)
    assert reached["cnn"] > 0.5
    assert reached["cnn"] > reached["ln"] + 0.25


class TestBadInput:
    @pytest.mark.parametrize(
        ("parameters", "text"),
        [
            ({"architecture": "perceptron"}, "unknown architecture"),
            ({"sizes": 3}, r"parameters\.sizes"),
            ({"training": {"epochs": 0}}, r"parameters\.training\.epochs"),
            ({"model": {"core": {"layers": "many"}}}, r"core\.convolution\.layers"),
            ({"size": "huge"}, r"parameters\.size"),
        ],
    )
    def test_parameters(self, make_session: Callable, parameters: dict, text: str) -> None:
        with pytest.raises(InputError, match=text):
            build(context([make_session("a", 1)], parameters=parameters))

    def test_sessions_and_inputs(self, make_session: Callable) -> None:
        made = make_session("a", 1)
        model = build(context([made]))
        with pytest.raises(InputError, match="session b"):
            model.predict("b", made.unseen)
        with pytest.raises(InputError, match="needs behavior"):
            build(context([made], track="sensorium+")).predict("a", made.unseen)

    def test_state_of_another_model(self, make_session: Callable) -> None:
        made = [make_session("a", 1)]
        with pytest.raises(InputError, match="another configuration"):
            build(context(made, "ln")).load_state(build(context(made, "cnn")).state())
