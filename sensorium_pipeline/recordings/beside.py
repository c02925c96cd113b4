"""What is recorded beside the brain: treadmill and eye camera, each on a clock of its own, brought to the frame clock."""

from pathlib import Path

import numpy as np

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.clocks import counter_difference, join_clocks, unwrap_counter
from sensorium_pipeline.recordings.raw_session import Pupil, Treadmill
from sensorium_pipeline.recordings.sync import SyncFile, check_session
from sensorium_pipeline.recordings.tables import Hdf5Table, commented_session, read_columns, whole_numbers

SPEED_WINDOW = 0.1
"""Seconds over which speed is taken, as the SENSORIUM lab does (a gradient at 10 Hz)."""

_TOLERANCE = 0.02
_CAMERA_TOLERANCE = 0.01
_CLOCKS_APART = 0.01
"""Part by which two clocks may differ in speed; quartz differs by a hundredth of that."""


def read_treadmill(path: Path, session: str, sync: SyncFile, zero: float) -> Treadmill:
    """Running speed in cm/s on the frame clock.

    The device stamps its samples and the pulses that it shares with the acquisition with a 32-bit counter of 10 MHz.

    Raises:
        InputError: when the file is missing, damaged, or its pulses are not those of the sync file.
    """
    table = Hdf5Table(path)
    check_session(path, table.text("session"), session)
    counter, pulse_counter = table.vector("counter"), table.vector("pulse_counter")
    position = table.vector("position").astype(np.float64)
    if len(counter) != len(position) or len(counter) < 2:
        raise InputError(f"counter has {len(counter)} samples, position {len(position)}", where=path, advice="Copy the file again.")
    for name, values in (("counter", counter), ("pulse_counter", pulse_counter)):
        if values.dtype.kind not in "iu":
            raise InputError(f"{name} is {values.dtype}, not whole numbers", where=path, advice="Export the file again from the device.")
    if not np.isfinite(position).all():
        raise InputError("position has values that are not numbers", where=path, advice="Export the file again from the device.")
    time = unwrap_counter(counter, where=f"{path}, counter")
    if not time[-1] > time[0]:
        raise InputError("counter stands still", where=path, advice="Export the file again from the device.")
    pulses = unwrap_counter(pulse_counter, where=f"{path}, pulse_counter")
    if len(pulses):  # both from the first sample on
        pulses = pulses + counter_difference(int(counter[0]), int(pulse_counter[0]))
    seen = sync.rising("treadmill")
    joined = join_clocks(pulses, seen, tolerance=_TOLERANCE)
    if joined is None or len(joined.theirs) < 0.9 * min(len(pulses), len(seen)):
        matched = 0 if joined is None else len(joined.theirs)
        raise InputError(
            f"pulse_counter: {matched} of {len(pulses)} pulses agree with the {len(seen)} of {sync.path.name}, digital/treadmill",
            where=path,
            advice="It belongs to another session: copy the treadmill file of this session.",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        distance = position / table.number("counts_per_revolution") * table.number("wheel_circumference")
    if not np.isfinite(distance).all():
        raise InputError("position is too large for a wheel", where=path, advice="Export the file again from the device.")
    half = SPEED_WINDOW / 2
    before, after = np.clip(time - half, time[0], None), np.clip(time + half, None, time[-1])
    speed = (np.interp(after, time, distance) - np.interp(before, time, distance)) / (after - before)
    return Treadmill(joined(time) - zero, speed)


def read_pupil(path: Path, session: str, sync: SyncFile, zero: float) -> Pupil:
    """Pupil centre and dilation on the frame clock; each frame of the camera gave one pulse, frame 0 the first.

    Raises:
        InputError: when the table is missing columns, or the camera's own clock and its pulses disagree.
    """
    check_session(path, commented_session(path), session)
    lost = ("pupil_x", "pupil_y", "dilation")
    columns = read_columns(path, ["frame", "time", *lost], may_lack=lost)
    frame = whole_numbers(columns["frame"], path, "frame")
    if (np.diff(frame) <= 0).any() or frame[0] < 0:
        raise InputError("frame: numbers are not ascending", where=path, advice="Export the table again.")
    pulses = sync.rising("eye_camera")
    if len(frame) < 2 or frame[-1] >= len(pulses):
        raise InputError(
            f"frame: the last is {frame[-1]}, and {sync.path.name}, digital/eye_camera, counts {len(pulses)} frames",
            where=path,
            advice="Take the eye camera's table of this session.",
        )
    time = pulses[frame]
    own = columns["time"] - columns["time"][0]
    if not (np.diff(own) >= 0).all() or own[-1] == 0:
        raise InputError("time: stamps are not ascending", where=path, advice="Export the table again.")
    rate, offset = np.polyfit(own, time, 1)
    if abs(rate - 1) > _CLOCKS_APART:
        raise InputError(
            f"time: its {own[-1]:.1f} s are {time[-1] - time[0]:.1f} s by the pulses in {sync.path.name}, digital/eye_camera",
            where=path,
            advice="Take the eye camera's table of this session, with times in seconds.",
        )
    if (apart := float(np.quantile(np.abs(rate * own + offset - time), 0.95))) > _CAMERA_TOLERANCE:
        raise InputError(
            f"time: the camera's clock is up to {apart:.3f} s from its pulses in {sync.path.name}, digital/eye_camera",
            where=path,
            advice="Take the eye camera's table of this session.",
        )
    center, dilation = np.stack([columns["pupil_x"], columns["pupil_y"]], axis=1), columns["dilation"]
    missing = np.isnan(center).any(axis=1) | np.isnan(dilation)
    center[missing], dilation[missing] = np.nan, np.nan
    return Pupil(time - zero, center, dilation)
