"""Small synthetic sessions with known truth: energy cells and linear cells looking at 1/f images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sensorium_pipeline.training.data import SessionData, SessionDescription, Statistics, TrialInputs, Trials


@dataclass(frozen=True)
class Synthetic:
    """A session, and unseen images (trials, y, x) with the true rates (trials, neurons) of its neurons."""

    data: SessionData
    unseen: TrialInputs
    rates: NDArray[np.float64]


def natural_images(number: int, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Images with an amplitude spectrum of 1/f, grey values 0..255."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = np.inf
    images = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((number, *shape))) / frequency, s=shape)
    images /= images.std(axis=(1, 2), keepdims=True)
    return np.clip(45 * images + 113, 0, 255).astype(np.float32)


def quadrature_pair(shape: tuple[int, int], center: tuple[float, float], angle: float, frequency: float) -> NDArray[np.float64]:
    """Even and odd Gabor filter, (2, pixels); no response to uniform grey."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = y - center[0], x - center[1]
    envelope = np.exp(-(y**2 + x**2) / (2 * 2.5**2))
    phase = 2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle))
    filters = np.stack([envelope * np.cos(phase), envelope * np.sin(phase)]).reshape(2, -1)
    return filters - envelope.ravel() * (filters.sum(1, keepdims=True) / envelope.sum())


def synthetic_session(name: str, seed: int, *, neurons: int, training: int, shape: tuple[int, int], behavior: bool) -> Synthetic:
    """A session with four energy cells (Adelson & Bergen 1985) for each linear one, Poisson noise and a gain of every trial."""
    rng = np.random.default_rng(seed)
    validation = unseen = max(training // 6, 20)
    images = natural_images(training + validation + unseen, shape, rng)
    contrast = ((images - 113) / 45).reshape(len(images), -1).astype(np.float64)
    positions = rng.uniform(-300, 300, (neurons, 3)).astype(np.float32)
    rates = np.empty((len(images), neurons))
    for neuron in range(neurons):
        # Retinotopy: cortical coordinates say where in the middle half of the image a neuron looks, up to half a pixel.
        scatter = rng.normal(0, 0.5, 2)
        y, x = np.array(shape) * (0.5 + 0.25 * positions[neuron, 1::-1] / 300) + scatter
        filters = quadrature_pair(shape, (y, x), np.pi / 8 * rng.integers(8), rng.choice([0.1, 0.16]))
        even, odd = filters @ contrast.T
        rate = np.maximum(even, 0) if neuron % 5 == 0 else even**2 + odd**2
        rates[:, neuron] = 2 * rate / rate.mean()
    arousal = rng.standard_normal(len(images))
    responses = rng.poisson(rates * np.exp(0.3 * arousal)[:, None]).astype(np.float32)
    states = np.stack([arousal + 3, rng.standard_normal(len(images)), 2 * arousal + 5], axis=1).astype(np.float32)
    pupil = rng.normal(100, 5, (len(images), 2)).astype(np.float32)

    def inputs(trials: slice) -> TrialInputs:
        return TrialInputs(images[trials], states[trials] if behavior else None, pupil[trials] if behavior else None)

    train = slice(training)
    check, new = slice(training, training + validation), slice(training + validation, None)
    statistics = Statistics(
        float(images[train].mean()),
        float(images[train].std()),
        responses[train].mean(0),
        responses[train].std(0),
        *((states[train].mean(0), states[train].std(0), pupil[train].mean(0), pupil[train].std(0)) if behavior else ()),
    )
    description = SessionDescription(name, np.arange(1, neurons + 1), positions, shape, statistics)
    data = SessionData(description, Trials(inputs(train), responses[train]), Trials(inputs(check), responses[check]))
    return Synthetic(data, inputs(new), rates[new])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and much slower where other work shares the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_session() -> Callable[..., Synthetic]:
    def make(
        name: str, seed: int, *, neurons: int = 9, training: int = 60, shape: tuple[int, int] = (18, 32), behavior: bool = False
    ) -> Synthetic:
        return synthetic_session(name, seed, neurons=neurons, training=training, shape=shape, behavior=behavior)

    return make
