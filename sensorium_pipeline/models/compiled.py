"""Compiled code kept beside its source, for processes that cannot write there."""

import hashlib
import os
import shutil
from pathlib import Path


def take_compiled(source: Path) -> None:
    """Copy what numba compiled of a module from beside it to the folder NUMBA_CACHE_DIR, where that is set.

    Numba reads no folder that it cannot write, so a sandbox that sees the package read-only would compile anew in every run. To be
    called before the module's first compiled function.
    """
    cache = os.environ.get("NUMBA_CACHE_DIR")
    if not cache:
        return
    # Numba's own name for the folder of a module; under another one it would compile, and nothing else would change.
    folder = Path(cache, f"{source.parent.name}_{hashlib.sha1(str(source.parent).encode()).hexdigest()}")
    folder.mkdir(parents=True, exist_ok=True)
    for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.*.nb[ci]"):
        if not (folder / compiled.name).exists():
            shutil.copyfile(compiled, folder / compiled.name)
