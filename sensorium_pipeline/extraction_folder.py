"""A plain movie to a folder with its cells, traces and activity, and a file of traces to a file of activity."""

import errno
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel
from zarr.storage import LocalStore

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.imaging.deconvolution import Deconvolution, deconvolve
from sensorium_pipeline.imaging.extraction import check_scale, extract_plane
from sensorium_pipeline.imaging.parameters import ImagingParameters, SegmenterName
from sensorium_pipeline.imaging.plane_dataset import to_dataset
from sensorium_pipeline.imaging.plane_extraction import PlaneExtraction, PlaneMotion
from sensorium_pipeline.imaging.quality import PlaneMetrics, judge
from sensorium_pipeline.imaging.scratch import held_folder
from sensorium_pipeline.imaging.stage_results import StageKeys, StageResults, stage_keys
from sensorium_pipeline.movie_digest import MovieDigest
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings import open_with_rate
from sensorium_pipeline.recordings.geometry import pixel_edge
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Store, trees

DATASET = "extraction.zarr"
TRACES_A_BLOCK, VALUES_A_BLOCK = 256, 2**24  # what is deconvolved at a time is bounded however long the recording


class DeconvolutionSummary(BaseModel):
    """What `sensorium deconvolve` did.

    Attributes:
        neurons, frames: of the traces.
        median_noise: median of the standard deviation of the noise within a frame, in the traces' unit.
        median_decay, median_rise: medians of the time constants of the calcium, s.
            All are medians over the traces that hold a signal, None where none does.
        warning: what looks wrong with the traces, if anything.
    """

    neurons: int
    frames: int
    median_noise: float | None
    median_decay: float | None
    median_rise: float | None
    warning: str | None


def extract_movie(
    movie: Path,
    out: Path,
    *,
    frame_rate: float | None = None,
    pixel_size: float | None = None,
    dataset: str | None = None,
    segmenter: SegmenterName = "sensorium",
    digest: MovieDigest | None = None,
    progress: ProgressCallback = silent,
) -> PlaneMetrics:
    """Motion, cells, traces and activity of a movie (frames, y, x).

    What was finished of a run that was killed, or that found the disk full, lies in a hidden folder beside `out` and is gone on with. A
    result that is there already, of the same movie and options, is found and not made again.

    Args:
        movie: what `recordings.open_movie` opens; read a few frames at a time.
        out: folder that gets extraction.zarr, report.md and pictures; appears whole or not at all.
        frame_rate: Hz; left out, it is the one that the movie's file gives.
        pixel_size: micrometres, where known; left out, likewise.
        dataset: which movie, in a file or folder with several.
        segmenter: what finds the cells.
        digest: of `movie` and `dataset`, where it is being made already.
        progress: of every stage.

    Raises:
        InputError: the movie cannot be read or measured, or something else lies at `out`.
        PlatformError: the disk is full.
    """
    with nullcontext(digest) if digest else MovieDigest(movie, dataset) as checked:
        opened = open_with_rate(movie, dataset)
        frame_rate = opened.frame_rate if frame_rate is None else frame_rate
        if frame_rate is None:
            raise InputError("does not say how many frames a second it has", where=movie, advice="Give --frame-rate.")
        sides = opened.pixel_size if pixel_size is None else (pixel_size, pixel_size)
        pixel_size = None if sides is None else pixel_edge(sides)
        check_scale(frame_rate, pixel_size)  # before the digest of it all, which has no place for a number that is none
        parameters = ImagingParameters(segmenter=segmenter)
        keys = stage_keys(
            checked.wait(progress, opened.linked),
            frame_rate=frame_rate,
            pixel_size=pixel_size,
            bidirectional=opened.bidirectional,
            parameters=parameters,
        )
    name = f".{out.name}.unfinished"
    if out.exists():
        metrics = _finished(out, keys)
        # A run may have been killed between its last step and the removal of what it no longer needed.
        shutil.rmtree(out.absolute().with_name(name), ignore_errors=True)
        return metrics
    with (
        _writable(out),
        held_folder(out.absolute().parent, name, progress) as unfinished,
        ThreadPoolExecutor(1) as pool,
    ):
        # What draws takes a second to load, which the compiled loops of motion correction do not wait for.
        pool.submit(_load_libraries)
        if out.exists():
            return _finished(out, keys)
        scratch = unfinished / "scratch"
        for folder in scratch.glob("*"):
            if folder.name not in keys.motion:
                shutil.rmtree(folder)
        drawn: dict[str, bytes] = {}

        def draw(known: PlaneMotion) -> None:
            from sensorium_pipeline.imaging.pictures import draw_after_motion

            drawn.update(draw_after_motion(known))

        plane = extract_plane(
            opened.movie,
            frame_rate=frame_rate,
            pixel_size=pixel_size,
            bidirectional=opened.bidirectional,
            parameters=parameters,
            scratch=scratch,
            finished=StageResults(Store("unfinished", RootSettings(url=str(unfinished / "stages"))), keys),
            name=str(movie),
            progress=progress,
            after_motion=draw,
        )
        result = unfinished / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        report = pool.submit(_report, movie.name, plane, drawn)
        data = to_dataset(plane, sides)
        data.attrs["movie"], data.attrs["extraction"] = movie.name, keys.activity
        store = LocalStore(result / DATASET)
        trees.write_tree(store, xr.DataTree(data), progress)
        trees.consolidate(store, str(result / DATASET))
        for file, content in report.result().items():
            (result / file).write_bytes(content)
        checked.check_unchanged()
        result.rename(out)
    return plane.metrics


