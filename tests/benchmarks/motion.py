"""Motion correction on hybrid movies with known truth: speed, error and memory, beside suite2p and CaImAn in the same run.

    python tests/benchmarks/motion.py [--movies rigid512 ...] [--seed 0] [--cores 2] [--folder FOLDER] [--suite2p PYTHON] [--caiman PYTHON]

Every movie is corrected in a process of its own on the cores given, so that its peak memory is its own. Errors are root mean squares in
pixels and for one axis, less a constant offset: of the shift of whole frames, and of the displacement at the centres of 8 x 8 blocks. The
bound is a bare forward and inverse Fourier transform of a frame, measured on the same cores in the same process. `make peers` makes the
interpreter with suite2p (`.peers/bin/python`); CaImAn, piecewise where the movie is warped, must be built from its sources. Movies are
made once, by the tool that lies beside the folder of real data, and kept.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from sensorium_pipeline.imaging.motion import MotionParameters, correct_motion
from sensorium_pipeline.recordings.movie import open_movie

HERE = Path(__file__).resolve().parent
MOVIES = {
    f"{kind}{size}": [*layout, *more]
    for kind, more in {"rigid": [], "warp": ["--warp", "1.0"], "neuropil": ["--neuropil", "20"]}.items()
    for size, layout in {
        512: ["4", "4", "2000"],
        170: ["1", "1", "3000", "--size", "170"],
        340: ["2", "3", "1200", "--size", "340"],
    }.items()
}
STANDARD = ["rigid512", "warp512", "neuropil512", "rigid170", "warp170", "neuropil170"]
RECORDED = """Peers, RECORDED on another occasion on two quiet cores, not measured here:
  suite2p 1.1   rigid512   22 frames/s   error 0.27 px rigid, 0.17 px with non-rigid   whole run 7.0 GB
  CaImAn 1.12   rigid512   57 frames/s   error 0.12 / 0.11 px (y / x), rigid only      whole run 9.5 GB"""


def find_tool() -> Path:
    data = os.environ.get("SENSORIUM_TEST_DATA")
    shared = Path(data).parent if data else Path(__file__).resolve().parents[3] / "shared"
    tool = shared / "tools/make_hybrid_movie.py"
    if not tool.is_file():
        print(f"skipped: {tool} does not exist (set SENSORIUM_TEST_DATA to the folder of real recordings)")
        sys.exit(0)
    return tool


def fft_bound(height: int, width: int, workers: int) -> float:
    """Frames a second of a bare forward and inverse transform: the best of many tries, by scipy and by torch where it is there."""
    frames = np.random.default_rng(0).standard_normal((8, height, width), np.float32)

    def by_scipy() -> None:
        scipy.fft.irfft2(scipy.fft.rfft2(frames, workers=workers), s=(height, width), workers=workers)

    tries = [by_scipy]
    try:
        import torch

        torch.set_num_threads(workers)
        stack = torch.from_numpy(frames)
        tries.append(lambda: torch.fft.irfft2(torch.fft.rfft2(stack), s=(height, width)))
    except ImportError:
        pass
    best = np.inf
    for attempt in tries * 20:
        started = time.perf_counter()
        attempt()
        best = min(best, time.perf_counter() - started)
    return len(frames) / best


def errors(
    fields: NDArray[np.floating], rows: NDArray[np.floating], columns: NDArray[np.floating], truth: NDArray[np.floating], size: int
) -> tuple[float, float, float]:
    """Errors of the frame's shift (y, x) and of the blocks, px.

    Args:
        fields: (frames, rows, columns, 2) px, where the nodes at these rows and columns of the template stand.
        truth: (frames, 2, 8, 8) px, given where content stands in the raw frame.
        size: side of a frame.
    """
    centre = (np.arange(8) + 0.5) * size / 8
    centres = np.meshgrid(centre, centre, indexing="ij")
    found = np.empty_like(truth)
    index_y, index_x = np.arange(len(rows)), np.arange(len(columns))
    for n in range(len(truth)):
        places = np.interp(centres[0] - truth[n, 0], rows, index_y), np.interp(centres[1] - truth[n, 1], columns, index_x)
        for axis in range(2):
            found[n, axis] = map_coordinates(fields[n, :, :, axis], places, order=1, mode="nearest")
    error = found - truth
    error -= error.mean(0)
    whole = error.mean((2, 3))
    y, x = np.sqrt((whole**2).mean(0))
    return float(y), float(x), float(np.sqrt((error**2).mean()))


def correct(path: Path, scratch: Path, out: Path) -> None:
    """Correct one movie in this process and leave what there is to say in `out`."""
    movie = open_movie(path)
    processor = time.process_time()
    result, _ = correct_motion(movie, scratch / "corrected.raw", MotionParameters(), bidirectional=False)
    processor = time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    np.savez(
        out,
        fields=result.block_shifts + result.shifts[:, None, None],
        rows=result.block_centres[:, 0, 0],
        columns=result.block_centres[0, :, 1],
        record=json.dumps(
            {
                "rate": result.frames_per_second,
                "processor_ms": processor / movie.frames * 1e3,
                "bound": fft_bound(movie.height, movie.width, len(os.sched_getaffinity(0))),
                "flagged": int(result.flagged.sum()),
                "peak": peak,
            }
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", nargs="+", choices=list(MOVIES), default=STANDARD)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hybrid")
    parser.add_argument("--suite2p", type=Path, help="interpreter of an environment with suite2p")
    parser.add_argument("--caiman", type=Path, help="interpreter of an environment with CaImAn")
    parser.add_argument("--correct", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.correct:
        with tempfile.TemporaryDirectory(dir=arguments.correct[1].parent) as scratch:
            correct(arguments.correct[0], Path(scratch), arguments.correct[1])
        return
    tool = find_tool()
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    bound_to = ["taskset", "-c", ",".join(map(str, cores))]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    columns = ("frames/s", "bound", "share", "CPU ms", "shift y", "shift x", "blocks", "flagged", "peak GB")
    print(f"{'movie':12}{'':9}" + "".join(f"{column:>9}" for column in columns))
    for name in arguments.movies:
        path = arguments.folder / f"{name}_seed{arguments.seed}.tif"
        truth_path = path.with_name(f"{path.stem}_truth.npz")
        if not (path.is_file() and truth_path.is_file()):
            subprocess.run([sys.executable, str(tool), str(path), *MOVIES[name], "--seed", str(arguments.seed)], check=True)
        with np.load(truth_path) as truth:
            displacement = truth["displacement"]
        size = open_movie(path).height
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            ours, theirs = Path(folder) / "ours.npz", Path(folder) / "theirs.npz"
            # As the command line does: a BLAS whose threads wait by spinning takes the processor from those that work.
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
            subprocess.run([*bound_to, sys.executable, __file__, "--correct", str(path), str(ours)], check=True, env=environment)
            with np.load(ours) as found:
                y, x, blocks = errors(found["fields"], found["rows"], found["columns"], displacement, size)
                record = json.loads(str(found["record"]))
            share = record["rate"] / record["bound"]
            print(
                f"{name:12}{'ours':9}{record['rate']:9.0f}{record['bound']:9.0f}{share:9.0%}{record['processor_ms']:9.2f}"
                f"{y:9.3f}{x:9.3f}{blocks:9.3f}{record['flagged']:9d}{record['peak']:9.2f}",
                flush=True,
            )
            if arguments.suite2p:
                command = [*bound_to, str(arguments.suite2p), str(HERE / "peers/register_suite2p.py"), str(path), str(theirs)]
                environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
                subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                with np.load(theirs) as found:
                    fields = found["deviations"] + found["shifts"][:, None, None]
                    y, x, blocks = errors(fields, found["rows"], found["columns"], displacement, size)
                    rigid = fields * 0 + found["shifts"][:, None, None]
                    whole = errors(rigid, found["rows"], found["columns"], displacement, size)
                    rate = len(displacement) / float(found["seconds"])
                print(f"{'':12}{'suite2p':9}{rate:9.0f}{'':27}{y:9.3f}{x:9.3f}{blocks:9.3f}   rigid part alone {np.mean(whole[:2]):.3f}")
            if arguments.caiman:
                options = ["--motion-only", "--processes", str(len(cores)), *(["--piecewise"] if name.startswith("warp") else [])]
                command = [*bound_to, str(arguments.caiman), str(HERE / "peers/run_caiman.py"), str(path), str(theirs), *options]
                subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                with np.load(theirs) as found:
                    fields = found["displacement"].transpose(0, 2, 3, 1)
                    y, x, blocks = errors(fields, found["rows"], found["columns"], displacement, size)
                    rate = len(displacement) / float(found["seconds"])
                print(f"{'':12}{'CaImAn':9}{rate:9.0f}{'':27}{y:9.3f}{x:9.3f}{blocks:9.3f}", flush=True)
    print(f"errors in px, RMS; {len(cores)} cores; load of this machine {os.getloadavg()[0]:.1f}")
    if not (arguments.suite2p and arguments.caiman):
        print(RECORDED)


if __name__ == "__main__":
    main()
