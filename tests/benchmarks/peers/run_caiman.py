"""Run CaImAn on one movie, as its own demonstration does, and keep what it found: a peer of the imaging benchmark.

    run_caiman.py MOVIE.tif OUT.npz --frame-rate 10 [--piecewise] [--motion-only] [--processes 2]

Needs an environment of its own with CaImAn (GPL-2, not on PyPI: build it from its sources). Prints one JSON line: wall seconds, seconds
of each stage, peak memory of this process and of its largest child. OUT.npz holds footprints (cells, y, x) and traces (cells, frames) or,
with --motion-only, displacement (frames, 2, rows, columns), the motion that CaImAn undid, and the centres of its blocks.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np


def save_displacement(motion, out: Path, seconds: float) -> None:
    """The motion of each block; CaImAn stores it negated, blocks in row-major order of the grid that its own splitting makes."""
    from caiman.motion_correction import sliding_window

    shape = motion.total_template_rig.shape
    if motion.pw_rigid:
        blocks = list(sliding_window(np.empty(shape, np.float32), motion.overlaps, motion.strides))
        rows, columns = (sorted({block[2 + k] + (motion.overlaps[k] + motion.strides[k] - 1) / 2 for block in blocks}) for k in range(2))
        shifts = -np.stack([motion.x_shifts_els, motion.y_shifts_els], 1)
        displacement = shifts.reshape(len(shifts), 2, len(rows), len(columns))
    else:
        displacement = -np.asarray(motion.shifts_rig)[:, :, None, None]
        rows, columns = [shape[0] / 2], [shape[1] / 2]
    np.savez_compressed(out, displacement=displacement.astype(np.float32), rows=rows, columns=columns, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("movie", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frame-rate", type=float, default=10.0)
    parser.add_argument("--piecewise", action="store_true")
    parser.add_argument("--motion-only", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()

    temporary = tempfile.TemporaryDirectory(prefix="caiman-")
    os.environ["CAIMAN_TEMP"] = temporary.name  # read when caiman is imported
    import caiman
    from caiman.motion_correction import MotionCorrect
    from caiman.source_extraction.cnmf import cnmf, params

    stages: dict[str, float] = {}
    begun = started = time.perf_counter()

    def stage(name: str) -> None:
        nonlocal started
        stages[name] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()

    options = params.CNMFParams(
        params_dict={
            "fnames": [str(arguments.movie)],
            "fr": arguments.frame_rate,
            "decay_time": 1.0,
            "strides": (48, 48),
            "overlaps": (24, 24),
            "max_shifts": (12, 12),
            "max_deviation_rigid": 3,
            "pw_rigid": arguments.piecewise,
            "p": 1,
            "nb": 2,
            "rf": 25,
            "K": 10,
            "gSig": [4, 4],
            "stride": 10,
            "merge_thr": 0.85,
            "rolling_sum": True,
            "only_init": True,
            "method_init": "greedy_roi",
            "ssub": 1,
            "tsub": 1,
            "min_SNR": 2.0,
            "rval_thr": 0.85,
            "use_cnn": False,  # its weights are downloaded, which a benchmark cannot rely on
        }
    )
    _, view, _ = caiman.cluster.setup_cluster(backend="multiprocessing", n_processes=arguments.processes, single_thread=False)
    motion = MotionCorrect([str(arguments.movie)], dview=view, **options.get_group("motion"))
    motion.motion_correct(save_movie=True)
    stage("motion")
    if arguments.motion_only:
        save_displacement(motion, arguments.out, stages["motion"])
        view.terminate()
        report(stages["motion"], stages)
        return
    mapped = caiman.save_memmap(motion.mmap_file, base_name="memmap_", order="C", border_to_0=0, dview=view)
    matrix, shape, frames = caiman.load_memmap(mapped)
    images = np.reshape(matrix.T, [frames, *shape], order="F")
    stage("memory map")
    fit = cnmf.CNMF(arguments.processes, params=options, dview=view)
    fit.fit(images)
    stage("CNMF")
    fit = fit.refit(images, dview=view)
    stage("refit")
    fit.estimates.evaluate_components(images, fit.params, dview=view)
    stage("evaluation")
    kept = fit.estimates.idx_components
    wall = time.perf_counter() - begun
    footprints = fit.estimates.A.toarray().reshape(*shape, -1, order="F").transpose(2, 0, 1)[kept]
    np.savez_compressed(
        arguments.out,
        footprints=footprints.astype(np.float32),
        traces=(fit.estimates.C + fit.estimates.YrA)[kept].astype(np.float32),
        denoised=fit.estimates.C[kept].astype(np.float32),
    )
    view.terminate()
    report(wall, stages)


def report(wall: float, stages: dict[str, float]) -> None:
    own, child = (resource.getrusage(who).ru_maxrss / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    record = {"wall_s": round(wall, 2), "peak_GB": round(own, 2), "child_peak_GB": round(child, 2), "stages_s": stages}
    print(json.dumps(record))


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