def _load_libraries() -> None:
    """Load what only later stages need."""
    import sensorium_pipeline.imaging.plane_report  # noqa: F401


def _report(name: str, plane: PlaneExtraction, drawn: dict[str, bytes]) -> dict[str, bytes]:
    from sensorium_pipeline.imaging.plane_report import plane_report

    return plane_report(name, plane, judge(plane.metrics), drawn)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Errors of the file system as errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PlatformError(
                "the disk is full", where=out, advice="Free space there and repeat the command: it goes on from what was finished."
            ) from error
        raise InputError(f"cannot be written ({error.strerror})", where=out, advice="Choose a folder that is writable.") from error


def _finished(out: Path, keys: StageKeys) -> PlaneMetrics:
    """The metrics of a result that is there already."""
    try:
        attributes = json.loads((out / DATASET / "zarr.json").read_text())["attributes"]
        if attributes["extraction"] == keys.activity:
            return PlaneMetrics.model_validate(attributes["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        "something lies there already, and not the result of this movie and these options", where=out, advice="Name a new folder."
    )


def deconvolve_file(traces: Path, out: Path, *, frame_rate: float, progress: ProgressCallback = silent) -> DeconvolutionSummary:
    """Activity of dF/F traces (neurons, frames) in a .npy file, written as one; blocks of neurons at a time.

    Raises:
        InputError: the file holds no such traces, or the result cannot be written.
    """
    try:
        dff = np.load(traces, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=traces, advice="Name a .npy file of dF/F traces (neurons, frames).") from error
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).split(". ")[0]  # numpy goes on with how to load what is not safe
        raise InputError(f"not a readable .npy file ({reason})", where=traces, advice="Save it with numpy.save.") from error
    if not isinstance(dff, np.ndarray) or dff.ndim != 2 or dff.dtype.kind not in "fiu" or 0 in dff.shape:
        what = f"{dff.dtype} of shape {dff.shape}" if isinstance(dff, np.ndarray) else "several arrays"
        raise InputError(what, where=traces, advice="Give dF/F of shape (neurons, frames), (1, frames) for one neuron.")
    if out.exists() and not out.is_file():
        raise InputError("is a folder" if out.is_dir() else "is no ordinary file", where=out, advice="Name the .npy file to write.")
    neurons, frames = dff.shape
    warnings = []
    if neurons > frames:
        warnings.append(f"{neurons} neurons and only {frames} frames: is the table transposed? It has to be (neurons, frames).")
    size = max(min(TRACES_A_BLOCK, VALUES_A_BLOCK // frames), 1)
    part = out.with_name(f".{out.name}.part")
    measured: list[NDArray[np.float32]] = []
    try:
        with part.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": dff.shape})
            for start in range(0, neurons, size):
                # Mapped anew for each block: pages of the others do not count as this process's memory.
                block = np.array(np.load(traces, mmap_mode="r")[start : start + size])
                found = _deconvolve_block(block, frame_rate, traces, start)
                file.write(np.ascontiguousarray(found.activity, "<f4").data)
                signal = found.time_constants[:, 0] > 0
                measured.append(np.column_stack([found.noise, found.time_constants])[signal])
                progress(Progress("deconvolution", min(start + size, neurons), neurons, unit="neurons"))
        part.replace(out)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=out, advice="Choose a folder that is writable.") from error
    finally:
        part.unlink(missing_ok=True)
    known = np.concatenate(measured)
    if len(known) < neurons:
        warnings.append(f"{neurons - len(known)} of {neurons} traces are constant or NaN throughout and show no activity.")
    noise, decay, rise = (float(each) for each in np.median(known, axis=0)) if len(known) else (None, None, None)
    return DeconvolutionSummary(
        neurons=neurons,
        frames=frames,
        median_noise=noise,
        median_decay=decay,
        median_rise=rise,
        warning=" ".join(warnings) or None,
    )


def _deconvolve_block(block: NDArray[np.float32], frame_rate: float, traces: Path, start: int) -> Deconvolution:
    """Activity of some neurons of a file, from `start` on, by which errors name them."""
    try:
        return deconvolve(block, frame_rate)
    except InputError as error:
        if not error.where.startswith("traces"):
            raise
        where = f"{traces}, neurons {start} to {start + len(block) - 1}"
        raise InputError(error.problem, where=where, advice=error.advice) from error
