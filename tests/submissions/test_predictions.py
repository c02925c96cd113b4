"""Predictions files: exactly the expected ids, shapes and types, finite, and nothing unpacked that is too large."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from submission_samples import SMALL

from sensorium_pipeline.errors import SubmissionError
from sensorium_pipeline.submissions.predictions import Expected, Predictions, read_predictions, write_predictions
from sensorium_pipeline.submissions.run import run_submission
from sensorium_pipeline.submissions.staging import StagedSession

EXPECTED = Expected("static1-1-1", np.arange(20, 24, dtype=np.int64), np.array([3, 5, 9], dtype=np.int64))
VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def saved(path: Path, **changes: object) -> Path:
    arrays = {"trial_id": EXPECTED.trial_id, "unit_id": EXPECTED.unit_id, "prediction": VALUES} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_any_order_is_put_right(tmp_path: Path) -> None:
    rows, columns = [2, 0, 3, 1], [1, 2, 0]
    path = saved(
        tmp_path / "p.npz",
        trial_id=EXPECTED.trial_id[rows].astype(np.int32),
        unit_id=EXPECTED.unit_id[columns],
        prediction=np.asfortranarray(VALUES[rows][:, columns].astype(np.float64)),
    )
    read = read_predictions(path, EXPECTED, "p.npz")
    np.testing.assert_array_equal(read.prediction, VALUES)
    assert read.prediction.dtype == np.float32
    np.testing.assert_array_equal(read.trial_id, EXPECTED.trial_id)


def test_same_arrays_same_bytes(tmp_path: Path) -> None:
    predictions = Predictions(EXPECTED.trial_id, EXPECTED.unit_id, VALUES)
    for name in ("a", "b"):
        write_predictions(tmp_path / name, predictions)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(read_predictions(tmp_path / "a", EXPECTED, "a").prediction, VALUES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": np.where(VALUES == 4, np.nan, VALUES)}, "p.npz, prediction: 1 of 12 values are NaN .* trial 21, unit 5"),
        ({"prediction": VALUES.T.copy()}, r"p.npz, prediction: its shape is \(3, 4\). Its shape must be \(4, 3\)"),
        ({"prediction": VALUES.astype(np.int64)}, "its dtype is int64. Save float32"),
        ({"prediction": VALUES.astype(complex)}, "prediction: 320 bytes|its dtype is complex128"),
        ({"prediction": np.full((4, 3), None)}, "its dtype is object"),
        ({"trial_id": np.arange(4)}, "p.npz, trial_id: 4 unknown ids, the first is 0. The session's ids go from 20 to 23"),
        ({"trial_id": np.array([20, 21, 22, 22])}, "p.npz, trial_id: 1 ids are missing, the first is 23"),
        ({"unit_id": np.array([3, 5, 10])}, "p.npz, unit_id: 1 unknown ids, the first is 10"),
        ({"unit_id": np.array([3.0, 5.0, 9.0])}, "p.npz, unit_id: its dtype is float64. Save int64"),
        ({"unit_id": None}, "It must hold exactly the arrays prediction, trial_id, unit_id"),
        ({"extra": np.zeros(1)}, "It must hold exactly the arrays"),
    ],
)
def test_unusable(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = saved(tmp_path / "p.npz", **changes)
    with pytest.raises(SubmissionError, match=message):
        read_predictions(path, EXPECTED, "p.npz")


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    with pytest.raises(SubmissionError, match="no predictions for session static1-1-1"):
        read_predictions(path, EXPECTED, "p.npz")
    whole = saved(path).read_bytes()
    generator = np.random.default_rng(0)
    contents = [b"", b"x" * 100, pickle.dumps([1]), whole[:200], whole[100:]]
    # Damage anywhere gives our error, or leaves the arrays as they were announced, never another exception.
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(256)
        contents.append(bytes(damaged))
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            read = read_predictions(path, EXPECTED, "p.npz")
        except SubmissionError:
            refused += 1
        else:
            assert read.prediction.shape == (4, 3)
    assert refused > 250


@pytest.mark.parametrize("descr", ["('f4',)", "[]", "{}", "'M8[0ns]'", "'V99999999999'", "b'f4'", "('f4',10**99)"])
def test_descriptions_of_arrays_that_numpy_stumbles_over(tmp_path: Path, descr: str) -> None:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (4, 3)}}\n".encode()
    path = saved(tmp_path / "p.npz", prediction=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("prediction.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(48))
    with pytest.raises(SubmissionError, match=r"p.npz.*not a readable|its dtype is"):
        read_predictions(path, EXPECTED, "p.npz")


def test_compressions_that_numpy_does_not_write(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.npz", prediction=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("prediction.npy", bytes(128), zipfile.ZIP_LZMA)
    path.write_bytes(path.read_bytes().replace(b"\x5d\x00", b"\xff\xff"))
    with pytest.raises(SubmissionError, match="prediction: its compression is unknown"):
        read_predictions(path, EXPECTED, "p.npz")


def test_a_table_of_contents_of_many_names_is_not_read(tmp_path: Path) -> None:
    wanted = Expected("static1-1-1", np.arange(1000), np.arange(1000))
    path = tmp_path / "p.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"")
    entry, end = path.read_bytes()[31:-22], path.read_bytes()[-22:]
    path.write_bytes(entry * 100_000 + end[:12] + (len(entry) * 100_000).to_bytes(4, "little") + bytes(6))
    assert path.stat().st_size < wanted.largest_file
    with pytest.raises(SubmissionError, match="not a readable"):
        read_predictions(path, wanted, "p.npz")


def test_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**15, 2**13)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("trial_id", "unit_id", "prediction"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                entry.write(header.getvalue())
                for _ in range(16):
                    entry.write(bytes(2**20))
    assert path.stat().st_size < EXPECTED.largest_file
    with pytest.raises(SubmissionError, match=r"more than .* can take"):
        read_predictions(path, EXPECTED, "p.npz")
    # The same, lying about its size in the directory and in the array's header.
    small = io.BytesIO()
    np.lib.format.write_array_header_1_0(small, {"descr": "<f4", "fortran_order": False, "shape": (2**31, 2**31)})
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("trial_id", "unit_id", "prediction"):
            archive.writestr(f"{name}.npy", small.getvalue())
    with pytest.raises(SubmissionError, match=r"its dtype|its shape"):
        read_predictions(path, EXPECTED, "p.npz")


def test_files_go_through_the_same_checks_without_a_sandbox(sessions: list[StagedSession], staged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "submission"
    (folder / "mine").mkdir(parents=True)
    (folder / "submission.toml").write_text('name = "file"\npredictions = "mine"\n')
    for session in sessions:
        shape = (len(session.trial_id), session.data.description.neurons)
        predictions = Predictions(session.trial_id, session.data.description.unit_ids, np.full(shape, 0.5, np.float32))
        write_predictions(folder / "mine" / f"{session.data.description.name}.npz", predictions)
    out = tmp_path / "out"
    outcome = run_submission(folder, staged, "sensorium", 0, out, SMALL)
    assert outcome.status == "finished"
    assert outcome.tier == "none needed"
    assert sorted(path.name for path in (out / "predictions").iterdir()) == ["static1-1-1.npz", "static2-1-1.npz"]

    (folder / "mine" / "static2-1-1.npz").rename(folder / "mine" / "static2-1-2.npz")
    outcome = run_submission(folder, staged, "sensorium", 0, out, SMALL)
    assert outcome.failure is not None
    assert outcome.failure.problem == "no such session"
    assert outcome.failure.where == "mine/static2-1-2.npz"
    (folder / "mine" / "static2-1-2.npz").unlink()
    outcome = run_submission(folder, staged, "sensorium", 0, out, SMALL)
    assert outcome.failure is not None
    assert outcome.failure.problem == "no predictions for session static2-1-1"
    # The former attempt's predictions do not pass for this one's.
    assert not (out / "predictions").exists()
