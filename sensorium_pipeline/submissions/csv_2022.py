"""The two CSV files of SENSORIUM 2022, read as a stream.

`submission_file_live_test.csv` and `submission_file_final_test.csv` have the columns trial_indices, image_ids, prediction, neuron_ids and
one row for each trial; the last two are Python lists written as text, about 200 kB a row. They are never evaluated as Python: a row is
taken apart as bytes, and its numbers are read by pyarrow's parser, a few rows at a time. The neuron ids, the same in every row, are read
once. What comes out is an array of the size of the predictions, whatever the size of the file.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from sensorium_pipeline.errors import SubmissionError
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.submissions.predictions import Predictions

FILES: Final = {"test": "submission_file_live_test.csv", "final_test": "submission_file_final_test.csv"}
COLUMNS = ("trial_indices", "image_ids", "prediction", "neuron_ids")
BLOCK_BYTES = 4 * 1024**2
LONGEST_NUMBER = 32
_ONE_A_LINE = bytes.maketrans(b",", b"\n")


@dataclass(frozen=True)
class Trials2022:
    """The trials that the files of one session must cover, and their neurons.

    Shapes: trial_name (trials,) text as in the column trial_indices; trial_id, image_id (trials,) int64; tier (trials,) text; unit_id
    (neurons,) int64.
    """

    session: str
    trial_name: NDArray[np.str_]
    trial_id: NDArray[np.int64]
    image_id: NDArray[np.int64]
    tier: NDArray[np.str_]
    unit_id: NDArray[np.int64]


def read_2022(folder: Path, trials: Trials2022, progress: ProgressCallback = silent) -> Predictions:
    """Read both files of a submission of 2022.

    Args:
        folder: holds the two files.
        trials: what they must cover.
        progress: told bytes read.

    Returns:
        Predictions in the order of `trials`, float32.

    Raises:
        SubmissionError: naming the file, the line, and what is wrong there.
    """
    row_of = {name: row for row, name in enumerate(trials.trial_name.tolist())}
    line_of = np.zeros(len(row_of), np.int64)
    prediction = np.empty((len(row_of), len(trials.unit_id)), np.float32)
    for tier, name in FILES.items():
        if tier in trials.tier:
            _read_file(folder / name, tier, trials, row_of, line_of, prediction, progress)
    return Predictions(trials.trial_id, trials.unit_id, prediction)


@dataclass(frozen=True)
class _Line:
    """A row that is taken apart: its number in the file, which trial it is, and its predictions as text."""

    number: int
    row: int
    values: bytes


def _read_file(
    path: Path,
    tier: str,
    trials: Trials2022,
    row_of: dict[str, int],
    line_of: NDArray[np.int64],
    prediction: NDArray[np.float32],
    progress: ProgressCallback,
) -> None:
    neurons = len(trials.unit_id)
    try:
        size, file = path.stat().st_size, path.open("rb", buffering=1024 * 1024)
    except OSError as error:
        advice = f"A submission of 2022 has the files {' and '.join(FILES.values())}"
        raise SubmissionError(f"it cannot be read ({error.strerror})", where=path, advice=advice) from error
    with file:
        _check_header(path, file.readline(4096))
        columns: NDArray[np.intp] | None = None
        neuron_text = b""
        block: list[_Line] = []
        for number, text in _lines(path, file, neurons):
            name, image, values, ids = _take_apart(path, number, text)
            row = _trial(path, number, name, image, tier, trials, row_of)
            if line_of[row]:
                problem = f"trial {trials.trial_name[row]} stands in line {line_of[row]} already"
                raise SubmissionError(problem, where=_at(path, number), advice="Give each once")
            line_of[row] = number
            if ids != neuron_text:
                found = _columns(path, number, ids, trials.unit_id)
                if columns is not None and not np.array_equal(found, columns):
                    # Whole blocks are put in order at once.
                    _put(path, block, columns, prediction)
                    block = []
                columns, neuron_text = found, ids
            count = values.count(b",") + 1 if values.strip() else 0
            if count != neurons:
                problem = f"{count} predictions for {neurons} neurons"
                raise SubmissionError(problem, where=_at(path, number), advice=f"Session {trials.session} has {neurons} neurons")
            block.append(_Line(number, row, values))
            if columns is not None and sum(len(line.values) for line in block) >= BLOCK_BYTES:
                _put(path, block, columns, prediction)
                block = []
                progress(Progress(f"reading {path.name}", file.tell(), size))
        if columns is not None and block:
            _put(path, block, columns, prediction)
    missing = np.flatnonzero((trials.tier == tier) & (line_of == 0))
    if len(missing):
        first = trials.trial_name[missing[0]]
        advice = f"Predict all {int((trials.tier == tier).sum())} trials of tier {tier}"
        raise SubmissionError(f"{len(missing)} trials are missing, the first is {first}", where=path, advice=advice)
    progress(Progress(f"reading {path.name}", size, size))


def _check_header(path: Path, line: bytes) -> None:
    names = tuple(name.strip().strip('"') for name in line.decode(errors="replace").strip("\ufeff\r\n ").split(","))
    if names != COLUMNS:
        found = ", ".join(name[:30] for name in names[:6])
        advice = f"The columns are {', '.join(COLUMNS)}; with pandas, write with index=False"
        raise SubmissionError(f"the columns are {found!a}", where=_at(path, 1), advice=advice)


def _lines(path: Path, file: BinaryIO, neurons: int) -> Iterator[tuple[int, bytes]]:
    """Number and text of every row; a row longer than its numbers can be is not read to its end."""
    longest = 2 * neurons * LONGEST_NUMBER + 4096
    number = 1
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            problem = f"the row is longer than {longest} bytes, more than {neurons} predictions and neuron ids can take"
            raise SubmissionError(problem, where=_at(path, number), advice="Write one row for each trial")
        if text := line.strip():
            yield number, text


def _take_apart(path: Path, number: int, text: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Trial, image, and the insides of the two lists of a row. The lists are long, so each byte is looked at once."""
    head, _, rest = text.partition(b"[")
    values, _, rest = rest.partition(b"]")
    between, _, rest = rest.partition(b"[")
    ids, closed, end = rest.partition(b"]")
    name, comma, image = head.rstrip(b'"').removesuffix(b",").partition(b",")
    if not (closed and comma) or between not in (b'","', b",") or end not in (b'"', b"") or b"," in image or b'"' in values:
        advice = 'Write trial, image, "[prediction, ...]", "[neuron id, ...]", as pandas does with lists'
        raise SubmissionError("the row is not one of a submission of 2022", where=_at(path, number), advice=advice)
    return name.strip(b' "'), image.strip(b' "'), values, ids


