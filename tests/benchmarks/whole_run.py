"""From raw frames to activity on hybrid movies with known truth: ours beside suite2p and CaImAn, one after the other in one run.

    python tests/benchmarks/whole_run.py [--movies rigid512 ...] [--seed 0] [--cores 2] [--suite2p PYTHON] [--caiman PYTHON]

Each program runs as a process of its own on the same cores, with the movie in the memory of the system: it is read once before each, so
that none waits for the disk in another's stead. Ours is `sensorium extract`, start-up, report and writing included; it is run before and
after the peers, as it is so much shorter than they are that a machine that grows slower or faster meanwhile would decide. Cells
are judged by F1 at an intersection over union above one half (of cells with signal-to-noise >= 8, and of all), traces by their median
correlation with the truth, both as `truth.py` beside this file defines them. Traces are compared raw (our dF/F, suite2p's F - 0.7 Fneu,
CaImAn's C + YrA) and, where the program makes such a trace, denoised (ours and CaImAn's C: activity through the kernel of the calcium; the
true traces are of this kind, too: components that CaImAn found in real movies). `make peers` makes the interpreter with suite2p
(`.peers/bin/python`, found by itself); CaImAn must be built from its sources. A peer that is not there is shown with the figures
that were recorded for it, marked as such.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import scipy.sparse
import xarray as xr
from numpy.typing import NDArray
from truth import TrueCells, masks_of, read_truth, score_detection, score_traces

HERE = Path(__file__).resolve().parent
MOVIES = {
    f"{kind}{size}": [*layout, *more]
    for kind, more in {"rigid": [], "warp": ["--warp", "1.0"], "neuropil": ["--neuropil", "20"]}.items()
    for size, layout in {512: ["4", "4", "2000"], 170: ["1", "1", "3000", "--size", "170"]}.items()
}
RECORDED = """Peers, RECORDED on another occasion on two quiet cores, not measured here (rigid512; F1 over all cells):
  suite2p 1.1    129.8 s   7.0 GB   F1 .76        rigid170:  20.4 s   F1 .86
  CaImAn 1.12    359.6 s   9.5 GB   F1 .78        rigid170:  47.7 s"""
FRAME_RATE = 10.0


@dataclass(frozen=True)
class Found:
    """What one program made of one movie. `masks` (cells, pixels), `traces` and, of some programs, `denoised` (cells, frames)."""

    seconds: float
    peak: float
    masks: scipy.sparse.csr_matrix
    traces: NDArray[np.floating]
    denoised: NDArray[np.floating] | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run of a command: wall seconds, peak GB of all its processes (shared pages once), what it printed, and its messages.

    Attributes:
        messages: lines of the error stream, each with the second in which it came.
    """

    seconds: float
    peak: float
    output: str
    messages: list[tuple[float, str]]

    def stages(self) -> dict[str, float]:
        """Seconds of every stage that the messages of `sensorium extract` begin and end; `start` is what came before the first."""
        begun: dict[str, float] = {}
        stages: dict[str, float] = {}
        before = 0.0
        for second, line in self.messages:
            if line.endswith(" ..."):
                begun[line.removesuffix(" ...")] = second
            elif ": done" in line:
                stage = line.split(": done")[0]
                stages[stage] = second - begun.get(stage, before)  # one of a single step ends as it begins
            before = second
        return {"start": min(begun.values(), default=0.0), **stages}


def measured(command: list[str], cores: list[int], environment: dict[str, str] | None = None) -> Run:
    """Run a command on the cores given."""
    started = time.perf_counter()
    process = psutil.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            total = 0
            for one in [process, *_children(process)]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, total)
            time.sleep(0.25)

    messages: list[tuple[float, str]] = []

    def listen() -> None:
        for line in process.stderr:
            messages.append((time.perf_counter() - started, line.rstrip()))

    others = [threading.Thread(target=watch), threading.Thread(target=listen)]
    for thread in others:
        thread.start()
    output = process.stdout.read()
    process.wait()
    seconds = time.perf_counter() - started
    for thread in others:
        thread.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n" + "\n".join(line for _, line in messages[-40:]))
    return Run(seconds, peak / 1e9, output, messages)


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def read_once(movie: Path) -> None:
    """Bring a movie into the memory of the system: the first to read it would pay for all others."""
    with movie.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass


