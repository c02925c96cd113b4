"""Predictions as they leave a sandbox or arrive as files: untrusted until they are inert arrays with exactly the expected ids.

One `<session>.npz` for each session: trial_id (trials,) integers, unit_id (neurons,) integers, prediction (trials, neurons) float, in
standardised units (raw response x precision). Rows and columns may come in any order; they are put into the session's own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import SubmissionError
from sensorium_pipeline.submissions.arrays import read_arrays, write_arrays


@dataclass(frozen=True)
class Expected:
    """What a session's predictions must cover: trial_id (trials,) and unit_id (neurons,), both int64 and without repeats."""

    session: str
    trial_id: NDArray[np.int64]
    unit_id: NDArray[np.int64]

    @property
    def largest_file(self) -> int:
        """Bytes that a correct file can need at most (64-bit numbers, and room for headers)."""
        values = len(self.trial_id) * len(self.unit_id) + len(self.trial_id) + len(self.unit_id)
        return 8 * values + 65536


@dataclass(frozen=True)
class Predictions:
    """Checked predictions of one session: trial_id (trials,), unit_id (neurons,) int64, prediction (trials, neurons) float32, finite."""

    trial_id: NDArray[np.int64]
    unit_id: NDArray[np.int64]
    prediction: NDArray[np.float32]


def read_predictions(path: Path, expected: Expected, where: str) -> Predictions:
    """Read and check one session's predictions.

    Raises:
        SubmissionError: the file is missing, too large, broken, holds other ids, another shape or type, NaN or infinity.
    """
    if not path.is_file() or path.is_symlink():
        raise SubmissionError(f"no predictions for session {expected.session}", where=where, advice="Write one .npz file for each session")
    if path.stat().st_size > expected.largest_file:
        advice = f"{len(expected.trial_id)} trials x {len(expected.unit_id)} neurons are expected"
        raise SubmissionError(f"{path.stat().st_size} bytes are too large", where=where, advice=advice)
    trials, neurons = len(expected.trial_id), len(expected.unit_id)
    arrays = read_arrays(
        path, where, {"trial_id": ((trials,), "iu"), "unit_id": ((neurons,), "iu"), "prediction": ((trials, neurons), "f")}
    )
    rows = _order(arrays["trial_id"], expected.trial_id, f"{where}, trial_id")
    columns = _order(arrays["unit_id"], expected.unit_id, f"{where}, unit_id")
    with np.errstate(over="ignore", invalid="ignore"):
        prediction = arrays["prediction"].astype(np.float32)
    unusable = int(prediction.size - np.isfinite(prediction).sum())
    if unusable:
        row, column = np.argwhere(~np.isfinite(prediction))[0]
        raise SubmissionError(
            f"{unusable} of {prediction.size} values are NaN or infinite",
            where=f"{where}, prediction",
            advice=f"The first is trial {int(arrays['trial_id'][row])}, unit {int(arrays['unit_id'][column])}; predict a number for each",
        )
    return Predictions(expected.trial_id, expected.unit_id, np.ascontiguousarray(prediction[rows][:, columns]))


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write checked predictions; same arrays, same bytes."""
    arrays: dict[str, NDArray[np.generic]] = {
        "trial_id": predictions.trial_id,
        "unit_id": predictions.unit_id,
        "prediction": predictions.prediction,
    }
    write_arrays(path, arrays)


def _order(found: NDArray[np.generic], wanted: NDArray[np.int64], where: str) -> NDArray[np.intp]:
    """Index into `found` that gives `wanted`."""
    ids = found.astype(np.int64)
    unknown = np.setdiff1d(ids, wanted)
    if len(unknown):
        advice = f"The session's ids go from {wanted.min()} to {wanted.max()}" if len(wanted) else "The session has none"
        raise SubmissionError(f"{len(unknown)} unknown ids, the first is {int(unknown[0])}", where=where, advice=advice)
    missing = np.setdiff1d(wanted, ids)
    if len(missing):
        advice = "Give each id once"
        raise SubmissionError(f"{len(missing)} ids are missing, the first is {int(missing[0])}", where=where, advice=advice)
    order = np.argsort(ids, kind="stable")
    index: NDArray[np.intp] = order[np.searchsorted(ids[order], wanted)]
    return index
