"""Accuracy of deconvolution against electrophysiology, and its speed.

    python tests/benchmarks/deconvolution.py [FOLDER]

FOLDER holds one folder of .mat files (simultaneous calcium imaging and electrophysiology, the Cascade collection's format) a data set.
Traces are brought to about 30 Hz by averaging neighbouring frames. For each cell: correlation of activity and spike counts in 500 ms
bins, and at 30 Hz after a Gaussian of 50 ms. Recordings of one cell are deconvolved one by one and joined.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from sensorium_pipeline.imaging.deconvolution import DeconvolutionParameters, deconvolve

RATE = 30.0
PEERS = {"DS09-GCaMP6f-m-V1": (0.817, 0.725), "DS14-GCaMP6s-m-V1": (0.817, 0.766)}


def recordings(folder: Path) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Every recording of a data set: cell, frame times in s, dF/F, spike times in s."""
    for path in sorted(folder.glob("*.mat")):
        for entry in scipy.io.loadmat(path)["CAttached"][0]:
            record = entry[0][0]
            if not {"fluo_time", "fluo_mean"} <= set(record.dtype.names):
                continue
            times = np.asarray(record["fluo_time"], float).ravel()
            dff = np.asarray(record["fluo_mean"], float).ravel()
            spikes = np.asarray(record["events_AP"], float).ravel() / 1e4  # stored in units of 0.1 ms
            if len(times) == len(dff):
                good = np.isfinite(times) & np.isfinite(dff)
                yield path.stem, times[good], dff[good], spikes[np.isfinite(spikes)]


def resample(times: NDArray[np.float64], dff: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Rate, edges of the frames in s, and the trace at about 30 Hz."""
    step = float(np.median(np.diff(times)))
    factor = max(round(1 / step / RATE), 1)
    frames = len(dff) // factor
    trace = dff[: frames * factor].reshape(frames, factor).mean(1)
    edges = np.append(times[: frames * factor : factor], times[frames * factor - 1] + step)
    return 1 / (step * factor), edges, trace


def accuracy(folder: Path, parameters: DeconvolutionParameters) -> tuple[int, float, float, float, float]:
    """Cells; mean correlation in 500 ms bins and at 30 Hz after 50 ms of smoothing, of the activity and of the raw trace."""
    cells: dict[str, list[list[NDArray[np.float64]]]] = {}
    for name, times, dff, spikes in recordings(folder):
        rate, edges, trace = resample(times, dff)
        counts = np.histogram(spikes, edges)[0].astype(float)
        activity = np.nan_to_num(deconvolve(trace[None].astype(np.float32), rate, parameters).activity[0].astype(float))
        size = round(0.5 * rate)
        bins = len(trace) // size * size
        rows = []
        for signal in (counts, activity, trace):
            rows.append(signal[:bins].reshape(-1, size).sum(1))
            rows.append(gaussian_filter1d(signal, 0.05 * rate))
        cells.setdefault(name, []).append(rows)
    scores = []
    for parts in cells.values():
        truth, truth_fine, inferred, inferred_fine, raw, raw_fine = (np.concatenate(column) for column in zip(*parts, strict=True))
        pairs = [(truth, inferred), (truth_fine, inferred_fine), (truth, raw), (truth_fine, raw_fine)]
        scores.append([np.nan_to_num(np.corrcoef(a, b)[0, 1]) for a, b in pairs])
    binned, fine, raw_binned, raw_fine_score = np.mean(scores, axis=0)
    return len(cells), float(binned), float(fine), float(raw_binned), float(raw_fine_score)


def speed(order: int, neurons: int = 1000, frames: int = 10_000) -> float:
    """Seconds for simulated traces, without compilation."""
    generator = np.random.default_rng(0)
    jumps = generator.poisson(0.02, (neurons, frames)) * 0.5
    kernel = np.exp(-np.arange(150) / 20.0)
    traces = np.stack([np.convolve(row, kernel)[:frames] for row in jumps]) + 0.3 * generator.standard_normal((neurons, frames))
    parameters = DeconvolutionParameters(order=2 if order == 2 else 1)
    deconvolve(traces[:4].astype(np.float32), RATE, parameters)
    start = time.perf_counter()
    deconvolve(traces.astype(np.float32), RATE, parameters)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    beside = Path(__file__).resolve().parents[3] / "shared/data/twophoton/ephys_ground_truth"
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else beside
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for order in (1, 2):
            cells, binned, fine, raw, raw_fine = accuracy(folder, DeconvolutionParameters(order=2 if order == 2 else 1))
            peer = PEERS.get(folder.name, (float("nan"),) * 2)
            print(f"{folder.name} AR({order}): {cells} cells, {binned:.3f} ({fine:.3f}); raw {raw:.3f} ({raw_fine:.3f}); ", end="")
            print(f"best peer, as recorded elsewhere, {peer[0]:.3f} ({peer[1]:.3f})")
    for order in (1, 2):
        print(f"1000 traces x 10 000 frames, AR({order}): {speed(order):.2f} s")


if __name__ == "__main__":
    main()
