"""Peak memory of a whole extraction of one movie at two lengths, side by side: it must not grow with the length.

    python tests/benchmarks/memory.py [MOVIE] [--frames 2000 8000] [--limit 1.5] [--cores 2] [--folder FOLDER]

Every length is a file of its own with the frames of MOVIE over and over (a synthetic one of 512 x 512 pixels where none is given), and is
extracted by `sensorium extract` in a process of its own. "Peak" is the largest resident set, as the system counts it, pages of mapped
scratch files included; "own" is the largest part of it that is not pages of files. Ends with 1 where a peak exceeds the limit (GB).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

from sensorium_pipeline.recordings.movie import Movie, open_movie

SIDE, CELLS, CYCLE = 512, 300, 500


def write_synthetic(path: Path) -> None:
    """Cells that fire now and then in front of a structured background, counted in photons, with slow motion of whole pixels."""
    generator = np.random.default_rng(0)
    still = 60 + 15 * gaussian_filter(generator.standard_normal((SIDE + 16, SIDE + 16)), 2) / 0.14
    centres = generator.integers(12, SIDE + 4, (CELLS, 2))
    spikes = generator.random((CELLS, CYCLE)) < 0.02
    rows, columns = np.mgrid[-8:9, -8:9]
    soma = np.exp(-(((rows**2 + columns**2) / 20.0) ** 2))
    calcium, wander = np.zeros(CELLS), np.zeros(2)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for frame in range(CYCLE):
            calcium = 0.9 * calcium + spikes[:, frame]
            scene = still.copy()
            for (y, x), level in zip(centres, calcium, strict=True):
                if level > 0.05:
                    scene[y - 8 : y + 9, x - 8 : x + 9] += 60 * level * soma
            wander = np.clip(0.95 * wander + generator.normal(0, 0.5, 2), -7, 7)
            top, left = 8 + np.rint(wander).astype(int)
            file.write(
                (8 * generator.poisson(np.clip(scene[top : top + SIDE, left : left + SIDE], 0, None))).astype(np.int16), contiguous=True
            )


def write_length(movie: Movie, frames: int, path: Path) -> None:
    """The frames of a movie over and over until there are so many."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for frame in range(frames):
            file.write(movie.read(frame % movie.frames, frame % movie.frames + 1)[0], contiguous=True)


def extract(path: Path, out: Path, cores: list[int]) -> tuple[float, float, float]:
    """Peak, own part of it (GB) and seconds of one extraction."""
    command = [sys.executable, "-c", "from sensorium_pipeline.cli import main; main()", "extract", str(path), str(out), "--frame-rate", "8"]
    began = time.monotonic()
    process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cores), stdout=subprocess.DEVNULL)
    peak = own = 0
    while process.poll() is None:
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            peak = max(peak, int(status["VmHWM"].split()[0]))
            own = max(own, int(status["RssAnon"].split()[0]))
        except (OSError, KeyError):
            pass  # it has just ended
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"the extraction of {path} ended with {process.returncode}")
    return peak * 1024 / 1e9, own * 1024 / 1e9, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("movie", nargs="?", type=Path)
    parser.add_argument("--frames", nargs="+", type=int, default=[2000, 8000])
    parser.add_argument("--limit", type=float, default=1.5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = options.movie or Path(folder) / "synthetic.tif"
        if options.movie is None:
            write_synthetic(source)
        movie = open_movie(source)
        print(f"{movie.height} x {movie.width} px, {len(cores)} cores\n")
        print("| frames | movie, GB | peak, GB | own, GB | seconds |\n|---|---|---|---|---|")
        within = True
        for frames in options.frames:
            path = Path(folder) / f"{frames}.tif"
            write_length(movie, frames, path)
            peak, own, seconds = extract(path, Path(folder) / f"out-{frames}", cores)
            print(f"| {frames} | {path.stat().st_size / 1e9:.2f} | {peak:.2f} | {own:.2f} | {seconds:.0f} |", flush=True)
            path.unlink()
            within &= peak <= options.limit
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