def run_ours(movie: Path, folder: Path, cores: list[int]) -> Found:
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("sensorium")), "extract", str(movie), str(out), "--frame-rate", str(FRAME_RATE)]
    read_once(movie)
    run = measured(command, cores)
    with xr.open_zarr(out / "extraction.zarr") as plane:
        kept = plane["kept"].values
        neuron, pixel, weight = (plane[f"footprint_{name}"].values for name in ("neuron", "pixel", "weight"))
        pixels = plane.sizes["y"] * plane.sizes["x"]
        traces, denoised = (plane[name].transpose("neuron", "frame").values[kept] for name in ("dff", "denoised"))
    new = np.cumsum(kept) - 1
    of_kept = kept[neuron]
    masks = masks_of(new[neuron[of_kept]], pixel[of_kept], weight[of_kept], pixels)
    return Found(run.seconds, run.peak, masks, traces, denoised, run.stages())


def run_suite2p(movie: Path, folder: Path, cores: list[int], python: str, tool: Path) -> Found:
    out = folder / "suite2p"
    command = [python, str(tool), str(movie), str(out), "--frame-rate", str(FRAME_RATE)]
    read_once(movie)
    run = measured(command, cores, {"OMP_NUM_THREADS": str(len(cores))})
    record = json.loads(run.output.strip().splitlines()[-1])
    plane = out / "suite2p/plane0"
    statistics = np.load(plane / "stat.npy", allow_pickle=True)  # written by our own run of the peer
    kept = np.load(plane / "iscell.npy")[:, 0] > 0
    fluorescence, neuropil = np.load(plane / "F.npy"), np.load(plane / "Fneu.npy")
    settings = np.load(plane / "ops.npy", allow_pickle=True).item()
    rows, columns = settings["Ly"], settings["Lx"]
    cells = [statistics[n] for n in np.flatnonzero(kept)]
    neuron = np.repeat(np.arange(len(cells)), [len(cell["ypix"]) for cell in cells])
    pixel = np.concatenate([cell["ypix"] * columns + cell["xpix"] for cell in cells]) if cells else np.empty(0, int)
    weight = np.concatenate([cell["lam"] for cell in cells]) if cells else np.empty(0)
    masks = masks_of(neuron, pixel, weight, rows * columns)
    return Found(run.seconds, run.peak, masks, fluorescence[kept] - 0.7 * neuropil[kept], stages=record["stages_s"])


