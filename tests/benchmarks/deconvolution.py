"""Accuracy of deconvolution against electrophysiology, and its speed, side by side with the peers.

    python tests/benchmarks/deconvolution.py [FOLDER] [--spikefinder FOLDER] [--rates HZ ...] [--oasis PYTHON] [--suite2p PYTHON]

FOLDER holds one folder of .mat files (simultaneous calcium imaging and electrophysiology, the Cascade collection's format) a data set; its
checkout has 27 of them in Ground_truth. The folder of spikefinder holds N.train.calcium.csv and N.train.spikes.csv at 100 Hz. Traces are
brought to about each of the rates by averaging neighbouring frames; a frame's time is its middle. Slower recordings keep their rate, and
are left out where more than 30 Hz are asked for. For each cell: correlation of activity and spike counts in 500 ms bins, and frame by frame
after a Gaussian of 50 ms, or 0.4 frames where these are longer. Recordings of one cell are deconvolved one by one and joined. Beside it,
the same for the activity moved by those frames, up to 100 ms, that agree best, which shows what timing alone brings. A cell that never
fired counts as 0 with every method. What is fixed in the method was chosen on simulated traces with DS09, DS14, DS16 and the odd-numbered
data sets in view: these are no untouched test of the method. Means are printed over all sets of FOLDER and over the others.

Peers run as processes of the Python that is named, which has oasis-deconv or suite2p installed.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from sensorium_pipeline.imaging.deconvolution import DeconvolutionParameters, deconvolve

RATE = 30.0
FARTHEST = 0.1  # s, that activity is moved
CHOSEN_WITH = ("DS14", "DS16")  # and those of odd numbers
RECORDED = {"DS09-GCaMP6f-m-V1": "CaImAn .817, oasis-deconv (.725)", "DS14-GCaMP6s-m-V1": "oasis-deconv .817 (.766)"}
OASIS = """
import sys, time, numpy as np
from oasis.functions import deconvolve
data, order = np.load(sys.argv[1]), int(sys.argv[3])
names = [name for name in data.files if name[0] == "t"]
found, start = {}, time.perf_counter()
for name in names:
    try:
        found[name] = deconvolve(data[name].astype(float), g=(None,) * order, penalty=1, b_nonneg=False)[1]
    except ValueError as error:  # AR(2) does not solve every trace
        print("    oasis-deconv fails on a trace, which counts as silent:", error)
        found[name] = np.zeros(len(data[name]))
np.savez(sys.argv[2], seconds=time.perf_counter() - start, **found)
"""
SUITE2P = """
import sys, time, numpy as np, torch, torch.library
register = torch.library.register_fake
skip = lambda name, *a, **k: (lambda f: f) if str(name).startswith("torchvision::") else register(name, *a, **k)
torch.library.register_fake = skip
import torchvision
torch.library.register_fake = register
from suite2p.extraction import dcnv
data, tau = np.load(sys.argv[1]), float(sys.argv[3])
names = [name for name in data.files if name[0] == "t"]
rate, device = float(data["rate"]), torch.device("cpu")
found, start = {}, time.perf_counter()
for name in names:
    trace = np.atleast_2d(data[name].astype(np.float32))
    flat = dcnv.preprocess(F=trace, baseline="maximin", win_baseline=60.0, sig_baseline=10.0, fs=rate, prctile_baseline=8, device=device)
    found[name] = dcnv.oasis(F=flat, batch_size=500, tau=tau, fs=rate).squeeze()
np.savez(sys.argv[2], seconds=time.perf_counter() - start, **found)
"""

Deconvolver = Callable[[list[NDArray[np.float32]], float], tuple[list[NDArray[np.float64]], float]]
"""Traces and their rate to activity and seconds."""


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


def spikefinder(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, traces and spikes of every training set of the challenge."""
    for path in sorted(folder.glob("*.train.calcium.csv")):
        spikes = path.with_name(path.name.replace("calcium", "spikes"))
        if path.name.count(".") == 3 and spikes.exists():
            yield f"spikefinder {path.name.split('.')[0]}", path, spikes


