"""The acquisition's sync file: what its clock saw, sample by sample."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.clocks import edges
from sensorium_pipeline.recordings.tables import Hdf5Table

PHOTODIODE = "analog/photodiode"


class SyncFile:
    """Edges of the lines of a sync file, in seconds since its first sample; signals are read in pieces.

    Raises:
        InputError: when the file is missing, damaged, or names another session.
    """

    def __init__(self, path: Path, session: str) -> None:
        self.path = path
        self.table = Hdf5Table(path)
        check_session(path, self.table.text("session"), session)
        self.sample_rate = self.table.number("sample_rate")

    def rising(self, line: str) -> NDArray[np.float64]:
        """Rising edges of a digital line (edges,)."""
        rising, _ = edges(self.table.chunks(f"digital/{line}"), 0.5, 0.5)
        return rising / self.sample_rate

    def photodiode(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rising and falling edges of the photodiode; its two levels are taken from the signal itself."""
        sample = np.concatenate([np.empty(0), *(piece[::97].astype(np.float64) for piece in self.table.chunks(PHOTODIODE))])
        sample = sample[np.isfinite(sample)]
        if len(sample) == 0:
            raise InputError(f"{PHOTODIODE} has no samples", where=self.path, advice="Copy the file again from the acquisition.")
        dark, bright = np.quantile(sample, [0.02, 0.98])
        if not bright > dark:
            raise InputError(
                f"{PHOTODIODE} never changes",
                where=self.path,
                advice="Check that the photodiode was connected; without it onsets are unknown.",
            )
        third = (bright - dark) / 3
        rising, falling = edges(self.table.chunks(PHOTODIODE), dark + third, bright - third)
        return rising / self.sample_rate, falling / self.sample_rate


def check_session(path: Path, named: str | None, session: str) -> None:
    """Raise `InputError` when a file names another session than the folder's."""
    if named is None:
        raise InputError("does not name its session", where=path, advice=f"Its header must say: session {session}.")
    if named != session:
        raise InputError(
            f"belongs to session {named}, and this folder is session {session}", where=path, advice="Copy the file of this session."
        )
