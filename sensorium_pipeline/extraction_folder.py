"""A plain movie to a folder with its cells, traces and activity, and a file of traces to a file of activity."""

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from zarr.errors import ZarrUserWarning

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.imaging.deconvolution import deconvolve
from sensorium_pipeline.imaging.extraction import ImagingParameters, PlaneExtraction, extract_plane
from sensorium_pipeline.imaging.pictures import CAPTIONS, draw_all
from sensorium_pipeline.imaging.plane_dataset import to_dataset
from sensorium_pipeline.imaging.quality import PlaneMetrics, judge
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.recordings import open_movie

DATASET = "extraction.zarr"
TRACES_A_BLOCK = 256


class DeconvolutionSummary(BaseModel):
    """What `sensorium deconvolve` did; noise is the median over neurons of the standard deviation of dF/F within a frame."""

    neurons: int
    frames: int
    median_noise: float


def extract_movie(
    movie: Path,
    out: Path,
    *,
    frame_rate: float,
    pixel_size: float | None = None,
    dataset: str | None = None,
    progress: ProgressCallback = silent,
) -> PlaneMetrics:
    """Motion, cells, traces and activity of a movie (frames, y, x).

    Args:
        movie: TIFF, HDF5 or zarr; read a few frames at a time.
        out: folder that gets extraction.zarr, report.md and pictures; appears whole or not at all.
        frame_rate: Hz.
        pixel_size: micrometres, where known.
        dataset: name inside an HDF5 or zarr file with several.
        progress: of every stage.

    Raises:
        InputError: the movie cannot be read or measured, or `out` exists.
    """
    if out.exists():
        raise InputError("something lies there already", where=out, advice="Name a new folder.")
    opened = open_movie(movie, dataset)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=parent))
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=out, advice="Choose a folder that is writable.") from error
    try:
        scratch = fresh / "scratch"
        scratch.mkdir()
        plane = extract_plane(
            opened,
            frame_rate=frame_rate,
            pixel_size=pixel_size,
            bidirectional=False,
            parameters=ImagingParameters(),
            scratch=scratch,
            progress=progress,
        )
        shutil.rmtree(scratch)
        data = to_dataset(plane)
        data.attrs["movie"] = movie.name
        with warnings.catch_warnings():
            # Consolidated metadata of zarr v3 is an extension that every reader may ignore.
            warnings.simplefilter("ignore", ZarrUserWarning)
            data.to_zarr(fresh / DATASET, zarr_format=3, consolidated=True)
        (fresh / "report.md").write_text(_report(movie.name, plane))
        for name, picture in draw_all(plane).items():
            (fresh / name).write_bytes(picture)
        fresh.chmod(0o755)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return plane.metrics


def deconvolve_file(traces: Path, out: Path, *, frame_rate: float, progress: ProgressCallback = silent) -> DeconvolutionSummary:
    """Activity of dF/F traces (neurons, frames) in a .npy file, written as one; blocks of neurons at a time.

    Raises:
        InputError: the file holds no such traces, or the result cannot be written.
    """
    try:
        dff = np.load(traces, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"not a readable .npy file ({error})", where=traces, advice="Save it with numpy.save.") from error
    if dff.ndim != 2 or dff.dtype.kind not in "fiu" or 0 in dff.shape:
        raise InputError(f"{dff.dtype} of shape {dff.shape}", where=traces, advice="Give dF/F of shape (neurons, frames).")
    part = out.with_name(f".{out.name}.part")
    noise: list[float] = []
    try:
        result = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=dff.shape)
        for start in range(0, len(dff), TRACES_A_BLOCK):
            block = slice(start, start + TRACES_A_BLOCK)
            found = deconvolve(np.asarray(dff[block], np.float32), frame_rate)
            result[block] = found.activity
            noise += found.noise.tolist()
            progress(Progress("deconvolution", min(start + TRACES_A_BLOCK, len(dff)), len(dff)))
        result.flush()
        part.replace(out)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=out, advice="Choose a folder that is writable.") from error
    finally:
        part.unlink(missing_ok=True)
    return DeconvolutionSummary(neurons=dff.shape[0], frames=dff.shape[1], median_noise=float(np.median(noise)))


def _report(name: str, plane: PlaneExtraction) -> str:
    lines = [
        f"# {name}",
        "",
        f"{plane.metrics.kept_cells} cells at {plane.frame_rate:g} frames/s.",
        "",
        "| measurement | value |",
        "|---|---|",
    ]
    lines += [f"| {field.replace('_', ' ')} | {value:.4g} |" for field, value in plane.metrics.model_dump().items()]
    if failed := [str(gate) for gate in judge(plane.metrics) if not gate.passed]:
        lines += ["", "A session with this plane would not be published: " + "; ".join(failed) + "."]
    for file, caption in CAPTIONS.items():
        lines += ["", f"![{caption}]({file})"]
    return "\n".join(lines) + "\n"
