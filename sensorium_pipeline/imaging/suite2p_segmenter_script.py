"""Find cells with suite2p; run by the interpreter of an environment that has it, never imported here.

    python suite2p_segmenter_script.py FOLDER

FOLDER holds `request.json` (the fields of `suite2p_segmenter.Request`) and `frames.npy`, the frames to use. `cells.npz` is written
beside them when all went well: `neuron`, `pixel` and `weight` (entries,) are sparse triples, `probability` (cells,) is that of suite2p's
classifier, `trace` (cells, bins) the fluorescence less neuropil in bins of time. Registration is not done. This process ends with the one
that started it, whose end closes standard input.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

# The modules beside this file are no part of suite2p's environment, and some have common names.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402


class UsedFrames:
    """The frames of a movie on disk that are used, as float32, read when they are asked for: what suite2p asks of a movie."""

    def __init__(self, request: "dict[str, Any]", used: np.ndarray) -> None:
        shape = (request["frames"], request["height"], request["width"])
        self._movie = np.memmap(request["movie"], np.dtype(request["dtype"]), "r", shape=shape)
        self._used = used
        self.shape = (len(used), *shape[1:])

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._movie[self._used[part]].astype(np.float32)


def load_suite2p(home: Path) -> "tuple[Any, Any]":
    """suite2p, with settings and classifiers as it comes, not those that somebody keeps at home."""
    os.environ["HOME"] = os.environ["USERPROFILE"] = str(home)
    import torch
    import torch.library

    register = torch.library.register_fake

    def register_where_possible(name: Any, *arguments: Any, **options: Any) -> Any:
        """Shapes of operators that do not load (those of torchvision beside a torch of another build) are not missed here."""
        decorate = register(name, *arguments, **options)

        def apply(function: Any) -> Any:
            try:
                return decorate(function)
            except RuntimeError:
                return function

        return apply

    torch.library.register_fake = register_where_possible
    try:
        import suite2p  # type: ignore[import-not-found, unused-ignore]
    finally:
        torch.library.register_fake = register
    return suite2p, torch.device("cpu")  # the same result on every machine


def find_cells(request: "dict[str, Any]", used: np.ndarray, home: Path) -> "dict[str, np.ndarray]":
    """The arrays of the result."""
    suite2p, device = load_suite2p(home)
    from scipy.stats import skew

    movie, settings = UsedFrames(request, used), suite2p.default_settings()
    detection, extraction = settings["detection"], settings["extraction"]
    detection["bin_size"] = request["bin_size"]
    try:
        _, found, _ = suite2p.detection_wrapper(
            movie,
            diameter=[request["diameter"]] * 2,
            yrange=request["rows"],
            xrange=request["columns"],
            settings=detection,
            device=device,
        )
    except ValueError as error:
        if "no ROIs" not in str(error):
            raise
        found = []
    if len(found) == 0:
        nothing = np.empty(0)
        return {"neuron": nothing, "pixel": nothing, "weight": nothing, "probability": nothing, "trace": np.empty((0, 0))}
    fluorescence, neuropil, _, _ = suite2p.extraction_wrapper(found, movie, settings=extraction, device=device)
    trace = fluorescence - extraction["neuropil_coefficient"] * neuropil
    for cell, asymmetry in zip(found, skew(trace, axis=1)):  # noqa: B905 - may be an older Python
        cell["skew"] = asymmetry
    bins = trace.shape[1] // request["bin_size"]
    return {
        "neuron": np.repeat(np.arange(len(found)), [len(cell["lam"]) for cell in found]),
        "pixel": np.concatenate([cell["ypix"] * request["width"] + cell["xpix"] for cell in found]),
        "weight": np.concatenate([cell["lam"] for cell in found]),
        "probability": suite2p.classify(stat=found, classfile=suite2p.classification.builtin_classfile)[:, 1],
        "trace": trace[:, : bins * request["bin_size"]].reshape(len(trace), bins, -1).mean(2),
    }


def end_with_the_parent() -> None:
    """Standard input says nothing and ends with the process that holds its other end."""
    os.read(0, 1)
    os._exit(2)  # an error of Python gives 1


if __name__ == "__main__":
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    cells = find_cells(json.loads((folder / "request.json").read_text()), np.load(folder / "frames.npy"), folder)
    arrays: Any = {name: np.asarray(array, np.int32 if name in ("neuron", "pixel") else np.float32) for name, array in cells.items()}
    np.savez(folder / "unfinished.npz", **arrays)
    os.replace(folder / "unfinished.npz", folder / "cells.npz")
