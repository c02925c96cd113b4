"""The files that a simulated rig leaves beside the scan: session.toml, stimulus, sync, treadmill, eye camera."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.recordings.clocks import COUNTER_BITS, COUNTER_RATE
from sensorium_pipeline.recordings.session_folder import EYE, IMAGE_TABLE, IMAGES, PRESENTATIONS, SESSION_FILE, SYNC, TREADMILL
from sensorium_pipeline.recordings.simulated_schedule import Behavior, Schedule
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters

SAMPLE_RATE = 10_000.0
CAMERA_RATE = 20.0
COUNTS_PER_REVOLUTION, WHEEL_CIRCUMFERENCE = 8192.0, 47.75
_PULSE = 0.005
_CHUNK = 1 << 19


@dataclass(frozen=True)
class Clocks:
    """How the devices' clocks stand to the acquisition clock (seconds since its first sample).

    Attributes:
        zero: the first frame, on the acquisition clock.
        end: the last sample of the acquisition clock.
        stimulus_rate, stimulus_offset: stimulus = rate x acquisition + offset; the camera's likewise.
        treadmill_rate, treadmill_start: the 10 MHz counter's rate, and its reading when the acquisition began.
        treadmill_pulses: shared pulses, on the acquisition clock.
    """

    zero: float
    end: float
    stimulus_rate: float
    stimulus_offset: float
    camera_rate: float
    camera_offset: float
    treadmill_rate: float
    treadmill_start: int
    treadmill_pulses: NDArray[np.float64]

    def counter(self, time: NDArray[np.float64]) -> NDArray[np.uint32]:
        """The treadmill's counter at times on the acquisition clock; it wraps every 429 s."""
        ticks = np.rint(time * self.treadmill_rate * COUNTER_RATE).astype(np.int64) + self.treadmill_start
        return (ticks % (1 << COUNTER_BITS)).astype(np.uint32)


def draw_clocks(recording_end: float, generator: np.random.Generator) -> Clocks:
    """Draw offsets, drifts of some tens of parts in a million, and irregular pulses."""
    zero = 3.0 + float(generator.random())
    end = zero + recording_end + 2.0
    drifts = 1 + generator.normal(0, 2e-5, 3)
    pulses = np.cumsum(generator.uniform(2.0, 6.0, int(end / 2) + 1))
    return Clocks(
        zero=zero,
        end=end,
        stimulus_rate=float(drifts[0]),
        stimulus_offset=float(generator.uniform(100, 5000)),
        camera_rate=float(drifts[1]),
        camera_offset=float(generator.uniform(0, 50)),
        treadmill_rate=float(drifts[2]),
        treadmill_start=int(generator.integers(1 << COUNTER_BITS)),
        treadmill_pulses=pulses[pulses < end - 0.1],
    )


def write_description(folder: Path, parameters: SimulationParameters) -> None:
    """session.toml."""
    track = f'track = "{parameters.track}"\n' if parameters.track else ""
    depths = ", ".join(f"{depth:g}" for depth in plane_depths(parameters))
    # The scan header knows the pixels of every field of a mesoscope.
    pixels = "" if parameters.fields > 1 else f"pixel_size = [{parameters.pixel_size:g}, {parameters.pixel_size:g}]  # um, y and x\n"
    (folder / SESSION_FILE).write_text(
        f"[session]\nanimal = {parameters.animal}\nsession = {parameters.session}\nscan = {parameters.scan}\n\n"
        f'[recording]\nindicator = "GCaMP6s"\noptics = "simulated two-photon microscope, galvanometer scan"\narea = "V1"\n'
        f"{pixels}"
        f"plane_depths = [{depths}]  # um below the surface\n\n"
        f'[release]\nrole = "{parameters.role}"\n{track}',
        encoding="utf-8",
    )


def plane_depths(parameters: SimulationParameters) -> list[float]:
    """Depths of the planes in micrometres: layer 2/3, 25 um apart."""
    return [200.0 + 25.0 * plane for plane in range(parameters.planes)]


