"""Reading a raw session folder, as a rig leaves it.

session.toml                    [session] animal, session, scan; [recording] indicator, optics, area and what the scan headers do
                                not say (pixel_size um, plane_depths um, channel, dewarp);
                                [release] role, track
scans/*.tif                     ScanImage BigTIFF files of one recording
stimulus/presentations.csv      image_id, onset, offset (seconds on the clock of the stimulus machine), in the order shown
stimulus/images.csv             image_id, image_set (single, test, final_test), a row for each image of
stimulus/images.npy             (images, 144, 256) uint8
sync.h5                         what the acquisition clock saw, sample by sample: analog/photodiode, digital/frame_clock,
                                digital/treadmill, digital/eye_camera; attributes sample_rate (Hz), session
treadmill.h5                    counter (samples,) 10 MHz uint32, position (samples,) encoder counts, pulse_counter (pulses,);
                                attributes counts_per_revolution, wheel_circumference (cm), session
eye.csv                         frame, time (seconds on the camera's clock), pupil_x, pupil_y, dilation (px; empty when lost)
"""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.beside import read_pupil, read_treadmill
from sensorium_pipeline.recordings.clocks import longest_block
from sensorium_pipeline.recordings.dewarping import dewarped_width
from sensorium_pipeline.recordings.geometry import Finite, PlaneGeometry, Size
from sensorium_pipeline.recordings.hdf5 import survive_hdf5
from sensorium_pipeline.recordings.raw_session import RawSession, RecordingDescription
from sensorium_pipeline.recordings.scan_fields import AS_WRITTEN
from sensorium_pipeline.recordings.scanimage import ScanImageRecording, open_scanimage
from sensorium_pipeline.recordings.scanimage_header import ScanHeader
from sensorium_pipeline.recordings.stimulus import read_images, read_presentations
from sensorium_pipeline.recordings.sync import SyncFile

SESSION_FILE = "session.toml"
SCANS = "scans"
PRESENTATIONS = "stimulus/presentations.csv"
IMAGE_TABLE = "stimulus/images.csv"
IMAGES = "stimulus/images.npy"
SYNC = "sync.h5"
TREADMILL = "treadmill.h5"
EYE = "eye.csv"

FASTEST_MOUSE = 200.0
"""cm/s; what is faster is the device, not the mouse."""


class _SessionTable(BaseModel):
    model_config = ConfigDict(extra="ignore")
    animal: int
    session: int
    scan: int


class _RecordingTable(BaseModel):
    model_config = ConfigDict(extra="ignore")
    indicator: str
    optics: str = ""
    area: str = "V1"
    pixel_size: tuple[Size, Size] | None = None
    plane_depths: tuple[Finite, ...] | None = None
    channel: int | None = None
    dewarp: bool | None = None