def run_caiman(movie: Path, folder: Path, cores: list[int], python: str, piecewise: bool) -> Found:
    out = folder / "caiman.npz"
    command = [python, str(HERE / "peers/run_caiman.py"), str(movie), str(out), "--frame-rate", str(FRAME_RATE)]
    command += ["--processes", str(len(cores)), *(["--piecewise"] if piecewise else [])]
    read_once(movie)
    run = measured(command, cores, {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    record = json.loads(run.output.strip().splitlines()[-1])
    with np.load(out) as file:
        footprints, traces, denoised = file["footprints"].reshape(len(file["footprints"]), -1), file["traces"], file["denoised"]
    masks = scipy.sparse.csr_matrix(footprints > 0.2 * footprints.max(1, keepdims=True))
    return Found(run.seconds, run.peak, masks, traces, denoised, record["stages_s"])


Correlations = dict[str, dict[int, float]]
"""Kind of trace, true cell that was found and is ever active: correlation of the trace with what the cell added."""


def report(name: str, found: Found, truth: TrueCells) -> Correlations:
    """Print one program's line."""
    visible, everything = (score_detection(truth, found.masks, visible_only=only) for only in (True, False))
    active = np.array([pair for pair in everything.pairs if np.ptp(truth.traces[pair[0]]) > 0], int).reshape(-1, 2)
    kinds = {"raw": found.traces} | ({} if found.denoised is None else {"denoised": found.denoised})
    correlations = {
        kind: dict(zip(active[:, 0].tolist(), score_traces(truth, traces, active), strict=True)) for kind, traces in kinds.items()
    }
    medians = " ".join(f"{kind} {np.median(list(each.values())):.3f}" for kind, each in correlations.items())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in found.stages.items())
    print(
        f"  {name:12}{found.seconds:8.1f} s {found.peak:6.2f} GB   F1 {visible.f1:.3f} (all cells {everything.f1:.3f})"
        f"   precision {visible.precision:.3f} recall {visible.recall:.3f}   traces {medians}   {stages}",
        flush=True,
    )
    return correlations


def compare(name: str, peer: Found, peer_traces: Correlations, ours: Found, traces: Correlations) -> None:
    # A program that finds only the strongest cells has the better median over what it found.
    both = sorted(traces["raw"].keys() & peer_traces["raw"].keys())
    of_both = {
        kind: [float(np.median([each[cell] for cell in both])) for each in (peer_traces[kind], traces[kind])] for kind in peer_traces
    }
    print(
        f"  {name} / ours: {peer.seconds / ours.seconds:.1f} times the time, {peer.peak / ours.peak:.1f} times the memory; "
        f"traces of the {len(both)} cells that both find: "
        + "; ".join(f"{kind}: {name} {theirs:.3f}, ours {own:.3f}" for kind, (theirs, own) in of_both.items()),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", nargs="+", choices=list(MOVIES), default=["rigid512", "rigid170"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--suite2p", metavar="PYTHON", help="interpreter that has suite2p; left out: .peers/bin/python where it is")
    parser.add_argument("--caiman", metavar="PYTHON", help="interpreter that has CaImAn")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hybrid", help="where movies are kept")
    arguments = parser.parse_args()
    data = os.environ.get("SENSORIUM_TEST_DATA")
    tools = (Path(data).parent if data else HERE.parents[2] / "shared") / "tools"
    if not (tools / "make_hybrid_movie.py").is_file():
        print(f"skipped: {tools / 'make_hybrid_movie.py'} does not exist (set SENSORIUM_TEST_DATA to the folder of real recordings)")
        return
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    made = HERE.parents[1] / ".peers/bin/python"
    suite2p = arguments.suite2p or (str(made) if made.exists() else None)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.movies:
        movie = arguments.folder / f"{name}_seed{arguments.seed}.tif"
        truth_path = movie.with_name(f"{movie.stem}_truth.npz")
        if not truth_path.exists():
            print(f"making {movie} (once) ...", flush=True)
            tool = [sys.executable, str(tools / "make_hybrid_movie.py"), str(movie), *MOVIES[name], "--seed", str(arguments.seed)]
            subprocess.run(tool, check=True)
        truth = read_truth(truth_path)
        print(f"{name}: {len(truth.snr)} cells, {truth.visible.sum()} of them visible", flush=True)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            before = run_ours(movie, Path(folder), cores)
            traces = report("ours", before, truth)
            peers = {}
            if suite2p:
                peers["suite2p"] = run_suite2p(movie, Path(folder), cores, suite2p, tools / "peers/time_suite2p.py")
            if arguments.caiman:
                peers["CaImAn"] = run_caiman(movie, Path(folder), cores, arguments.caiman, name.startswith("warp"))
            reported = {peer: report(peer, found, truth) for peer, found in peers.items()}
            if peers:
                after = run_ours(movie, Path(folder), cores)
                report("ours, again", after, truth)
                ours = replace(after, seconds=(before.seconds + after.seconds) / 2)
                for peer, found in peers.items():
                    compare(peer, found, reported[peer], ours, traces)
    if not (suite2p and arguments.caiman):
        print(RECORDED)


if __name__ == "__main__":
    main()
