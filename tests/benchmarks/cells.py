"""Cells and traces of hybrid movies with known truth, from `extract` as a whole, and beside suite2p's on the same movie.

    python tests/benchmarks/cells.py MOVIE.tif [--frame-rate 10] [--segmenter sensorium suite2p] [--suite2p FOLDER]

The truth is the `_truth.npz` beside the movie. FOLDER is where suite2p left F.npy, Fneu.npy, stat.npy and iscell.npy (`plane0`); pickles
are read from it, so give only one that was made here. With `--segmenter suite2p`, its detection runs on the movie whose motion was
corrected here, and all that follows is ours; SENSORIUM_SUITE2P_PYTHON names the python of an environment that has it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from truth import TrueCells, masks_of, read_truth, score_all_traces, score_detection, score_traces

from sensorium_pipeline.imaging.extraction import extract_plane
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.recordings.movie import open_movie


def report(name: str, truth: TrueCells, cells: tuple[NDArray, NDArray, NDArray], traces: NDArray[np.floating]) -> None:
    """Print one line: detection over visible and over all cells, the traces of the matched ones, and of all with 0 for the others."""
    masks = masks_of(*cells, truth.shape[0] * truth.shape[1])
    visible, every = score_detection(truth, masks), score_detection(truth, masks, visible_only=False)
    matched = score_traces(truth, traces, every.pairs)
    median = float(np.median(matched)) if len(matched) else 0.0
    mean = float(np.mean(score_all_traces(truth, traces, every.pairs)))
    print(
        f"{name:20}{visible.f1:9.3f}{visible.precision:11.3f}{visible.recall:8.3f}{every.f1:9.3f}{every.found:8d}{every.true:7d}"
        f"{median:9.3f}{mean:11.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("movie", type=Path)
    parser.add_argument("--frame-rate", type=float, default=10.0)
    parser.add_argument("--segmenter", nargs="+", default=["sensorium"], choices=["sensorium", "suite2p"])
    parser.add_argument("--suite2p", type=Path, help="folder plane0 of suite2p's results on the same movie")
    arguments = parser.parse_args()
    truth = read_truth(arguments.movie.with_name(f"{arguments.movie.stem}_truth.npz"))
    print(f"{'':20}{'F1':>9}{'precision':>11}{'recall':>8}{'F1 all':>9}{'found':>8}{'true':>7}{'traces':>9}{'all cells':>11}")
    for segmenter in arguments.segmenter:
        started, used = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            plane = extract_plane(
                open_movie(arguments.movie),
                frame_rate=arguments.frame_rate,
                parameters=ImagingParameters(segmenter=segmenter),
                scratch=Path(scratch),
            )
        wall, used = time.perf_counter() - started, time.process_time() - used
        kept = plane.kept[plane.footprint_neuron]
        number = np.cumsum(plane.kept) - 1
        cells = (number[plane.footprint_neuron[kept]], plane.footprint_pixel[kept], plane.footprint_weight[kept])
        report(segmenter if segmenter == "sensorium" else "suite2p on ours", truth, cells, plane.dff[plane.kept])
        print(f"{'':20}extract: {wall:.1f} s, of which {used:.1f} s of processor time in this process")
    if arguments.suite2p:
        cell = np.load(arguments.suite2p / "iscell.npy")[:, 0] > 0
        found = np.load(arguments.suite2p / "stat.npy", allow_pickle=True)[cell]
        sizes = [len(one["lam"]) for one in found]
        pixel = np.concatenate([one["ypix"] * truth.shape[1] + one["xpix"] for one in found])
        theirs = (np.repeat(np.arange(len(found)), sizes), pixel, np.concatenate([one["lam"] for one in found]))
        traces = np.load(arguments.suite2p / "F.npy") - 0.7 * np.load(arguments.suite2p / "Fneu.npy")
        report("suite2p", truth, theirs, traces[cell])
    print("precision, recall and F1 over cells of signal-to-noise 8 or more; traces: median over the active cells that were found,")
    print("and the mean over all active cells, found or not")


if __name__ == "__main__":
    main()
