"""Cells from suite2p (Pachitariu et al. 2017), on the movie whose motion was corrected here.

suite2p is licensed under the GPL and has requirements of its own, so it is never loaded into this process: a script is run by the
interpreter of an environment that has it, the one in `SENSORIUM_SUITE2P_PYTHON`. Files on scratch disk are all that is exchanged. Its
parameters are its own defaults, but for the length of a bin and the diameter of a soma.

suite2p holds its binned movie in memory (up to 5000 bins as float32), and the traces of all cells.
"""

import os
import signal
import subprocess
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.ndimage import uniform_filter1d

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.cells import Cells
from sensorium_pipeline.imaging.corrected_movie import CorrectedMovie
from sensorium_pipeline.progress import Progress, ProgressCallback, silent

SETTING = "SENSORIUM_SUITE2P_PYTHON"
SUPPORTED = "1.1"  # others have another interface, and may find other cells
SCRIPT = Path(__file__).with_name("suite2p_segmenter_script.py")
MOST_BINS = 5000
FEWEST_BINS = 8  # without which nothing is looked for
LEAST_PROBABILITY = 0.5  # suite2p's own
LAST_LINES = 5
SECONDS_A_LOOK = 0.5

_VERSION = "from importlib.metadata import version; print(version('suite2p'))"
_INSTALL = f"Make an environment with `pip install 'suite2p=={SUPPORTED}.*'` and name its python, or leave the segmenter at sensorium."


class Request(BaseModel):
    """What the script is asked.

    Attributes:
        movie: path of the pixels (frames, height, width) of type dtype.
        bin_size: frames in one frame of the binned movie.
        diameter: of a soma, pixels.
        rows, columns: first and one past the last of the rectangle to look at.
    """

    movie: str
    frames: int
    height: int
    width: int
    dtype: str
    bin_size: int
    diameter: float
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class Suite2pSegmenter:
    """suite2p in the environment of the interpreter `python`; a `Segmenter`. See `open_suite2p`."""

    python: Path

    def __call__(
        self,
        movie: CorrectedMovie,
        *,
        frame_rate: float,
        flagged: NDArray[np.bool_],
        inside: NDArray[np.bool_],
        parameters: CellParameters,
        scratch: Path,
        pixel_size: float | None = None,
        progress: ProgressCallback = silent,
        threads: int = 1,
    ) -> Cells:
        """Find the cells of a motion-corrected movie; see `Segmenter`.

        Raises:
            PlatformError: suite2p failed, or what it left cannot be used.
        """
        used = np.flatnonzero(~flagged)
        bin_size = max(1, len(used) // MOST_BINS, round(parameters.bin_duration * frame_rate))
        if len(used) < FEWEST_BINS * bin_size or not inside.any():
            return _to_cells(_Found.none(), inside, parameters, 1.0)
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        request = Request(
            movie=str(movie.path.absolute()),
            frames=movie.frames,
            height=movie.height,
            width=movie.width,
            dtype=movie.dtype.str,
            bin_size=bin_size,
            diameter=float(np.sqrt(np.prod(parameters.diameters(pixel_size)))),
            rows=(int(rows[0]), int(rows[-1]) + 1),
            columns=(int(columns[0]), int(columns[-1]) + 1),
        )
        with tempfile.TemporaryDirectory(prefix="suite2p-", dir=scratch) as name:
            folder = Path(name)
            (folder / "request.json").write_text(request.model_dump_json())
            np.save(folder / "frames.npy", used)
            self._run(folder, threads, progress)
            found = _read(folder / "cells.npz", pixels=movie.height * movie.width)
        cells = _to_cells(found, inside, parameters, frame_rate / bin_size)
        progress(Progress("cells", 1, 1, f"{len(cells)} found"))
        return cells

    def _run(self, folder: Path, threads: int, progress: ProgressCallback) -> None:
        """Run the script to its end; whatever ends the wait ends the script."""
        said = folder / "stderr"
        # Sums split over threads differ in their last bits; loops that numba spreads do not.
        environment = _environment() | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        environment["NUMBA_NUM_THREADS"] = str(max(threads, 1))
        with said.open("wb") as stderr:
            try:
                process = subprocess.Popen(
                    [self.python, SCRIPT, folder.absolute()],
                    stdin=subprocess.PIPE,  # held open, so that the script learns of the end of this process
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise _cannot_run(self.python, error) from error
        try:
            while True:
                progress(Progress("cells", 0, 1, "suite2p"))
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(SECONDS_A_LOOK)
                    break
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        if code:
            ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()][-LAST_LINES:]
            raise PlatformError(
                f"suite2p failed ({ended}): {' | '.join(lines) or 'it said nothing'}",
                where=self.python,
                advice="It needs memory for its binned movie; where it has that, take the segmenter sensorium.",
            )


def open_suite2p(python: Path | None) -> Suite2pSegmenter:
    """The segmenter of the environment that `python` is the interpreter of.

    Raises:
        InputError: none is named, it cannot be run, or it has no suite2p that is supported.
    """
    if python is None:
        raise InputError("the segmenter suite2p needs an environment of its own, and none is named", where=SETTING, advice=_INSTALL)
    try:
        looked = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, errors="replace", env=_environment(), check=False)
    except OSError as error:
        raise _cannot_run(python, error) from error
    version = looked.stdout.strip()
    if looked.returncode or not version:
        raise InputError(f"{python} has no suite2p", where=SETTING, advice=_INSTALL)
    if version.split(".")[:2] != SUPPORTED.split("."):
        raise InputError(f"{python} has suite2p {version}, and {SUPPORTED} is supported", where=SETTING, advice=_INSTALL)
    return Suite2pSegmenter(python)


