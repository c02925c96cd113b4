"""Spikes and calcium of a simulated population."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.recordings.simulated_schedule import RATE, Behavior, Schedule, wander

LATENCY, WINDOW = 0.05, 0.5
"""A neuron answers from 50 to 550 ms after stimulus onset, the window of SENSORIUM 2022."""

RISE, DECAY = 0.07, 0.75
"""Time constants of GCaMP6s in seconds (Chen et al. 2013, in vivo, one action potential)."""

_SPONTANEOUS = 0.08  # spikes a second
_SATURATION = 8.0  # dF/F
_PRIVATE_NOISE = 5.0  # shape of the gamma distribution of a neuron's own gain in a trial


@dataclass(frozen=True)
class Activity:
    """What the neurons did.

    Shapes: time (samples,) s on the frame clock; dff (neurons, samples) float32; spike_counts (presentations, neurons) in the response
    window; gain (presentations,) shared by all neurons.
    """

    time: NDArray[np.float64]
    dff: NDArray[np.float32]
    spike_counts: NDArray[np.int64]
    gain: NDArray[np.float64]


def draw_activity(expected: NDArray[np.float64], schedule: Schedule, behavior: Behavior, generator: np.random.Generator) -> Activity:
    """Draw spikes (Poisson, in bins of 10 ms) and their calcium.

    Args:
        expected: counts of every presentation at mean gain (presentations, neurons).
    """
    from scipy.signal import lfilter  # takes a second to load, which reading a recording need not wait for

    presentations, neurons = expected.shape
    samples = len(behavior.time)
    start = behavior.time[0]
    modulation = (0.6 + 0.8 * behavior.arousal + 0.015 * behavior.speed) * np.exp(0.1 * wander(samples, 5.0, generator))
    modulation /= modulation.mean()
    begin = np.rint((schedule.onset + LATENCY - start) * RATE).astype(int)
    bins = round(WINDOW * RATE)
    window = begin[:, None] + np.arange(bins)
    gain = modulation[window].mean(axis=1)
    dff = np.empty((neurons, samples), np.float32)
    counts = np.empty((presentations, neurons), np.int64)
    fall, rise = np.exp(-1 / (DECAY * RATE)), np.exp(-1 / (RISE * RATE))
    peak_time = np.log(DECAY / RISE) * DECAY * RISE / (DECAY - RISE)
    peak = np.exp(-peak_time / DECAY) - np.exp(-peak_time / RISE)
    amplitude = 0.2 * np.exp(generator.normal(0, 0.2, neurons))
    for neuron in range(neurons):
        rate = np.full(samples, _SPONTANEOUS / RATE) * modulation
        private = generator.gamma(_PRIVATE_NOISE, 1 / _PRIVATE_NOISE, presentations)
        rate[window] += (expected[:, neuron] * gain * private / bins)[:, None]
        spikes = generator.poisson(rate)
        counts[:, neuron] = spikes[window].sum(axis=1)
        # The difference of two exponentials, of peak one, as a recursive filter.
        calcium = lfilter([(fall - rise) / peak], [1.0, -(fall + rise), fall * rise], spikes.astype(np.float64)) * amplitude[neuron]
        dff[neuron] = calcium / (1 + calcium / _SATURATION)
    return Activity(behavior.time, dff, counts, gain)
