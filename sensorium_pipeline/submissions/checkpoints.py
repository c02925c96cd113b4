"""Checkpoints of a run that is not over, on the trusted side: opaque bytes in a store, the last two, removed when the run has ended.

They lie under `checkpoints/<digest>/`, whatever machine the run was on, so that a retry elsewhere finds them. A name holds the number
and the sha256 of the content: what was cut short by a power cut or a killed worker does not fit its name, and the one before is used.
"""

from pathlib import Path

from sensorium_pipeline.errors import PlatformError
from sensorium_pipeline.storage import MissingObjectError, Store, StoredObject, digest_of_file
from sensorium_pipeline.storage.collection import CHECKPOINTS

KEPT = 2
READ_BYTES = 8 * 1024**2


class KeptCheckpoints:
    """The checkpoints of one run.

    Args:
        store: the sealed store.
        digest: of everything that decides what the run computes, submission and seed included: no other run may read them.
    """

    def __init__(self, store: Store, digest: str) -> None:
        self._store, self._prefix = store, f"{CHECKPOINTS}/{digest}"

    def latest(self, target: Path) -> bool:
        """Copy the newest whole one to a file; False where there is none."""
        for stored in reversed(self._store.walk(self._prefix)):
            try:
                self._copy(stored, target)
            except (MissingObjectError, PlatformError):
                continue
            if digest_of_file(target) == _name(stored.path).partition("-")[2]:
                return True
        target.unlink(missing_ok=True)
        return False

    def exist(self) -> bool:
        """Whether anything was put away."""
        return bool(self._store.walk(self._prefix))

    def keep(self, source: Path) -> None:
        """Store another one, and remove all but the last two."""
        paths = [stored.path for stored in self._store.walk(self._prefix)]
        number = int(_name(paths[-1]).partition("-")[0]) + 1 if paths else 1
        # Stored before an older one goes, so that there is a whole one at any moment.
        self._store.upload(f"{self._prefix}/{number:06d}-{digest_of_file(source)}", source)
        for path in paths[: 1 - KEPT]:
            self._store.remove(path)

    def clear(self) -> None:
        """Remove all of them: the run has ended."""
        if self.exist():
            self._store.remove(self._prefix)

    def _copy(self, stored: StoredObject, target: Path) -> None:
        with target.open("wb") as file:
            for start in range(0, stored.size, READ_BYTES):
                file.write(self._store.read_range(stored.path, start, min(start + READ_BYTES, stored.size)))


def _name(path: str) -> str:
    return path.rpartition("/")[2]