def _trial(path: Path, number: int, name: bytes, image: bytes, tier: str, trials: Trials2022, row_of: dict[str, int]) -> int:
    """The row of `trials` that a line is about."""
    text = name.decode(errors="replace").strip()
    row = row_of.get(text)
    if row is None:
        problem = f"unknown trial {text[:40]!a}"
        raise SubmissionError(problem, where=_at(path, number), advice=f"The trials are those of session {trials.session}, tier {tier}")
    if trials.tier[row] != tier:
        problem = f"trial {text} is of tier {trials.tier[row]}, and the file of {tier}"
        raise SubmissionError(problem, where=_at(path, number), advice=f"It belongs into {FILES[str(trials.tier[row])]}")
    shown = str(trials.image_id[row])
    if image.decode(errors="replace").strip() != shown:
        problem = f"image {image.decode(errors='replace')[:20]!a} was not shown in trial {text}"
        raise SubmissionError(problem, where=_at(path, number), advice=f"It was image {shown}; rows and images are mixed up")
    return row


def _columns(path: Path, number: int, text: bytes, unit_id: NDArray[np.int64]) -> NDArray[np.intp]:
    """For every neuron of the session its place in the row."""
    where = f"{_at(path, number)}, neuron_ids"
    try:
        ids = np.array(text.decode("ascii").split(","), np.int64)
    except (ValueError, OverflowError) as error:
        raise SubmissionError("not a list of whole numbers", where=where, advice="Write [1, 2, ...]") from error
    order = np.argsort(ids, kind="stable")
    if len(ids) != len(unit_id) or not np.array_equal(ids[order], np.sort(unit_id)):
        unknown, missing = np.setdiff1d(ids, unit_id), np.setdiff1d(unit_id, ids)
        found = f"{len(unknown)} unknown, {len(missing)} missing, {len(ids) - len(np.unique(ids))} twice"
        first = f"; the first is {int(np.concatenate([unknown, missing])[0])}" if len(unknown) + len(missing) else ""
        raise SubmissionError(f"not the neurons of the session ({found}{first})", where=where, advice="Give each unit id once")
    place: NDArray[np.intp] = order[np.searchsorted(ids[order], unit_id)]
    return place


def _put(path: Path, block: list[_Line], columns: NDArray[np.intp], prediction: NDArray[np.float32]) -> None:
    """Read the numbers of some rows and put them in their places."""
    if not block:
        return
    text = b"\n".join(line.values.translate(_ONE_A_LINE, b" ") for line in block) + b"\n"
    try:
        read = pyarrow.csv.read_csv(
            io.BytesIO(text),
            read_options=pyarrow.csv.ReadOptions(column_names=["value"]),
            parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False, quote_char=False, delimiter="\t"),
            convert_options=pyarrow.csv.ConvertOptions(column_types={"value": pa.float64()}, null_values=[]),
        )["value"].to_numpy()
        values = read.astype(np.float32).reshape(len(block), -1)
        with np.errstate(invalid="ignore"):
            unusable = ~np.isfinite(values)
    except (pa.ArrowInvalid, ValueError):
        _refuse_text(path, block)
        raise
    if unusable.any():
        row, column = np.argwhere(unusable)[0]
        where = f"{_at(path, block[row].number)}, prediction"
        raise SubmissionError(f"value {column + 1} is NaN or infinite", where=where, advice="Predict a number for each neuron")
    prediction[[line.row for line in block]] = values[:, columns]


def _refuse_text(path: Path, block: list[_Line]) -> None:
    """Find the text that is not a number, to say where it stands."""
    for line in block:
        for place, text in enumerate(line.values.split(b","), 1):
            try:
                float(text)
            except ValueError:
                shown = text.strip()[:30].decode(errors="replace")
                where = f"{_at(path, line.number)}, prediction"
                raise SubmissionError(f"value {place} is {shown!a}", where=where, advice="Write numbers, as 0.25 or 1e-3") from None
    raise SubmissionError("the predictions are not readable", where=_at(path, block[0].number), advice="Write numbers, as 0.25")


def _at(path: Path, number: int) -> str:
    return f"{path}, line {number}"
