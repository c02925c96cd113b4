"""Simulating a raw session with known truth.

`<out>` is a session folder as `session_folder.py` describes it; `<out>-truth`, beside it, holds what ingestion must find out:

    parameters.json                 the parameters
    truth.h5 /images                image_id (images,), expected_count (images, neurons) at mean gain
             /presentations         image_id, onset, offset (s on the frame clock), expected_count and spike_count (presentations, neurons),
                                    gain (presentations,)
             /neurons               plane, center (y, x px), position (x, y, depth um), delay (s after the volume's start),
                                    kind (0 energy, 1 subunit, 2 linear), orientation, wavelength, receptive_field
             /planes/<k>            a field of view at a depth: footprints (neurons, y, x), shifts (volumes, 2) y, x px,
                                    dff (neurons, volumes), out_of_focus (volumes,)
             /behavior              time, speed, dilation, center
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings.scanimage_writer import ScanImageWriter, fields_text, first_lines, header_text, page_shape
from sensorium_pipeline.recordings.session_folder import SCANS
from sensorium_pipeline.recordings.simulated_activity import Activity, draw_activity
from sensorium_pipeline.recordings.simulated_files import (
    draw_clocks,
    plane_depths,
    write_description,
    write_eye,
    write_stimulus,
    write_sync,
    write_treadmill,
)
from sensorium_pipeline.recordings.simulated_images import natural_image
from sensorium_pipeline.recordings.simulated_movie import Plane, draw_courses, draw_motion, draw_plane, render
from sensorium_pipeline.recordings.simulated_population import KINDS, Population, draw_population, expected_counts
from sensorium_pipeline.recordings.simulated_schedule import LEAD, Behavior, Schedule, draw_behavior, draw_schedule
from sensorium_pipeline.recordings.simulation_parameters import SimulationParameters

_CHUNK_BYTES = 32 << 20
_FRACTIONS = (0.45, 0.25, 0.30)
_OUT_OF_FOCUS_EVERY = 400.0  # seconds


@dataclass(frozen=True)
class _Scan:
    """A plane over the whole recording: what varies is a few numbers a frame.

    `page` and `first_line` say where in a volume it stands, `positions` (neurons, 3) x, y, depth in um and `delays` (neurons,) in s
    where and when its neurons are scanned.
    """

    plane: Plane
    page: int
    first_line: int
    positions: NDArray[np.float64]
    delays: NDArray[np.float64]
    dff: NDArray[np.float32]
    shifts: NDArray[np.float64]
    out_of_focus: NDArray[np.float64]
    courses: NDArray[np.float32]


def truth_folder(out: Path) -> Path:
    """Where the truth of a simulated session lies: beside it."""
    return out.with_name(out.name + "-truth")


def simulate_recording(out: Path, parameters: SimulationParameters, progress: ProgressCallback = silent) -> None:
    """Write a simulated raw session to `out` and its truth beside it; the same parameters give the same bytes.

    Nothing is seen at either place until both are complete.

    Raises:
        InputError: when `out` or its truth folder exists and is not empty, or the timeline cannot be used.
    """
    out = Path(out)
    truth = truth_folder(out)
    for path in (out, truth):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError("exists already", where=path, advice="Give a new or empty folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    writing = out.with_name(f".{out.name}-writing-{os.getpid()}")
    try:
        (writing / "raw" / SCANS).mkdir(parents=True)
        (writing / "truth").mkdir()
        _simulate(writing / "raw", writing / "truth", parameters, progress)
        (writing / "truth").rename(truth)
        (writing / "raw").rename(out)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _simulate(raw: Path, truth: Path, parameters: SimulationParameters, progress: ProgressCallback) -> None:
    # A generator for each part: a change in one leaves the others as they are.
    streams = np.random.default_rng(parameters.seed).spawn(8)
    schedule = draw_schedule(parameters, streams[0])
    ids = np.array(list(schedule.image_sets), np.int64)
    images = np.empty((len(ids), 144, 256), np.uint8)
    for index, image_id in enumerate(ids):
        if index % 50 == 0:
            progress(Progress("images", index, len(ids)))
        images[index] = natural_image(parameters.image_seed, int(image_id))
    progress(Progress("images", len(ids), len(ids)))
    fields = parameters.written_fields * parameters.planes
    planes = [draw_plane(parameters, (field.height, field.width), streams[1]) for field in fields]
    positions = np.concatenate([plane.centers for plane in planes])
    population = draw_population(
        positions,
        (parameters.height, parameters.width),
        orientations=parameters.orientations,
        wavelengths=parameters.wavelengths,
        fractions=_FRACTIONS,
        spikes=parameters.spikes,
        generator=streams[2],
    )
    by_image = expected_counts(population, images)
    expected = by_image[np.searchsorted(ids, schedule.image_id)]
    volumes = int(np.ceil(schedule.end * parameters.volume_rate))
    behavior = draw_behavior(-LEAD / 2, volumes / parameters.volume_rate + LEAD / 4, streams[3])
    activity = draw_activity(expected, schedule, behavior, streams[4])
    scans = _scans(planes, activity, behavior, volumes, parameters, streams[5])
    clocks = draw_clocks(volumes / parameters.volume_rate, streams[6])
    write_description(raw, parameters)
    write_stimulus(raw, parameters, schedule, images, clocks)
    camera = write_sync(raw, parameters, schedule, clocks, volumes * parameters.frames_per_volume, streams[6])
    write_treadmill(raw, parameters, behavior, clocks)
    write_eye(raw, parameters, behavior, clocks, camera, streams[6])
    _write_scan(raw / SCANS, scans, volumes, parameters, streams[7], progress)
    (truth / "parameters.json").write_text(json.dumps(parameters.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    _write_truth(truth / "truth.h5", ids, by_image, expected, schedule, activity, behavior, population, scans)


def _scans(
    planes: list[Plane],
    activity: Activity,
    behavior: Behavior,
    volumes: int,
    parameters: SimulationParameters,
    generator: np.random.Generator,
) -> list[_Scan]:
    rate, size = parameters.volume_rate, parameters.pixel_size
    frame_period = 1 / (rate * parameters.frames_per_volume)
    start = np.arange(volumes) / rate
    motion = draw_motion(parameters, np.interp(start, behavior.time, behavior.speed), generator)
    # Now and then the brain moves along the optical axis for about a second: frames that no shift can mend.
    lapses = generator.uniform(LEAD, start[-1], generator.poisson(start[-1] / _OUT_OF_FOCUS_EVERY))
    fields, first_line = parameters.written_fields, first_lines(parameters.written_fields)
    scans, first = [], 0
    for index, plane in enumerate(planes):
        page, field = divmod(index, len(fields))
        begin = page * frame_period + first_line[field] * parameters.line_period
        delays = begin + plane.centers[:, 0] * parameters.line_period
        neurons = len(plane.centers)
        dff = np.stack([np.interp(start + delays[n], activity.time, activity.dff[first + n]) for n in range(neurons)]).astype(np.float32)
        first += neurons
        time = start + begin
        shifts = np.stack([np.interp(time, start, motion[:, axis]) for axis in range(2)], axis=1)
        away = np.exp(-(((time[:, None] - lapses[None, :]) / 0.35) ** 4)).sum(axis=1).clip(0, 0.9)
        # With one field of view positions count from its first pixel, with several from the centre of the microscope's field.
        y, x = fields[field].center if len(fields) > 1 else ((plane.shape[0] - 1) / 2 * size, (plane.shape[1] - 1) / 2 * size)
        center_y, center_x = ((plane.shape[axis] - 1) / 2 for axis in range(2))
        positions = np.column_stack(
            [
                x + (plane.centers[:, 1] - center_x) * size,
                y + (plane.centers[:, 0] - center_y) * size,
                np.full(neurons, plane_depths(parameters)[page]),
            ]
        )
        courses = draw_courses(plane, dff, away, rate, generator)
        scans.append(_Scan(plane, page, first_line[field], positions, delays, dff, shifts, away, courses))
    return scans


def _write_scan(
    folder: Path,
    scans: list[_Scan],
    volumes: int,
    parameters: SimulationParameters,
    generator: np.random.Generator,
    progress: ProgressCallback,
) -> None:
    fields, per_volume = parameters.written_fields, parameters.frames_per_volume
    shape = page_shape(fields)
    header = header_text(
        fields=fields,
        channels=[1],
        planes=parameters.planes,
        frames_per_volume=per_volume,
        depths=plane_depths(parameters),
        volume_rate=parameters.volume_rate,
        line_period=parameters.line_period,
        bidirectional=True,
        pixel_size=parameters.pixel_size,
        volumes=volumes,
    )
    chunk = max(1, _CHUNK_BYTES // (scans[0].plane.scene.shape[1] * 4 * len(fields)))
    stem = f"scan_{parameters.name}"
    text, pages_per_file = fields_text(fields, parameters.pixel_size), parameters.volumes_per_file * per_volume
    with ScanImageWriter(folder, stem, shape, header, text, pages_per_file=pages_per_file) as writer:
        for start in range(0, volumes, chunk):
            stop = min(volumes, start + chunk)
            progress(Progress("frames", start * per_volume, volumes * per_volume))
            pages = np.zeros((stop - start, per_volume, *shape), np.int16)
            for scan in scans:
                frames = render(scan.plane, scan.courses[start:stop], scan.shifts[start:stop], parameters, generator)
                lines = slice(scan.first_line, scan.first_line + frames.shape[1])
                pages[:, scan.page, lines, : frames.shape[2]] = frames
            for index in range(parameters.planes, per_volume):  # what the scan sees on its way back is a blur of the planes
                blur = pages[:, : parameters.planes].mean(axis=(1, 3), keepdims=True)[:, 0]
                pages[:, index] = blur + 60 * generator.standard_normal(pages[:, index].shape, dtype=np.float32)
            times = np.arange(start * per_volume, stop * per_volume) / (parameters.volume_rate * per_volume)
            writer.write(pages.reshape(-1, *shape), times)
    progress(Progress("frames", volumes * per_volume, volumes * per_volume))


def _write_truth(
    path: Path,
    ids: NDArray[np.int64],
    by_image: NDArray[np.float64],
    expected: NDArray[np.float64],
    schedule: Schedule,
    activity: Activity,
    behavior: Behavior,
    population: Population,
    scans: list[_Scan],
) -> None:
    with h5py.File(path, "w") as file:
        file["images/image_id"], file["images/expected_count"] = ids, by_image
        for name in ("image_id", "onset", "offset"):
            file[f"presentations/{name}"] = getattr(schedule, name)
        file["presentations/expected_count"], file["presentations/spike_count"] = expected, activity.spike_counts
        file["presentations/gain"] = activity.gain
        file["neurons/plane"] = np.repeat(np.arange(len(scans)), [len(scan.plane.centers) for scan in scans])
        file["neurons/center"] = np.concatenate([scan.plane.centers for scan in scans])
        file["neurons/position"] = np.concatenate([scan.positions for scan in scans])
        file["neurons/delay"] = np.concatenate([scan.delays for scan in scans])
        file["neurons/receptive_field"] = population.center
        for name in ("kind", "orientation", "wavelength"):
            file[f"neurons/{name}"] = getattr(population, name)
        file["neurons/kind"].attrs["meaning"] = ", ".join(f"{index} {kind}" for index, kind in enumerate(KINDS))
        for index, scan in enumerate(scans):
            group = file.create_group(f"planes/{index}")
            group.create_dataset("footprints", data=scan.plane.footprints, compression="gzip", compression_opts=1)
            group["shifts"], group["dff"], group["out_of_focus"] = scan.shifts, scan.dff, scan.out_of_focus
        for name in ("time", "speed", "dilation", "center"):
            file[f"behavior/{name}"] = getattr(behavior, name)