class _ReleaseTable(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    track: str | None = None


class _SessionToml(BaseModel):
    session: _SessionTable
    recording: _RecordingTable
    release: _ReleaseTable


def open_session(path: Path) -> RawSession:
    """Open a raw session folder and bring all of its tables to the frame clock.

    Movies stay on disk; tables, stimuli and times are read.

    Raises:
        InputError: naming the file and the field that is missing, damaged, or of another session, and what to do.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError("is not a folder", where=path, advice="Give the folder of a raw session; it holds session.toml and scans/.")
    warnings: list[str] = []
    toml = _read_toml(path / SESSION_FILE)
    scan_files = _scan_files(path / SCANS)
    sizes = [file.stat().st_size for file in scan_files]
    recording = open_scanimage(scan_files, dewarp=toml.recording.dewarp)
    description = _describe(path, toml, recording, warnings)
    channel = _channel(path / SESSION_FILE, toml.recording.channel, recording.header.channels, warnings)
    survive_hdf5(path / SYNC, path / TREADMILL)
    sync = SyncFile(path / SYNC, description.name)
    frame_times, plane_delays, zero = _frame_times(recording, sync, path, warnings)
    end = float(frame_times[-1] + 1 / recording.header.volume_rate)
    images, image_sets = read_images(path / IMAGE_TABLE, path / IMAGES, description)
    stimulus = read_presentations(path / PRESENTATIONS, description.name, images, sync, zero, end, warnings)
    treadmill = read_treadmill(path / TREADMILL, description.name, sync, zero)
    pupil = read_pupil(path / EYE, description.name, sync, zero)
    for name, times in ((TREADMILL, treadmill.time), (EYE, pupil.time)):
        if times[0] > 0 or times[-1] < frame_times[-1]:
            warnings.append(f"{name} covers {times[0]:.1f} to {times[-1]:.1f} s of a recording of {end:.1f} s")
    _check_finished(scan_files, sizes)
    if (fastest := float(np.abs(treadmill.speed).max())) > FASTEST_MOUSE:
        warnings.append(f"{TREADMILL} says that the mouse ran at {fastest:.4g} cm/s")
    lost = float(np.isnan(pupil.dilation).mean())
    if lost > 0.2:
        warnings.append(f"the pupil is lost in {lost:.0%} of the eye camera's frames")
    scans = sorted(f"{SCANS}/{table.path.name}" for table in recording.tables)
    return RawSession(
        path=path,
        description=description,
        movies=tuple(recording.plane(plane, channel) for plane in range(len(description.planes))),
        frame_rate=float((len(frame_times) - 1) / frame_times[-1]) if len(frame_times) > 1 else recording.header.volume_rate,
        frame_times=frame_times,
        plane_delays=plane_delays,
        line_period=recording.header.line_period,
        bidirectional=recording.header.bidirectional,
        stimulus=stimulus,
        images=images,
        image_sets=image_sets,
        treadmill=treadmill,
        pupil=pupil,
        warnings=tuple(warnings),
        raw_files=tuple(sorted([SESSION_FILE, *scans, PRESENTATIONS, IMAGE_TABLE, IMAGES, SYNC, TREADMILL, EYE])),
    )


def read_session_file(path: Path) -> dict[str, Any]:
    """What session.toml of a raw session says.

    Raises:
        InputError: the file is missing or is not TOML.
    """
    if not path.is_file():
        raise InputError("is missing", where=path, advice="Give the folder of a raw session; it holds session.toml and scans/.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # a number of too many digits is no TOMLDecodeError
        raise InputError(f"is not TOML ({error})", where=path, advice="Correct the file.") from error


def _read_toml(path: Path) -> _SessionToml:
    try:
        return _SessionToml.model_validate(read_session_file(path))
    except ValidationError as error:
        raise _field_error(path, error) from error


def _field_error(path: Path, error: ValidationError, table: str = "") -> InputError:
    first = error.errors()[0]
    field = ".".join([table, *map(str, first["loc"])]).strip(".")
    return InputError(f"{field}: {first['msg']}, got {first['input']!r}", where=path, advice=f"Correct {field} in {path.name}.")


def _scan_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.tif")) if folder.is_dir() else []
    if not files:
        raise InputError("holds no .tif files", where=folder, advice="Copy the scan files of the session into it.")
    return files


def _check_finished(files: list[Path], sizes: list[int]) -> None:
    """Refuse a recording whose files changed while they were looked at."""
    for file, size in zip(files, sizes, strict=True):
        if (now := file.stat().st_size) != size:
            raise InputError(
                f"grew from {size} to {now} bytes while it was looked at: it is still being written",
                where=file,
                advice="Wait until the recording, or the copy of it, has ended.",
            )
    if (found := _scan_files(files[0].parent)) != files:
        raise InputError(
            f"{len(found) - len(files)} more scan files appeared while it was looked at: it is still being written",
            where=files[0].parent,
            advice="Wait until the recording, or the copy of it, has ended.",
        )


def _describe(path: Path, toml: _SessionToml, recording: ScanImageRecording, warnings: list[str]) -> RecordingDescription:
    header, file = recording.header, path / SESSION_FILE
    planes = _planes(file, toml.recording, recording.header, warnings)
    release = toml.release
    if release.role == "competition" and release.track is None:
        raise InputError(
            "release.track is missing: a competition session belongs to one track",
            where=file,
            advice='Add track = "sensorium" or track = "sensorium+".',
        )
    if release.role == "open" and release.track is not None:
        raise InputError("release.track is given: an open session serves both tracks", where=file, advice="Take release.track out.")
    if header.planned_volumes is not None and recording.volumes < header.planned_volumes:
        warnings.append(f"the scan was stopped after {recording.volumes} of {header.planned_volumes} planned volumes")
    try:
        return RecordingDescription(
            **toml.session.model_dump(),
            indicator=toml.recording.indicator,
            optics=toml.recording.optics,
            area=toml.recording.area,
            planes=planes,
            role=release.role,  # type: ignore[arg-type]
            track=release.track,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        first = str(error.errors()[0]["loc"][0])
        table = "session" if first in _SessionTable.model_fields else "release" if first in _ReleaseTable.model_fields else "recording"
        raise _field_error(file, error, table) from error


def _planes(file: Path, toml: _RecordingTable, header: ScanHeader, warnings: list[str]) -> tuple[PlaneGeometry, ...]:
    """Where every plane lies. What session.toml says goes before the scan header, but for the layout of several fields of view."""
    depths, given = toml.plane_depths, toml.pixel_size
    if any(field.depth is None for field in header.fields) if depths is None else len(depths) != header.slices:
        raise InputError(
            f"recording.plane_depths has {len(depths or ())} entries, and the scan {header.slices} depths",
            where=file,
            advice="Give every depth in um, in the order scanned.",
        )
    planes = []
    for field in header.fields:
        size = field.pixel_size if header.several_regions else given or field.pixel_size
        if size is None:
            raise InputError(
                "recording.pixel_size is not known: neither this file nor the scan header says it",
                where=file,
                advice="Add it, (y, x) in um.",
            )
        depth = depths[field.slice] if depths is not None else field.depth
        try:
            planes.append(PlaneGeometry(depth=depth, pixel_size=size, corner=field.corner, rotation=field.rotation))  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"the scan header places a field nowhere: {first['loc'][0]} is {first['input']!r}"
            raise InputError(problem, where=file.parent / SCANS, advice=AS_WRITTEN) from error
    if (swept := header.fields[0]).fill_fraction is not None:
        width = dewarped_width(swept.width, swept.fill_fraction)
        warnings.append(f"the sweep of the resonant mirror is undone: lines of {swept.width} pixels become lines of {width}")
    differing = [field.pixel_size for field in header.fields if given and field.pixel_size and not _alike(given, field.pixel_size)]
    if differing:
        used, unused = ("", " (used)") if header.several_regions else (" (used)", "")
        warnings.append(f"recording.pixel_size is {given} um in {SESSION_FILE}{used} and {differing[0]} um in the scan header{unused}")
    return tuple(planes)


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(abs(a / b - 1) <= 0.05 for a, b in zip(one, other, strict=True))


def _channel(file: Path, wanted: int | None, saved: tuple[int, ...], warnings: list[str]) -> int:
    """Which of the saved channels is read, counted from 0."""
    if wanted is None:
        if len(saved) > 1:
            warnings.append(
                f"channel {saved[0]} of {', '.join(map(str, saved))} is read: recording.channel in {SESSION_FILE} chooses another"
            )
        return 0
    if wanted not in saved:
        raise InputError(
            f"recording.channel is {wanted}, and the scan saved {', '.join(map(str, saved))} (SI.hChannels.channelSave)",
            where=file,
            advice="Name a saved channel.",
        )
    return saved.index(wanted)


def _frame_times(
    recording: ScanImageRecording, sync: SyncFile, path: Path, warnings: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Volume times (volumes,), plane delays (planes,), and when on the acquisition clock the first frame began; all in seconds."""
    pulses = longest_block(sync.rising("frame_clock"))
    header, frames = recording.header, recording.frames
    if not frames <= len(pulses) <= frames + 1:
        missing = "Copy the missing scan files into the folder; if the recording still runs, wait until it has ended."
        advice = missing if len(pulses) > frames else "Take the sync file of this session."
        raise InputError(
            f"digital/frame_clock counts {len(pulses)} frames, and the files in {path / SCANS} hold {frames}",
            where=sync.path,
            advice=advice,
        )
    if len(pulses) > frames:
        warnings.append("the last frame of the frame clock was not saved")
    pulses = pulses[:frames]
    scanned = recording.last.timestamp - recording.first.timestamp
    if frames > 1 and abs((pulses[-1] - pulses[0]) / scanned - 1) > 1e-3:
        raise InputError(
            f"digital/frame_clock runs for {pulses[-1] - pulses[0]:.3f} s, and frameTimestamps_sec of the scan for {scanned:.3f} s",
            where=sync.path,
            advice="Take the sync file of this session.",
        )
    written = header.frames_per_volume
    if frames % written:
        warnings.append(f"the last volume has {frames % written} of {written} frames and is left out")
    by_volume = pulses[: recording.volumes * written].reshape(recording.volumes, written)
    zero = float(by_volume[0, 0])
    slices = (by_volume - by_volume[:, :1]).mean(axis=0)
    # A field further down in its page is scanned that many lines later.
    delays = np.array([slices[field.slice] + field.first_line * header.line_period for field in header.fields])
    return by_volume[:, 0] - zero, delays, zero
