"""Register one movie with suite2p, rigid and non-rigid, and keep the motion that it found: a peer of the benchmark of motion correction.

    register_suite2p.py MOVIE.tif OUT.npz

Needs an environment of its own with suite2p (`make peers`). OUT.npz holds shifts (frames, 2), the whole pixels by which content had moved
in y and x, deviations (frames, rows, columns, 2), which blocks had moved beyond that, rows and columns, the centres of the blocks in
pixels, and seconds, of registration alone with the movie in memory.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
import torch.library

# suite2p pulls in a torchvision whose compiled operators do not load beside a torch for CPUs; it uses none of them.
_register_fake = torch.library.register_fake
torch.library.register_fake = lambda name, *a, **k: (
    (lambda f: f) if str(name).startswith("torchvision::") else _register_fake(name, *a, **k)
)
import torchvision  # noqa: E402, F401

torch.library.register_fake = _register_fake
from suite2p import default_settings  # noqa: E402
from suite2p.registration import nonrigid, register  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("movie", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    movie = tifffile.imread(arguments.movie)
    settings = default_settings()["registration"]
    started = time.perf_counter()
    found = register.registration_wrapper(movie, settings=settings, device=torch.device("cpu"))
    seconds = time.perf_counter() - started
    rows, columns, blocks, *_ = nonrigid.make_blocks(*movie.shape[1:], block_size=settings["block_size"])
    deviations = np.stack([found["yoff1"], found["xoff1"]], -1).reshape(len(movie), *blocks, 2)
    np.savez(
        arguments.out,
        shifts=np.stack([found["yoff"], found["xoff"]], -1),
        deviations=deviations,
        rows=np.array(rows[:: blocks[1]]).mean(1),
        columns=np.array(columns[: blocks[1]]).mean(1),
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
