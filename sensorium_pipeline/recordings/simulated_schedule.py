"""When what is shown in a simulated session, and what the mouse does meanwhile."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.raw_session import ImageSet
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters
from sensorium_pipeline.recordings.tables import read_columns, read_text_table

SCREEN_RATE = 60.0
FRAMES_ON = 31
LEAD = 4.0
"""Seconds of recording before the first image, and after the last."""

RATE = 100.0
"""Samples a second of behaviour and spikes."""

_TEST_IDS, _FINAL_IDS, _SINGLE_IDS = 1, 1001, 10_000
_SINGLE_POOL = 50_000


@dataclass(frozen=True)
class Schedule:
    """Presentations in order: image_id, onset and offset on the screen, and the offset as the stimulus machine logged it.

    Shapes (presentations,); seconds on the frame clock. The screen was late for some offsets (dropped frames).
    """

    image_id: NDArray[np.int64]
    onset: NDArray[np.float64]
    offset: NDArray[np.float64]
    logged_offset: NDArray[np.float64]
    image_sets: dict[int, ImageSet]

    @property
    def end(self) -> float:
        """When the recording may stop."""
        return float(self.offset[-1] + LEAD)


@dataclass(frozen=True)
class Behavior:
    """What the mouse did: time (samples,) s on the frame clock; speed cm/s, arousal 0..1, dilation px, center (samples, 2) px."""

    time: NDArray[np.float64]
    speed: NDArray[np.float64]
    arousal: NDArray[np.float64]
    dilation: NDArray[np.float64]
    center: NDArray[np.float64]


def draw_schedule(parameters: SimulationParameters, generator: np.random.Generator) -> Schedule:
    """Draw the order of the images and the times.

    Raises:
        InputError: when the timeline file is not one, or is too short.
    """
    single = np.sort(generator.choice(_SINGLE_POOL, parameters.single_images, replace=False)) + _SINGLE_IDS
    sets: dict[int, ImageSet] = {int(image): "single" for image in single}
    repeated: list[NDArray[np.int64]] = [_TEST_IDS + np.arange(parameters.test_images)]
    sets |= {int(image): "test" for image in repeated[0]}
    if parameters.role == "competition":
        repeated.append(_FINAL_IDS + np.arange(parameters.final_test_images))
        sets |= {int(image): "final_test" for image in repeated[1]}
    test = np.repeat(np.concatenate(repeated), parameters.repeats)
    # Every image keeps one presentation at least, however many are lost.
    may_go = np.flatnonzero(np.arange(len(test)) % parameters.repeats > 0)
    lost = generator.choice(may_go, round(parameters.lost_presentations * len(test)), replace=False)
    image_id = generator.permutation(np.concatenate([single, np.delete(test, lost)]))
    onset, logged = _times(parameters, len(image_id), generator)
    dropped = np.where(generator.random(len(onset)) < 0.004, 3 / SCREEN_RATE, 0.0)
    return Schedule(image_id, onset, logged + dropped, logged, dict(sorted(sets.items())))


def _times(parameters: SimulationParameters, count: int, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if parameters.timeline is None:
        blank = generator.integers(22, 37, count) / SCREEN_RATE
        onset = LEAD + np.concatenate([[0.0], np.cumsum(FRAMES_ON / SCREEN_RATE + blank[:-1])])
        return onset, onset + FRAMES_ON / SCREEN_RATE
    times = read_columns(parameters.timeline, ["start_time_s", "end_time_s"])
    shown = (read_text_table(parameters.timeline, ["modality"])["modality"] == "image").to_numpy()
    start, end = times["start_time_s"][shown], times["end_time_s"][shown]
    if len(start) < count:
        raise InputError(
            f"holds {len(start)} presentations, and {count} are needed", where=parameters.timeline, advice="Show fewer images."
        )
    return start[:count] - start[0] + LEAD, end[:count] - start[0] + LEAD


def draw_behavior(start: float, end: float, generator: np.random.Generator) -> Behavior:
    """Draw running in bouts and a pupil that follows arousal, from `start` to `end` seconds."""
    time = start + np.arange(int(np.ceil((end - start) * RATE)) + 1) / RATE
    running, now = np.zeros(len(time)), 0
    while now < len(time):
        now += int(generator.exponential(18.0) * RATE) + 1
        length = int((3 + generator.exponential(8.0)) * RATE)
        running[now : now + length] = generator.uniform(6, 22)
        now += length
    speed = gaussian_filter1d(running, 0.4 * RATE) * (1 + 0.2 * wander(len(time), 0.5, generator))
    speed = np.clip(speed, 0, None) * (gaussian_filter1d(running, 0.4 * RATE) > 0.3)
    slow = wander(len(time), 20.0, generator)
    arousal = 1 / (1 + np.exp(-(1.1 * slow + 2.0 * np.tanh(gaussian_filter1d(running, 1.5 * RATE) / 10) - 0.8)))
    center = np.stack([160 + 6 * wander(len(time), 4.0, generator), 120 + 4 * wander(len(time), 4.0, generator)], axis=1)
    dilation = 24 + 26 * gaussian_filter1d(arousal, 0.3 * RATE) + 0.4 * wander(len(time), 0.3, generator)
    return Behavior(time, speed, arousal, dilation, center)


def wander(samples: int, time_constant: float, generator: np.random.Generator, rate: float = RATE) -> NDArray[np.float64]:
    """A stationary Ornstein-Uhlenbeck process (samples,) of unit standard deviation; time constant in seconds."""
    from scipy.signal import lfilter  # takes a second to load, which reading a recording need not wait for

    keep = np.exp(-1 / (time_constant * rate))
    noise = generator.standard_normal(samples) * np.sqrt(1 - keep**2)
    noise[0] = generator.standard_normal()
    return np.asarray(lfilter([1.0], [1.0, -keep], noise))