def _cannot_run(python: Path, error: OSError) -> InputError:
    return InputError(f"{python} cannot be run ({error.strerror})", where=SETTING, advice=_INSTALL)


def _environment() -> dict[str, str]:
    """Without what names the packages of this environment."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


@dataclass(frozen=True)
class _Found:
    """What the script found; see there."""

    neuron: NDArray[np.int32]
    pixel: NDArray[np.int32]
    weight: NDArray[np.float32]
    probability: NDArray[np.float32]
    trace: NDArray[np.float32]

    @classmethod
    def none(cls) -> "_Found":
        index, value = np.empty(0, np.int32), np.empty(0, np.float32)
        return cls(index, index, value, value, np.empty((0, 0), np.float32))

    def problem(self, pixels: int) -> str:
        """What is wrong with it, in a plane of so many pixels; empty if nothing is."""
        for name, part in _Found.none().__dict__.items():
            mine = getattr(self, name)
            if mine.dtype != part.dtype or mine.ndim != part.ndim:
                return f"{name} is {mine.dtype} in {mine.ndim} dimensions"
            if not np.isfinite(mine).all():
                return f"{name} is not finite"
        if not len(self.neuron) == len(self.pixel) == len(self.weight) or len(self.probability) != len(self.trace):
            return "the lengths do not agree"
        if not np.array_equal(np.unique(self.neuron), np.arange(len(self.probability))) or np.any(np.diff(self.neuron) < 0):
            return "footprints are missing or out of order"
        if np.any(self.pixel < 0) or np.any(self.pixel >= pixels):
            return "footprints reach beyond the field"
        if len(np.unique(self.neuron.astype(np.int64) * pixels + self.pixel)) < len(self.pixel):
            return "a footprint has a pixel twice"
        if np.any(self.weight < 0) or np.any((self.probability < 0) | (self.probability > 1)):
            return "weights or probabilities are out of range"
        return ""


def _read(path: Path, pixels: int) -> _Found:
    """The result of the script.

    Raises:
        PlatformError: there is none, or not what it should be.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = _Found(**{name: file[name] for name in _Found.__dataclass_fields__})
        problem = found.problem(pixels)
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise PlatformError(
            f"suite2p left no usable result ({problem})",
            where=SETTING,
            advice="Check that the interpreter is that of a working suite2p, or take the segmenter sensorium.",
        )
    return found


def _to_cells(found: _Found, inside: NDArray[np.bool_], parameters: CellParameters, rate: float) -> Cells:
    """Footprints within the field, the largest signal first; `rate` is that of the bins, Hz."""
    width = inside.shape[1]
    snr = _signal_to_noise(found.trace, max(round(parameters.high_pass * rate), 1))
    ranked: list[tuple[float, tuple[float, float], int, NDArray[np.int32], NDArray[np.float64]]] = []
    for cell, (start, stop) in enumerate(zip(*_ranges(found.neuron, len(found.probability)), strict=True)):
        pixel, weight = found.pixel[start:stop], found.weight[start:stop].astype(np.float64)
        use = (weight > 0) & inside.ravel()[pixel]
        if not use.any():
            continue
        order = np.argsort(pixel[use])
        pixel, weight = pixel[use][order], weight[use][order]
        centroid = (float(np.average(pixel // width, weights=weight)), float(np.average(pixel % width, weights=weight)))
        ranked.append((-float(snr[cell]), centroid, cell, pixel, weight / np.linalg.norm(weight)))
    ranked.sort(key=lambda entry: entry[:3])
    probability = [float(found.probability[entry[2]]) for entry in ranked]
    reason = tuple("" if value > LEAST_PROBABILITY else f"suite2p: not a cell, probability {value:.2f}" for value in probability)
    sizes = [len(entry[3]) for entry in ranked]
    return Cells(
        neuron=np.repeat(np.arange(len(ranked), dtype=np.int32), sizes),
        pixel=np.concatenate([np.empty(0, np.int32), *(entry[3] for entry in ranked)]),
        weight=np.concatenate([np.empty(0), *(entry[4] for entry in ranked)]).astype(np.float32),
        centroids=np.array([entry[1] for entry in ranked], np.float32).reshape(-1, 2),
        detection_snr=np.array([-entry[0] for entry in ranked], np.float32),
        kept=np.array([not text for text in reason], bool),
        reason=reason,
    )


def _ranges(neuron: NDArray[np.int32], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """First and one past the last entry of every cell."""
    cells = np.arange(count)
    return np.searchsorted(neuron, cells, "left"), np.searchsorted(neuron, cells, "right")


def _signal_to_noise(trace: NDArray[np.float32], length: int) -> NDArray[np.float64]:
    """Square root of the energy of traces (cells, bins) beyond that of their noise, over the noise; `length` bins pass for slow."""
    if trace.size == 0:
        return np.zeros(len(trace))
    quick = trace.astype(np.float64) - uniform_filter1d(trace.astype(np.float64), length, axis=1, mode="nearest")
    # Steps are noise but where a cell becomes active, which the median does not see.
    noise = np.median(np.abs(np.diff(trace.astype(np.float64), axis=1)), axis=1) * 1.4826 / np.sqrt(2)
    energy = np.maximum(np.sum(quick**2, axis=1) - trace.shape[1] * noise**2, 0)
    return np.divide(np.sqrt(energy), noise, out=np.zeros(len(trace)), where=noise > 0)