def write_stimulus(folder: Path, parameters: SimulationParameters, schedule: Schedule, images: NDArray[np.uint8], clocks: Clocks) -> None:
    """The stimulus machine's log, and the images with their sets, in ascending order of their ids."""
    (folder / PRESENTATIONS).parent.mkdir()
    onset, offset = (
        (times + clocks.zero) * clocks.stimulus_rate + clocks.stimulus_offset for times in (schedule.onset, schedule.logged_offset)
    )
    rows = zip(schedule.image_id, onset, offset, strict=True)
    lines = [f"# session: {parameters.name}", "image_id,onset,offset", *(f"{image},{on:.6f},{off:.6f}" for image, on, off in rows)]
    (folder / PRESENTATIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = ["image_id,image_set", *(f"{image},{image_set}" for image, image_set in schedule.image_sets.items())]
    (folder / IMAGE_TABLE).write_text("\n".join(table) + "\n", encoding="utf-8")
    np.save(folder / IMAGES, images)


def write_sync(
    folder: Path, parameters: SimulationParameters, schedule: Schedule, clocks: Clocks, frames: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The acquisition's file, piece by piece; returns when the camera exposed its frames (frames,), on the acquisition clock."""
    frame_period = 1 / (parameters.volume_rate * parameters.frames_per_volume)
    camera = 0.2 + np.arange(int((clocks.end - 0.4) * CAMERA_RATE)) / CAMERA_RATE
    camera += generator.uniform(-0.001, 0.001, len(camera))
    flips = np.stack([schedule.onset, schedule.offset], axis=1).ravel() + clocks.zero
    camera_flips = np.stack([camera, camera + _PULSE], axis=1).ravel()
    pulse_flips = np.stack([clocks.treadmill_pulses, clocks.treadmill_pulses + _PULSE], axis=1).ravel()

    def lit(events: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.uint8]]:
        return lambda time: (np.searchsorted(events, time, side="right") % 2).astype(np.uint8)

    def frame_clock(time: NDArray[np.float64]) -> NDArray[np.uint8]:
        frame = (time - clocks.zero) / frame_period
        return ((frame >= 0) & (frame < frames) & (frame % 1 < 0.5)).astype(np.uint8)

    def photodiode(time: NDArray[np.float64]) -> NDArray[np.int16]:
        noise = generator.standard_normal(len(time), dtype=np.float32)
        return np.rint(np.where(lit(flips)(time) > 0, 2600, 300) + 60 * noise).astype(np.int16)

    lines: dict[str, Callable[[NDArray[np.float64]], NDArray[np.uint8] | NDArray[np.int16]]] = {
        "analog/photodiode": photodiode,
        "digital/frame_clock": frame_clock,
        "digital/treadmill": lit(pulse_flips),
        "digital/eye_camera": lit(camera_flips),
    }
    samples = int(clocks.end * SAMPLE_RATE)
    with h5py.File(folder / SYNC, "w") as file:
        file.attrs["session"] = parameters.name
        file.attrs["sample_rate"] = SAMPLE_RATE
        for name, signal in lines.items():
            analog = name.startswith("analog")
            packing = {} if analog else {"compression": "gzip", "compression_opts": 1}
            data = file.create_dataset(name, (samples,), np.int16 if analog else np.uint8, chunks=(min(_CHUNK, samples),), **packing)
            for start in range(0, samples, _CHUNK):
                stop = min(samples, start + _CHUNK)
                data[start:stop] = signal(np.arange(start, stop) / SAMPLE_RATE)
    return camera


def write_treadmill(folder: Path, parameters: SimulationParameters, behavior: Behavior, clocks: Clocks) -> None:
    """The wheel's encoder, sampled as the behaviour was drawn, at 100 Hz."""
    time = behavior.time + clocks.zero
    distance = np.concatenate([[0.0], np.cumsum(0.5 * (behavior.speed[1:] + behavior.speed[:-1]) * np.diff(behavior.time))])
    with h5py.File(folder / TREADMILL, "w") as file:
        file.attrs["session"] = parameters.name
        file.attrs["counts_per_revolution"] = COUNTS_PER_REVOLUTION
        file.attrs["wheel_circumference"] = WHEEL_CIRCUMFERENCE
        file["counter"] = clocks.counter(time)
        file["position"] = np.floor(distance / WHEEL_CIRCUMFERENCE * COUNTS_PER_REVOLUTION).astype(np.int32)
        file["pulse_counter"] = clocks.counter(clocks.treadmill_pulses)


def write_eye(
    folder: Path,
    parameters: SimulationParameters,
    behavior: Behavior,
    clocks: Clocks,
    camera: NDArray[np.float64],
    generator: np.random.Generator,
) -> None:
    """The pupil in every camera frame; it is lost in blinks, and now and then for a few seconds; a few camera frames are dropped."""
    moment = camera - clocks.zero
    own = camera * clocks.camera_rate + clocks.camera_offset
    values = [np.interp(moment, behavior.time, column) for column in (*behavior.center.T, behavior.dilation)]
    values = [column + generator.normal(0, 0.15, len(column)) for column in values]
    lost = np.zeros(len(camera), bool)
    for start in np.flatnonzero(generator.random(len(camera)) < 1 / (60 * CAMERA_RATE)):
        lost[start : start + int(generator.choice([4, 8, 60], p=[0.5, 0.4, 0.1]))] = True
    kept = np.flatnonzero(generator.random(len(camera)) >= 1e-4)
    lines = [f"# session: {parameters.name}", "frame,time,pupil_x,pupil_y,dilation"]
    for frame in kept:
        pupil = ",," if lost[frame] else ",".join(f"{column[frame]:.3f}" for column in values)
        lines.append(f"{frame},{own[frame]:.6f},{pupil}")
    (folder / EYE).write_text("\n".join(lines) + "\n", encoding="utf-8")
