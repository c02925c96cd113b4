"""The raw movie of a session as sharded zarr beside its other products, bit by bit, so that scan files need not be kept at hand.

Each plane is a dataset of the lab store with one array (frame, y, x) a saved channel, as scanned: not dewarped, not moved. Left out are
flyback frames and the lines between fields of view. It is written a shard at a time and recorded under the recording's digest, so an
archive that was interrupted goes on with the planes that are missing.

The coding is the store's: zstd of level 3 behind a byte shuffle. On three real movies it took 1.9, 2.1 and 1.5 times less room, of
at most 2.25, 2.1 and 1.6 for any coding of single pixels, at 100 MB/s of one core. Differences in time or space made it worse (noise
doubles), level 9 better by a twentieth at a thirtieth of the speed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings import Movie, RawSession, open_session
from sensorium_pipeline.recordings.scanimage import open_scanimage
from sensorium_pipeline.recordings.session_folder import SCANS
from sensorium_pipeline.storage import Workspace, digest_of, list_files, read_result, record_result, stage

_BLOCK_BYTES = 32 << 20


class PlaneArchive(BaseModel):
    """One plane's raw movie in the lab store.

    Attributes:
        plane: its index.
        digest: of the dataset.
        raw_bytes: of its pixels, all channels.
        stored_bytes: of the dataset.
    """

    model_config = ConfigDict(frozen=True)

    plane: int
    digest: str
    raw_bytes: int
    stored_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller it is stored."""
        return self.raw_bytes / self.stored_bytes


class _ArchiveKey(BaseModel):
    recording: str
    plane: int


def _key(recording: str, plane: int) -> str:
    return f"archives/{digest_of(_ArchiveKey(recording=recording, plane=plane))}"


def archived_plane(workspace: Workspace, recording: str, plane: int) -> PlaneArchive | None:
    """The archive of a plane of the recording with this digest, None where there is none yet."""
    return read_result(workspace.lab, _key(recording, plane), PlaneArchive)


def archive_plane(workspace: Workspace, raw: Path, plane: int, *, progress: ProgressCallback = silent) -> PlaneArchive:
    """Put one plane's raw movie into the lab store, or find it there.

    Raises:
        InputError: the recording cannot be read.
    """
    session = open_session(raw)
    if not 0 <= plane < session.planes:
        raise InputError(f"there is no plane {plane}", where=raw, advice=f"It has planes 0 to {session.planes - 1}.")
    if done := archived_plane(workspace, session.digest, plane):
        return done
    recording = open_scanimage([session.path / name for name in session.raw_files if name.startswith(f"{SCANS}/")], dewarp=False)
    movies = {f"channel_{number}": recording.plane(plane, index) for index, number in enumerate(recording.header.channels)}
    raw_bytes = sum(movie.frames * movie.height * movie.width * movie.dtype.itemsize for movie in movies.values())
    written = 0
    with stage(workspace.lab) as staged:
        staged.write_tree(xr.DataTree(_times(session, plane)))
        for name, movie in movies.items():

            def report(step: Progress, before: int = written) -> None:
                progress(Progress(f"{session.name} plane {plane}: archive", before + step.done, step.total * len(movies)))

            staged.write_array(
                name,
                _blocks(movie),
                dims=("frame", "y", "x"),
                shape=(movie.frames, movie.height, movie.width),
                dtype=movie.dtype,
                attributes={"units": "counts", "long_name": f"raw frames, {name.replace('_', ' ')}"},
                progress=report,
            )
            written += movie.frames
        digest = staged.seal().digest
    stored = sum(entry.size for entry in list_files(workspace.lab, digest))
    record = PlaneArchive(plane=plane, digest=digest, raw_bytes=raw_bytes, stored_bytes=stored)
    return record_result(workspace.lab, _key(session.digest, plane), record)


def _times(session: RawSession, plane: int) -> xr.Dataset:
    """When the plane's frames began, and what is known of it."""
    geometry = session.description.planes[plane]
    times = xr.Variable("frame", session.frame_times + session.plane_delays[plane], {"units": "s", "long_name": "start of the frame"})
    return xr.Dataset(
        {"frame_time": times},
        attrs={
            "session": session.name,
            "recording_digest": session.digest,
            "plane": plane,
            "frame_rate": session.frame_rate,
            "line_period": session.line_period,
            "bidirectional": session.bidirectional,
            **geometry.model_dump(),
        },
    )


def _blocks(movie: Movie) -> Iterator[NDArray[Any]]:
    many = max(1, _BLOCK_BYTES // (movie.height * movie.width * movie.dtype.itemsize))
    for start in range(0, movie.frames, many):
        yield np.ascontiguousarray(movie.read(start, min(movie.frames, start + many)))
