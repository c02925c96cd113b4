"""Motion correction on hybrid movies with known truth: speed, error and memory, beside what the peers were recorded to reach.

    python tests/benchmarks/motion.py [--movies rigid512 warp512 rigid170 warp170] [--threads 2] [--folder FOLDER]

Movies are made once, by the tool that lies beside the folder of real data, and kept in the folder given.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from sensorium_pipeline.imaging.motion import MotionParameters, MotionResult, correct_motion
from sensorium_pipeline.recordings.movie import open_movie

MOVIES = {
    "rigid512": ["4", "4", "2000"],
    "warp512": ["4", "4", "2000", "--warp", "1.0"],
    "rigid170": ["1", "1", "3000", "--size", "170"],
    "warp170": ["1", "1", "3000", "--size", "170", "--warp", "1.0"],
}
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


def fft_bound(height: int, width: int) -> float:
    """Frames a second of a bare forward and inverse transform, the best of several tries in this very run."""
    frames = torch.randn(8, height, width)
    best = np.inf
    for _ in range(20):
        started = time.perf_counter()
        torch.fft.irfft2(torch.fft.rfft2(frames), s=(height, width))
        best = min(best, time.perf_counter() - started)
    return len(frames) / best


def displacement_error(result: MotionResult, truth: np.ndarray, height: int, width: int) -> float:
    """RMS px a block and axis against truth (frames, 2, 8, 8), which is given where content stands in the raw frame."""
    fields = result.block_shifts + result.shifts[:, None, None]
    rows, columns = fields.shape[1:3]
    centres = np.meshgrid((np.arange(8) + 0.5) * height / 8, (np.arange(8) + 0.5) * width / 8, indexing="ij")
    found = np.empty_like(truth)
    for n in range(len(truth)):
        y, x = centres[0] - truth[n, 0], centres[1] - truth[n, 1]
        places = (y * (rows - 1) / (height - 1), x * (columns - 1) / (width - 1))
        for axis in range(2):
            found[n, axis] = map_coordinates(fields[n, :, :, axis], places, order=1, mode="nearest")
    error = found - truth
    return float(np.sqrt(((error - error.mean(0)) ** 2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", nargs="+", choices=list(MOVIES), default=list(MOVIES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hybrid")
    arguments = parser.parse_args()
    tool = find_tool()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'movie':10}{'frames/s':>10}{'FFT bound':>11}{'shift y':>9}{'shift x':>9}{'blocks':>8}{'flagged':>9}{'peak GB':>9}   (px RMS)")
    for name in arguments.movies:
        path = arguments.folder / f"{name}.tif"
        truth_path = path.with_name(f"{name}_truth.npz")
        if not (path.is_file() and truth_path.is_file()):
            subprocess.run([sys.executable, str(tool), str(path), *MOVIES[name]], check=True)
        movie = open_movie(path)
        with np.load(truth_path) as truth:
            shifts, displacement = truth["shifts"], truth["displacement"]
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            result, _ = correct_motion(movie, Path(scratch) / "corrected.raw", MotionParameters(), bidirectional=False)
        # The warp has a mean of its own, so the shift of a whole frame is compared with the mean of the true displacement.
        whole = displacement.mean((2, 3)) if "warp" in name else shifts
        error = result.shifts - whole
        y, x = np.sqrt(((error - error.mean(0)) ** 2).mean(0))
        blocks = displacement_error(result, displacement, movie.height, movie.width)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        bound = fft_bound(movie.height, movie.width)
        print(
            f"{name:10}{result.frames_per_second:10.0f}{bound:11.0f}{y:9.3f}{x:9.3f}{blocks:8.3f}{int(result.flagged.sum()):9d}{peak:9.2f}"
        )
    print(f"threads {arguments.threads}; load of this machine {os.getloadavg()[0]:.1f}; peak memory is that of the process so far")
    print(RECORDED)


if __name__ == "__main__":
    main()
