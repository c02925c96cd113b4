"""What an encoder promises: shapes, units, positions, determinism, and weights that travel with their configuration."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.baselines import BASELINES, baseline
from sensorium_pipeline.models.configuration import ConvolutionConfiguration, GaussianConfiguration
from sensorium_pipeline.models.encoder import Encoder, encoder_state, load_encoder_state
from sensorium_pipeline.models.inputs import ModelInputs, normalise_inputs, standardise_responses
from sensorium_pipeline.models.readouts.gaussian import GaussianReadout, source_grid
from sensorium_pipeline.training.data import SessionDescription, TrialInputs

MakeDescription = Callable[..., SessionDescription]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs_for(session: SessionDescription, trials: int, seed: int = 0) -> TrialInputs:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.uniform(0, 100, shape).astype(np.float32)  # noqa: E731
    return TrialInputs(draw(trials, *session.image_shape), draw(trials, 3), draw(trials, 2))


def test_published_sizes() -> None:
    cnn, ln = baseline("cnn", "sensorium"), baseline("ln", "sensorium+")
    core, readout = cnn.core, cnn.readout
    assert isinstance(core, ConvolutionConfiguration)
    assert isinstance(readout, GaussianConfiguration)
    assert (core.layers, core.linear, core.channels, core.input_kernel, core.hidden_kernel) == (4, False, 64, 9, 7)
    assert (core.laplace_weight, readout.feature_weight, cnn.behavior, cnn.shifter) == (6.3831, 0.0076, False, False)
    assert isinstance(ln.core, ConvolutionConfiguration)
    assert (ln.core.layers, ln.core.linear, ln.behavior, ln.shifter) == (3, True, True, True)


@pytest.mark.parametrize("track", ["sensorium", "sensorium+"])
@pytest.mark.parametrize("architecture", list(BASELINES))
def test_predicts_positive_rates_of_every_session(make_description: MakeDescription, architecture: str, track: str) -> None:
    sessions = [make_description("a", 7), make_description("b", 11)]
    configuration = baseline(architecture, track, size="demo")
    encoder = Encoder.for_sessions(configuration, sessions, seeded()).eval()
    assert encoder.configuration.image_shape == (18, 32)
    for session in sessions:
        with torch.no_grad():
            rates = encoder(session.name, normalise_inputs(encoder.configuration, session, inputs_for(session, 3)))
        assert rates.shape == (3, session.neurons)
        assert (rates > 0).all()


def test_ln_core_is_linear_and_cnn_core_is_not(make_description: MakeDescription) -> None:
    pictures = torch.randn(2, 1, 18, 32, generator=seeded())
    for architecture, linear in (("ln", True), ("cnn", False)):
        core = Encoder.for_sessions(baseline(architecture, "sensorium"), [make_description()], seeded()).eval().core
        with torch.no_grad():
            apart = core(pictures[:1]) + core(pictures[1:]) - core(torch.zeros_like(pictures[:1]))
            together = core(pictures[:1] + pictures[1:])
        assert torch.allclose(apart, together, atol=1e-4) is linear


def test_positions_are_drawn_in_training_only(make_description: MakeDescription) -> None:
    session = make_description()
    encoder = Encoder.for_sessions(baseline("cnn", "sensorium", {"readout": {"initial_sigma": 0.3}}), [session], seeded()).eval()
    inputs = normalise_inputs(encoder.configuration, session, inputs_for(session, 2))
    with torch.no_grad():
        mean = encoder(session.name, inputs)
        drawn = [encoder(session.name, inputs, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(mean, encoder(session.name, inputs))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], mean)


def test_drawn_positions_have_the_covariance_of_sigma_and_stay_inside() -> None:
    grid = np.zeros((2, 2), np.float32)
    readout = GaussianReadout(GaussianConfiguration(), 2, grid, np.zeros(2, np.float32), seeded())
    # Maps that hold their own x and y, so that one neuron reads the x and the other the y of its position.
    x, y = torch.meshgrid(torch.linspace(-1, 1, 11), torch.linspace(-1, 1, 7), indexing="xy")
    maps = torch.stack([x, y]).expand(20000, 2, 7, 11).contiguous(memory_format=torch.channels_last)
    sigma = torch.tensor([[0.10, 0.05], [-0.03, 0.08]])
    with torch.no_grad():
        readout.features.copy_(torch.eye(2))
        readout.sigma.copy_(sigma)
        assert torch.allclose(readout(maps[:1]), torch.zeros(1, 2), atol=1e-6)  # the mean of both, the middle
        moved = readout(maps[:1], torch.tensor([[0.25, -0.5]]))
        variance = readout(maps, None, seeded(1)).var(0)
        readout.sigma.copy_(10 * sigma)
        far = readout(maps, None, seeded(1))
    torch.testing.assert_close(moved, torch.tensor([[0.25, -0.5]]))
    torch.testing.assert_close(variance, (sigma @ sigma.T).diagonal(), rtol=0.05, atol=0)
    assert far.min() == -1
    assert far.max() == 1


def test_the_shifter_moves_what_is_read(make_description: MakeDescription) -> None:
    session = make_description()
    encoder = Encoder.for_sessions(baseline("cnn", "sensorium+"), [session], seeded()).eval()
    inputs = normalise_inputs(encoder.configuration, session, inputs_for(session, 2))
    assert inputs.pupil_center is not None
    inputs = ModelInputs(inputs.images, inputs.behavior, torch.zeros(2, 2))
    elsewhere = ModelInputs(inputs.images, inputs.behavior, torch.ones(2, 2))
    with torch.no_grad():
        # Before training the pupil changes nothing.
        assert torch.equal(encoder(session.name, inputs), encoder(session.name, elsewhere))
        for parameter in encoder.shifters.parameters():
            parameter.fill_(0.1)
        assert not torch.allclose(encoder(session.name, inputs), encoder(session.name, elsewhere))


def test_behavior_that_hardly_varies_is_not_blown_up(make_description: MakeDescription) -> None:
    session = make_description()
    statistics = replace(session.statistics, behavior_std=np.array([1.0, 2.0, 1e-9], np.float32))
    inputs = inputs_for(session, 2)
    found = normalise_inputs(baseline("cnn", "sensorium+"), replace(session, statistics=statistics), inputs).behavior
    assert inputs.behavior is not None
    assert found is not None
    np.testing.assert_allclose(found, inputs.behavior / [1.0, 2.0, 0.01], rtol=1e-5)  # 1 % of the mean deviation


def test_an_animal_that_never_moved_gives_finite_inputs(make_description: MakeDescription) -> None:
    session = make_description()
    still = replace(session.statistics, behavior_std=np.zeros(3, np.float32), pupil_center_std=np.zeros(2, np.float32))
    inputs = normalise_inputs(baseline("cnn", "sensorium+"), replace(session, statistics=still), inputs_for(session, 2))
    assert inputs.behavior is not None
    assert inputs.pupil_center is not None
    assert torch.isfinite(inputs.behavior).all()
    assert torch.isfinite(inputs.pupil_center).all()


def test_an_untrained_encoder_starts_at_the_mean_responses(make_description: MakeDescription) -> None:
    session = make_description()
    encoder = Encoder.for_sessions(baseline("cnn", "sensorium"), [session], seeded())
    with torch.no_grad():
        start = torch.nn.functional.elu(encoder.readouts[session.name].bias) + 1
    expected = session.statistics.response_mean * session.statistics.response_precision
    np.testing.assert_allclose(start.numpy(), expected, rtol=1e-5)


def test_same_seed_same_weights_whatever_the_global_generator(make_description: MakeDescription) -> None:
    session = make_description()
    states = []
    for junk in (1, 2):
        torch.manual_seed(junk)
        states.append(encoder_state(Encoder.for_sessions(baseline("cnn", "sensorium+"), [session], seeded(5))))
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_source_grid_is_centred_and_at_most_one() -> None:
    positions = np.random.default_rng(0).uniform(0, 600, (50, 3)).astype(np.float32)
    grid = source_grid(positions)
    np.testing.assert_allclose(grid.mean(0), 0, atol=1e-6)
    assert np.abs(grid).max() == 1
    span, own = np.ptp(positions[:, :2], axis=0), np.ptp(grid, axis=0)
    assert own[0] / own[1] == pytest.approx(span[0] / span[1], rel=1e-5)
    assert np.array_equal(source_grid(positions[:1]), np.zeros((1, 2)))


def test_normalisation_is_that_of_2022(make_description: MakeDescription) -> None:
    session = make_description()
    statistics, raw = session.statistics, inputs_for(session, 4)
    found = normalise_inputs(baseline("cnn", "sensorium+"), session, raw)
    assert found.behavior is not None
    assert found.pupil_center is not None
    assert raw.behavior is not None
    assert raw.pupil_center is not None
    np.testing.assert_allclose(found.images[:, 0].numpy(), (raw.images - 110) / 60, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.behavior.numpy(), raw.behavior / statistics.behavior_std, rtol=1e-5)
    pupil = (raw.pupil_center - statistics.pupil_center_mean) / statistics.pupil_center_std
    np.testing.assert_allclose(found.pupil_center.numpy(), pupil, rtol=1e-4, atol=1e-5)
    responses = np.ones((2, session.neurons), np.float32)
    np.testing.assert_allclose(standardise_responses(session, responses).numpy()[0], statistics.response_precision)
    without = normalise_inputs(baseline("cnn", "sensorium"), session, raw)
    assert without.behavior is None
    assert without.pupil_center is None


class TestState:
    def test_there_and_back(self, make_description: MakeDescription) -> None:
        session = make_description()
        one = Encoder.for_sessions(baseline("cnn", "sensorium+"), [session], seeded(1)).eval()
        two = Encoder.for_sessions(baseline("cnn", "sensorium+"), [session], seeded(2)).eval()
        load_encoder_state(two, encoder_state(one))
        inputs = normalise_inputs(one.configuration, session, inputs_for(session, 3))
        with torch.no_grad():
            assert torch.equal(one(session.name, inputs), two(session.name, inputs))

    def test_another_scale_is_refused(self, make_description: MakeDescription) -> None:
        one = Encoder.for_sessions(baseline("cnn", "sensorium"), [make_description()], seeded())
        two = Encoder.for_sessions(baseline("cnn", "sensorium"), [make_description(image_shape=(36, 64))], seeded())
        with pytest.raises(InputError, match=r"image_shape \(18, 32\) instead of \(36, 64\)"):
            load_encoder_state(two, encoder_state(one))

    def test_other_sessions_and_lost_configuration_are_refused_and_change_nothing(self, make_description: MakeDescription) -> None:
        one = Encoder.for_sessions(baseline("cnn", "sensorium"), [make_description("a")], seeded(1))
        two = Encoder.for_sessions(baseline("cnn", "sensorium"), [make_description("b")], seeded(2))
        before = encoder_state(two)
        with pytest.raises(InputError, match=r"missing .*readouts\.b"):
            load_encoder_state(two, encoder_state(one))
        state = encoder_state(one)
        del state["configuration"]
        with pytest.raises(InputError, match="without their configuration"):
            load_encoder_state(one, state)
        state["configuration"] = np.frombuffer(b'{"schema_version": 1}', np.uint8)
        with pytest.raises(InputError, match="schema_version"):
            load_encoder_state(one, state)
        assert all(np.array_equal(before[name], value) for name, value in encoder_state(two).items())


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("perceptron", "sensorium"), "unknown architecture 'perceptron'"),
            (("cnn", "sensorium++"), "unknown track"),
            (("cnn", "sensorium", {"channels": 3}), "channels"),
            (("cnn", "sensorium", {"core": {"hidden_kernel": 4}}), "odd"),
            (("energy", "sensorium", {"behavior": True}), "use the modulator"),
            (("factorised", "sensorium", {"shifter": True}), "Gaussian readout"),
            (("transformer", "sensorium", {"core": {"heads": 3}}), "multiple of heads"),
        ],
    )
    def test_configuration(self, arguments: tuple, text: str) -> None:
        with pytest.raises(InputError, match=text):
            baseline(*arguments)

    def test_sessions(self, make_description: MakeDescription) -> None:
        cnn = baseline("cnn", "sensorium")
        with pytest.raises(InputError, match="different names"):
            Encoder.for_sessions(cnn, [make_description("a"), make_description("a")], seeded())
        with pytest.raises(InputError, match="different names"):
            Encoder.for_sessions(cnn, [], seeded())
        with pytest.raises(InputError, match="too small for this core"):
            Encoder.for_sessions(cnn, [make_description(image_shape=(8, 30))], seeded())
        with pytest.raises(InputError, match="different image shapes"):
            Encoder.for_sessions(cnn, [make_description("a"), make_description("b", image_shape=(36, 64))], seeded())

    def test_inputs(self, make_description: MakeDescription) -> None:
        session, plus = make_description("a"), baseline("cnn", "sensorium+")
        good = inputs_for(session, 2)
        with pytest.raises(InputError, match="needs behavior"):
            normalise_inputs(plus, session, TrialInputs(good.images))
        with pytest.raises(InputError, match=r"expected the shape \(2, 18, 32\)"):
            normalise_inputs(plus, session, TrialInputs(good.images[:, 1:], good.behavior, good.pupil_center))
        spoilt = good.images.copy()
        spoilt[1, 3, 3] = np.nan
        with pytest.raises(InputError, match="session a, images: not all values are finite"):
            normalise_inputs(plus, session, TrialInputs(spoilt, good.behavior, good.pupil_center))
        with pytest.raises(InputError, match="expected the shape"):
            standardise_responses(session, np.ones((2, 3), np.float32))
