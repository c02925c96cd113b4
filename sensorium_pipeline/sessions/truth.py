"""How near a session of a simulated recording comes to what was simulated: neurons found, and their responses."""

from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.sessions.schema import read_array

MASK = 0.2  # part of a footprint's maximum from which a pixel belongs to it
LEAST_OVERLAP = 0.5  # intersection over union of the masks of one neuron
TRUTH = "truth.h5"


class TruthComparison(BaseModel):
    """A session beside its truth.

    Attributes:
        neurons: simulated.
        released: kept cells.
        matched: of them, those that are a simulated neuron: masks with an intersection over union above one half, one to one.
        correlation: of the released trials' responses with the true spike counts, median over matched neurons that spiked; zero
            where there is none.
    """

    model_config = ConfigDict(frozen=True)

    neurons: int
    released: int
    matched: int
    correlation: float

    @property
    def matched_fraction(self) -> float:
        """Share of the simulated neurons that were found."""
        return self.matched / max(self.neurons, 1)


def compare_with_truth(lab: xr.DataTree, truth: Path) -> TruthComparison:
    """Compare the lab part of a session with the truth beside its simulated recording.

    Args:
        lab: the session's lab part.
        truth: folder that the simulator left, `recordings.truth_folder`.

    Raises:
        InputError: there is no truth, or it is that of another recording.
    """
    path = truth / TRUTH
    try:
        with h5py.File(path) as file:
            planes, counts = np.asarray(file["neurons/plane"]), np.asarray(file["presentations/spike_count"])
            footprints = {plane: np.asarray(file[f"planes/{plane}/footprints"]) for plane in np.unique(planes).tolist()}
            shifts = {plane: np.asarray(file[f"planes/{plane}/shifts"]) for plane in footprints}
    except (OSError, KeyError) as error:
        raise InputError(f"cannot be read as the truth of a simulation ({error})", where=path, advice="Simulate it again.") from error
    response, kept = read_array(lab, "trials/response"), read_array(lab, "neurons/kept")
    if len(response) != len(counts):
        raise InputError(f"has {len(counts)} presentations, the session {len(response)}", where=path, advice="Give the truth beside it.")
    released = np.flatnonzero(read_array(lab, "trials/rejection") == "")
    pairs = []
    for plane, true in footprints.items():
        cells = np.flatnonzero(kept & (read_array(lab, "neurons/plane") == plane))
        found = read_array(lab, "recording/shifts")[plane]
        # The template may stand anywhere within the motion: what the two sets of shifts differ by on the whole.
        offset = np.rint(np.median(shifts[plane] - found, axis=0)).astype(int)
        masks = np.roll(true > MASK * true.max((1, 2), keepdims=True), offset, axis=(1, 2)).reshape(len(true), -1)
        pairs += [(int(np.flatnonzero(planes == plane)[i]), int(cells[j])) for i, j in _match(masks, _masks(lab, cells, masks.shape[1]))]
    correlations = [
        float(np.corrcoef(counts[released, neuron], response[released, cell])[0, 1])
        for neuron, cell in pairs
        if np.ptp(counts[released, neuron]) > 0 and np.ptp(response[released, cell]) > 0
    ]
    return TruthComparison(
        neurons=len(planes),
        released=int(kept.sum()),
        matched=len(pairs),
        correlation=float(np.median(correlations)) if correlations else 0.0,
    )


def _masks(lab: xr.DataTree, cells: NDArray[np.int64], pixels: int) -> NDArray[np.bool_]:
    """Masks (cells, pixels) of cells of one plane."""
    neuron, pixel, weight = (read_array(lab, f"neurons/footprint_{name}") for name in ("neuron", "pixel", "weight"))
    masks = np.zeros((len(cells), pixels), bool)
    for row, cell in enumerate(cells):
        mine = slice(*np.searchsorted(neuron, [cell, cell + 1]))
        masks[row, pixel[mine][weight[mine] > MASK * weight[mine].max(initial=0)]] = True
    return masks


def _match(true: NDArray[np.bool_], found: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pairs of rows whose masks agree, one to one, so that the overlap of all together is largest."""
    from scipy.optimize import linear_sum_assignment

    if not len(true) or not len(found):
        return []
    both = true.astype(np.float32) @ found.T.astype(np.float32)
    overlap = both / np.maximum(true.sum(1)[:, None] + found.sum(1)[None] - both, 1)
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(-overlap), strict=True) if overlap[i, j] > LEAST_OVERLAP]
