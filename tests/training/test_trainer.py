"""The trainer: loss and schedule of 2022, determinism, resume, progress, and the order of LN and CNN on energy cells."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.models.baselines import baseline
from sensorium_pipeline.models.encoder import Encoder, encoder_state
from sensorium_pipeline.models.inputs import ModelInputs
from sensorium_pipeline.progress import Progress, silent
from sensorium_pipeline.training.batches import (
    ResidentSession,
    ResidentTrials,
    epoch_batches,
    resident_session,
    seeded_generator,
    steps_per_epoch,
)
from sensorium_pipeline.training.data import SessionData, Trials
from sensorium_pipeline.training.parameters import TrainerParameters
from sensorium_pipeline.training.trainer import Trainer, poisson_loss, single_trial_correlation, validation_score

SIZES = {"core": {"layers": 2, "channels": 4, "hidden_kernel": 3}}
SHORT = TrainerParameters(epochs=6, batch_size=16, patience=1, stages=6)


def sessions_of(make_session: Callable) -> list:
    return [make_session("a", 1, behavior=True), make_session("b", 2, training=41, neurons=5, behavior=True)]


def trainer_for(
    made: list,
    parameters: TrainerParameters = SHORT,
    *,
    seed: int = 3,
    progress=silent,
    after_epoch: Callable[[Trainer], None] | None = None,
) -> tuple[Encoder, Trainer]:
    configuration = baseline("cnn", "sensorium+", SIZES)
    encoder = Encoder.for_sessions(configuration, [m.data.description for m in made], seeded_generator(seed, "weights"))
    resident = [resident_session(encoder.configuration, m.data, "cpu") for m in made]
    return encoder, Trainer(encoder, resident, parameters, seed=seed, progress=progress, after_epoch=after_epoch)


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_every_trial_once_and_one_batch_of_every_session_a_step() -> None:
    lengths = {"long": 53, "short": 20}
    sessions = [_lengths_only(name, n) for name, n in lengths.items()]
    steps = list(epoch_batches(sessions, 16, seeded_generator(0, "order 0")))
    assert len(steps) == steps_per_epoch(sessions, 16) == 4
    assert sorted(torch.cat([step[0] for step in steps]).tolist()) == list(range(53))
    shorter = torch.cat([step[1] for step in steps]).tolist()
    assert sorted(shorter[:20]) == list(range(20))
    assert all(1 <= len(batch) <= 16 for step in steps for batch in step)
    again = list(epoch_batches(sessions, 16, seeded_generator(0, "order 1")))
    assert not torch.equal(again[0][0], steps[0][0])


def _lengths_only(name: str, trials: int) -> ResidentSession:
    part = ResidentTrials(ModelInputs(torch.zeros(trials, 1, 1, 1)), torch.zeros(trials, 1))
    return ResidentSession(name, part, part)


def test_poisson_loss_is_least_at_the_rate() -> None:
    response = torch.tensor([[0.5, 2.0]])
    assert poisson_loss(response, response).item() == pytest.approx(0.5 - 0.5 * np.log(0.5) + 2 - 2 * np.log(2), rel=1e-6)
    assert poisson_loss(response * 1.1, response) > poisson_loss(response, response)
    assert poisson_loss(response * 0.9, response) > poisson_loss(response, response)


def test_loss_of_a_step_is_that_of_2022(make_session: Callable) -> None:
    made = sessions_of(make_session)
    encoder, trainer = trainer_for(made, TrainerParameters(epochs=1, batch_size=1000, learning_rate=1e-12))
    encoder.train()
    resident = [resident_session(encoder.configuration, m.data, "cpu") for m in made]
    noise = seeded_generator(3, "positions 0")
    order = next(epoch_batches(resident, 1000, seeded_generator(3, "order 0")))
    expected = 0.0
    with torch.no_grad():
        for session, trials in zip(resident, order, strict=True):
            rates = encoder(session.name, session.training.inputs.select(trials), noise)
            scale = (len(session.training) / len(trials)) ** 0.5
            kernel = encoder.core.first.weight.double()
            smooth = torch.zeros_like(kernel)
            padded = torch.nn.functional.pad(kernel, (1, 1, 1, 1))
            for (y, x), weight in {(0, 1): -1, (1, 0): -1, (1, 1): 4, (1, 2): -1, (2, 1): -1}.items():
                smooth += weight * padded[..., y : y + kernel.shape[2], x : x + kernel.shape[3]]
            expected += float(scale * (rates - session.training.responses[trials] * (rates + 1e-8).log()).sum())
            expected += 6.3831 * float(smooth.square().sum() / kernel.square().sum())
            expected += 0.0076 * float(encoder.readouts[session.name].features.abs().sum())
    result = trainer.train()
    assert result.epochs[0].loss == pytest.approx(expected, rel=1e-5)


def test_correlation_agrees_with_numpy_and_is_zero_for_what_does_not_vary() -> None:
    rng = np.random.default_rng(0)
    prediction, response = rng.random((40, 3)).astype(np.float32), rng.random((40, 3)).astype(np.float32)
    prediction[:, 2] = 0.7
    found = single_trial_correlation(torch.from_numpy(prediction), torch.from_numpy(response)).numpy()
    for neuron in range(2):
        assert found[neuron] == pytest.approx(np.corrcoef(prediction[:, neuron], response[:, neuron])[0, 1], abs=1e-6)
    assert found[2] == pytest.approx(0, abs=1e-6)


def test_same_seed_same_bytes_and_another_seed_others(make_session: Callable) -> None:
    made = sessions_of(make_session)
    states = []
    for seed, junk in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(junk)
        np.random.seed(junk)  # noqa: NPY002  (the global generators must not matter)
        encoder, trainer = trainer_for(made, seed=seed)
        trainer.train()
        states.append(encoder_state(encoder))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_best_state_is_restored_and_the_learning_rate_falls_in_stages(make_session: Callable) -> None:
    made = sessions_of(make_session)
    parameters = TrainerParameters(epochs=60, batch_size=16, patience=2, stages=3, learning_rate=0.02)
    states: list[dict] = []
    encoder, trainer = trainer_for(made, parameters, after_epoch=lambda _: states.append(encoder_state(encoder)))
    result = trainer.train()
    scores = [epoch.score for epoch in result.epochs]
    assert result.best_score == max(scores)
    assert result.best_epoch == 1 + scores.index(max(scores))
    resident = [resident_session(encoder.configuration, m.data, "cpu") for m in made]
    assert validation_score(encoder, resident, 16) == result.best_score
    assert not encoder.training
    assert result.ended == "no better validation score in the last stage"
    rates = [epoch.learning_rate for epoch in result.epochs]
    np.testing.assert_allclose(sorted(set(rates), reverse=True), [0.02, 0.006, 0.0018])
    assert rates == sorted(rates, reverse=True)
    # A stage ends with the best state so far, from which the next one starts.
    ends = [epoch for epoch in range(1, len(rates)) if rates[epoch] < rates[epoch - 1]]
    assert len(ends) == 2
    for end in ends:
        assert same(states[end - 1], states[scores.index(max(scores[:end]))])


class Killed(Exception):
    pass


def test_resumed_after_every_epoch_ends_in_the_same_bytes(make_session: Callable) -> None:
    made = sessions_of(make_session)
    saved: list[bytes] = []
    encoder, trainer = trainer_for(made, after_epoch=lambda trainer: saved.append(trainer.checkpoint()))
    undisturbed = trainer.train()
    assert len(saved) == len(undisturbed.epochs)
    for content in saved:
        resumed, second = trainer_for(made)
        second.resume(content)
        result = second.train()
        assert same(encoder_state(encoder), encoder_state(resumed))
        assert [(e.epoch, e.loss, e.score) for e in result.epochs] == [(e.epoch, e.loss, e.score) for e in undisturbed.epochs]


def _train_until_killed(made: list, folder: Path) -> None:
    torch.set_num_threads(1)

    def save(trainer: Trainer) -> None:
        if len(trainer.epochs) == 3:
            time.sleep(600)  # until it is killed
        (folder / "writing").write_bytes(trainer.checkpoint())
        (folder / "writing").rename(folder / f"{len(trainer.epochs):06d}.checkpoint")

    _, trainer = trainer_for(made, after_epoch=save)
    trainer.train()


def test_killed_and_resumed_ends_in_the_same_bytes(make_session: Callable, tmp_path: Path) -> None:
    made = sessions_of(make_session)
    # Plain objects: a class of conftest.py cannot be found by name where several conftest.py are loaded.
    plain = [SimpleNamespace(data=m.data) for m in made]
    child = multiprocessing.get_context("spawn").Process(target=_train_until_killed, args=(plain, tmp_path))
    child.start()
    while child.is_alive() and not (tmp_path / "000002.checkpoint").exists():
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    saved = sorted(tmp_path.glob("*.checkpoint"))
    assert len(saved) == 2
    encoder, trainer = trainer_for(made)
    trainer.train()
    resumed, second = trainer_for(made)
    second.resume(saved[-1].read_bytes())
    second.train()
    assert same(encoder_state(encoder), encoder_state(resumed))


def test_checkpoints_of_another_training_are_refused(make_session: Callable) -> None:
    made = sessions_of(make_session)
    _, trainer = trainer_for(made)
    content = trainer.checkpoint()
    for other in (trainer_for(made, seed=4), trainer_for(made[:1]), trainer_for(made, SHORT.model_copy(update={"epochs": 7}))):
        with pytest.raises(InputError, match="belongs to another"):
            other[1].resume(content)
    for broken in (b"", b"nonsense", content[: len(content) // 2]):
        with pytest.raises(InputError, match="cannot be read"):
            trainer.resume(broken)


def test_progress_tells_epoch_loss_score_and_time_left_and_can_stop_training(make_session: Callable) -> None:
    reports: list[Progress] = []
    _, trainer = trainer_for(sessions_of(make_session), progress=reports.append)
    trainer.train()
    assert all(0 < report.done <= report.total for report in reports)
    assert reports[-1].done == reports[-1].total
    assert "epoch 6" in reports[-1].detail
    assert all(word in reports[-1].detail for word in ("loss", "validation", "left"))

    def stop(_: Progress) -> None:
        raise Killed

    _, trainer = trainer_for(sessions_of(make_session), progress=stop)
    with pytest.raises(Killed):
        trainer.train()


def test_time_limit_ends_training_with_the_best_state(make_session: Callable) -> None:
    _, trainer = trainer_for(sessions_of(make_session), TrainerParameters(epochs=10_000, patience=10_000, time_limit=0.5))
    begun = time.monotonic()
    result = trainer.train()
    assert time.monotonic() - begun < 2
    assert result.ended == "no time for a further epoch"


def test_divergence_is_reported(make_session: Callable) -> None:
    encoder, trainer = trainer_for(sessions_of(make_session), TrainerParameters(epochs=5, patience=1, stages=1))
    with torch.no_grad():
        encoder.core.first.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="diverged"):
        trainer.train()


def test_too_few_trials_and_unknown_sessions_are_refused(make_session: Callable) -> None:
    made = sessions_of(make_session)
    encoder, _ = trainer_for(made[:1])
    data = made[1].data
    with pytest.raises(InputError, match="knows the sessions"):
        Trainer(encoder, [resident_session(encoder.configuration, data, "cpu")], SHORT, seed=0)
    with pytest.raises(InputError, match="knows the sessions"):
        Trainer(encoder, [], SHORT, seed=0)
    few = SessionData(data.description, Trials(data.training.inputs, data.training.responses[:1]), data.validation)
    with pytest.raises(InputError, match="1 training trials are too few"):
        resident_session(encoder.configuration, few, "cpu")
