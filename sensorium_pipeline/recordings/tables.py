"""Reading the small tables of a raw session: CSV and HDF5, with errors that name the file and the column."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.recordings.frames import COPY_AGAIN
from sensorium_pipeline.recordings.hdf5 import linked_files, not_hdf5

CHUNK = 1 << 20


def read_columns(path: Path, columns: Sequence[str], *, may_lack: Sequence[str] = ()) -> dict[str, NDArray[np.float64]]:
    """Numeric columns of a CSV file with comment lines (#) before its header.

    Args:
        columns: that must be there; others are left alone.
        may_lack: columns in which a field may be empty (NaN).

    Raises:
        InputError: naming the file, and the column and line that are missing or not a number.
    """
    table = read_text_table(path, columns)
    result = {}
    for name in columns:
        text = table[name].str.strip()
        empty = text.isin(["", "nan", "NaN"])
        values = pd.to_numeric(text.where(~empty), errors="coerce").to_numpy(np.float64, na_value=np.nan)
        bad = ~np.isfinite(values) & ~(empty.to_numpy() & (name in may_lack))
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"column {name!r}, row {row + 1}: {text.iloc[row]!r} is not a number",
                where=path,
                advice="Correct the table, or export it again.",
            )
        result[name] = np.array(values)  # pandas hands out read-only views
    return result


def whole_numbers(values: NDArray[np.float64], path: Path, column: str) -> NDArray[np.int64]:
    """A column that `read_columns` gave as whole numbers; `InputError` where one is none."""
    if (bad := np.flatnonzero((values != np.floor(values)) | (np.abs(values) > 2**53))).size:
        raise InputError(
            f"column {column!r}, row {bad[0] + 1}: {values[bad[0]]:g} is not a whole number", where=path, advice="Export the table again."
        )
    return values.astype(np.int64)


def read_text_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a CSV file as text; `InputError` where one is missing."""
    _check_file(path)
    try:
        table = pd.read_csv(path, comment="#", dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise InputError(f"cannot be read as a table ({str(error).splitlines()[0][:120]})", where=path, advice=COPY_AGAIN) from error
    table.columns = table.columns.str.strip()
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        raise InputError(
            f"lacks the column {', '.join(repr(name) for name in lacking)}",
            where=path,
            advice=f"It has: {', '.join(map(str, table.columns))}.",
        )
    if len(table) == 0:
        raise InputError("has no rows", where=path, advice=COPY_AGAIN)
    return table


def commented_session(path: Path) -> str | None:
    """The session that a CSV file names in a comment line `# session: 1-1-1` before its header; None where it names none."""
    _check_file(path)
    with path.open("r", encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                return None
            key, _, value = line[1:].partition(":")
            if key.strip() == "session":
                return value.strip()
    return None


class Hdf5Table:
    """Named vectors of an HDF5 file, read whole or in pieces.

    Raises:
        InputError: from every method, naming the file and the dataset or attribute.
    """

    def __init__(self, path: Path) -> None:
        _check_file(path)
        self.path = path
        with self._opened():
            pass

    def text(self, name: str) -> str | None:
        """A text attribute of the file, None where it is absent."""
        with self._opened() as file:
            value = file.attrs.get(name)
        return None if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def number(self, name: str) -> float:
        """A positive number among the attributes of the file."""
        with self._opened() as file:
            value = file.attrs.get(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not 0 < number < float("inf"):
            raise InputError(f"attribute {name!r} is {value!r}, not a positive number", where=self.path, advice=COPY_AGAIN)
        return number

    def vector(self, name: str) -> NDArray[np.generic]:
        """A whole vector."""
        with self._opened() as file:
            return np.asarray(self._dataset(file, name)[:])

    def chunks(self, name: str) -> Iterator[NDArray[np.generic]]:
        """A vector in pieces of `CHUNK` samples."""
        with self._opened() as file:
            dataset = self._dataset(file, name)
            for start in range(0, len(dataset), CHUNK):
                yield dataset[start : start + CHUNK]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except InputError:
            raise
        except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ValueError and more on damaged files
            raise not_hdf5(self.path, error) from error

    def _dataset(self, file: Any, name: str) -> Any:
        item = file.get(name)
        if not isinstance(item, h5py.Dataset):
            found: list[str] = []
            file.visititems(lambda path, thing: found.append(path) if isinstance(thing, h5py.Dataset) else None)
            raise InputError(f"lacks the dataset {name!r}", where=self.path, advice=f"It has: {', '.join(found) or 'none'}.")
        if item.shape is None or len(item.shape) != 1 or item.dtype.kind not in "iuf" or item.size > 1 << 34:
            raise InputError(f"dataset {name!r} is {item.shape} {item.dtype}, not a vector of numbers", where=self.path, advice=COPY_AGAIN)
        if others := linked_files(item, self.path):  # which the digest of the session does not cover
            problem = f"dataset {name!r} takes values from {others[0][0].name}"
            raise InputError(problem, where=self.path, advice="Copy them into this file.")
        return item


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError("is missing", where=path, advice="Copy the whole session folder again from the rig.")