def spikefinder_recordings(
    calcium: Path, spikes: Path
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """As `recordings`, of one training set at 100 Hz."""
    traces, counts = (np.genfromtxt(path, delimiter=",", skip_header=1) for path in (calcium, spikes))
    for cell, (trace, count) in enumerate(zip(traces.T, counts.T, strict=True)):
        frames = min(len(trace), len(count))
        known = np.isfinite(trace[:frames]) & np.isfinite(count[:frames])
        times = np.flatnonzero(known) / 100.0
        yield str(cell), times, trace[:frames][known], np.repeat(times, count[:frames][known].astype(int))


def resample(
    times: NDArray[np.float64], dff: NDArray[np.float64], wanted: float = RATE
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Rate, edges of the frames in s, and the trace at about the rate that is wanted."""
    step = float(np.median(np.diff(times)))
    factor = max(round(1 / step / wanted), 1)
    frames = len(dff) // factor
    trace = dff[: frames * factor].reshape(frames, factor).mean(1)
    edges = np.append(times[: frames * factor : factor], times[frames * factor - 1] + step) - step / 2
    return 1 / (step * factor), edges, trace


def ours(parameters: DeconvolutionParameters) -> Deconvolver:
    """This library, one trace at a time or, of equal length, all together."""

    def run(traces: list[NDArray[np.float32]], rate: float) -> tuple[list[NDArray[np.float64]], float]:
        start = time.perf_counter()
        if len({len(trace) for trace in traces}) == 1:
            found = list(deconvolve(np.stack(traces), rate, parameters).activity)
        else:
            found = [deconvolve(trace[None], rate, parameters).activity[0] for trace in traces]
        return [np.nan_to_num(each.astype(float)) for each in found], time.perf_counter() - start

    return run


def peer(python: str, script: str, argument: str) -> Deconvolver:
    """A peer in an environment of its own."""

    def run(traces: list[NDArray[np.float32]], rate: float) -> tuple[list[NDArray[np.float64]], float]:
        with tempfile.TemporaryDirectory() as folder:
            given, taken = Path(folder) / "traces.npz", Path(folder) / "activity.npz"
            arrays: dict[str, Any] = {f"t{index}": trace for index, trace in enumerate(traces)}
            np.savez(given, rate=rate, **arrays)
            subprocess.run([python, "-W", "ignore", "-c", script, str(given), str(taken), argument], check=True)
            with np.load(taken) as found:
                return [found[f"t{index}"].astype(float) for index in range(len(traces))], float(found["seconds"])

    return run


def accuracy(folder: Path, method: Deconvolver) -> tuple[int, float, float]:
    """Cells of a data set; mean correlation in 500 ms bins and at 30 Hz after 50 ms of smoothing."""
    return accuracies(list(recordings(folder)), RATE, method)[0]


def accuracies(data: list[Any], wanted: float, method: Deconvolver) -> dict[int, tuple[int, float, float]]:
    """The same at about the rate that is wanted, for activity moved by 0 and other numbers of frames."""
    found = [(name, *resample(times, dff, wanted), spikes) for name, times, dff, spikes in data]
    rate = float(np.median([each[1] for each in found]))
    activity, _ = method([each[3].astype(np.float32) for each in found], rate)
    farthest = round(FARTHEST * rate)
    return {lag: _agreement(found, [np.roll(each, lag) for each in activity], rate) for lag in range(-farthest, farthest + 1)}


def _agreement(found: list[Any], activity: list[NDArray[np.float64]], rate: float) -> tuple[int, float, float]:
    cells: dict[str, list[list[NDArray[np.float64]]]] = {}
    for (name, _, edges, trace, spikes), inferred in zip(found, activity, strict=True):
        size = round(0.5 * rate)
        bins = len(trace) // size * size
        rows = []
        for signal in (np.histogram(spikes, edges)[0].astype(float), inferred):
            rows += [signal[:bins].reshape(-1, size).sum(1), gaussian_filter1d(signal, max(0.05 * rate, 0.4))]
        cells.setdefault(name, []).append(rows)
    scores = []
    for parts in cells.values():
        truth, truth_fine, inferred, inferred_fine = (np.concatenate(column) for column in zip(*parts, strict=True))
        with np.errstate(invalid="ignore"):
            scores.append([np.nan_to_num(np.corrcoef(a, b)[0, 1]) for a, b in ((truth, inferred), (truth_fine, inferred_fine))])
    binned, fine = np.mean(scores, axis=0)
    return len(cells), float(binned), float(fine)


def speed_traces(neurons: int = 1000, frames: int = 10_000) -> list[NDArray[np.float32]]:
    """Simulated traces."""
    generator = np.random.default_rng(0)
    jumps = generator.poisson(0.02, (neurons, frames)) * 0.5
    kernel = np.exp(-np.arange(150) / 20.0)
    calcium = np.stack([np.convolve(row, kernel)[:frames] for row in jumps])
    return list((calcium + 0.3 * generator.standard_normal((neurons, frames))).astype(np.float32))


def main() -> None:
    """Print the table."""
    beside = Path(__file__).resolve().parents[3] / "shared/data/twophoton/ephys_ground_truth"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=beside)
    parser.add_argument("--spikefinder", type=Path, default=beside.parent / "spikefinder", help="folder of the challenge's training sets")
    parser.add_argument("--rates", type=float, nargs="*", default=[RATE], help="Hz")
    parser.add_argument("--oasis", help="Python that has oasis-deconv")
    parser.add_argument("--suite2p", help="Python that has suite2p")
    arguments = parser.parse_args()
    methods = {
        "AR(1)": ours(DeconvolutionParameters(order=1)),
        "AR(2)": ours(DeconvolutionParameters()),
        "AR(1), decay fixed": ours(DeconvolutionParameters(order=1, decay=(0.7, 0.7))),
        "AR(2), constants fixed": ours(DeconvolutionParameters(decay=(0.7, 0.7), rise=(0.05, 0.05))),
    }
    if arguments.oasis:
        methods |= {f"oasis-deconv AR({order})": peer(arguments.oasis, OASIS, str(order)) for order in (1, 2)}
    if arguments.suite2p:
        methods["suite2p, decay fixed"] = peer(arguments.suite2p, SUITE2P, "1.0")
    methods["raw trace"] = lambda traces, _: ([trace.astype(float) for trace in traces], 0.0)
    sets = {path.name: list(recordings(path)) for path in sorted(arguments.folder.glob("DS[0-9][0-9]*"))}
    sets |= {name: list(spikefinder_recordings(*paths)) for name, *paths in spikefinder(arguments.spikefinder)}
    for wanted in arguments.rates:
        scores: dict[str, dict[str, tuple[float, float, float]]] = {name: {} for name in methods}
        for title, data in sets.items():
            rate = float(np.median([resample(times, dff, wanted)[0] for _, times, dff, _ in data])) if data else 0.0
            if not data or (wanted > RATE and rate < 0.75 * wanted):
                continue
            print(f"{title} at {rate:.3g} Hz; best peer as recorded elsewhere: {RECORDED.get(title, 'none')}")
            for name, method in methods.items():
                moved = accuracies(data, wanted, method)
                cells, binned, fine = moved[0]
                lag, (_, moved_binned, moved_fine) = max(moved.items(), key=lambda each: each[1][2])
                scores[name][title] = binned, fine, moved_fine
                shown = f"{binned:.3f} ({fine:.3f}); moved by {lag:+d}: {moved_binned:.3f} ({moved_fine:.3f})"
                print(f"    {name:24s} {cells} cells, {shown}", flush=True)
        every = [title for title in scores["AR(2)"] if not title.startswith("spikefinder")]
        others = [title for title in every if int(title[2:4]) % 2 == 0 and title[:4] not in CHOSEN_WITH]
        for chosen, which in ((every, "data sets"), (others, "of them that nothing was chosen on")):
            print(f"mean over {len(chosen)} {which}, at {wanted:g} Hz or less")
            for name, each in scores.items():
                binned, fine, moved_fine = np.mean([each[title] for title in chosen], axis=0) if chosen else (np.nan,) * 3
                print(f"    {name:24s} {binned:.3f} ({fine:.3f}); moved ({moved_fine:.3f})", flush=True)
    traces = speed_traces()
    ours(DeconvolutionParameters())(traces[:4], RATE)
    print("1000 traces of 10 000 frames")
    for name, method in methods.items():
        # suite2p takes a batch of traces as one array.
        given = [np.stack(traces)] if name.startswith("suite2p") else traces
        if name != "raw trace":
            print(f"    {name:24s} {method(given, RATE)[1]:.2f} s", flush=True)


if __name__ == "__main__":
    main()
