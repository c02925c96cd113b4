"""What may be shown of a submission's progress, and a stream cut into arbitrary pieces."""

import itertools
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sensorium_pipeline.errors import ResourceLimitError, SubmissionError
from sensorium_pipeline.progress import Progress, silent
from sensorium_pipeline.submissions import transfer
from sensorium_pipeline.submissions.transfer import ResultReader, ResultWriter


def sent(*actions: object) -> bytes:
    """The bytes that a writer sends."""
    read_end, write_end = os.pipe()
    writer = ResultWriter(write_end)
    received = bytearray()

    def drain() -> None:
        while data := os.read(read_end, 65536):
            received.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    for name, *arguments in actions:  # type: ignore[attr-defined]
        getattr(writer, name)(*arguments)
    os.close(write_end)
    thread.join()
    os.close(read_end)
    return bytes(received)


def test_any_cut_of_the_stream(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(5000)
    progress = Progress("training", 2, 2, "epoch 1: loss 1.31e+04, validation 0.0139, at most 40 s left")
    stream = sent(("started",), ("progress", progress), ("file", "state.npz", content), ("file", "predictions/a.npz", b"x"), ("done",))
    generator = np.random.default_rng(1)
    for attempt in range(20):
        shown: list[Progress] = []
        folder = tmp_path / str(attempt)
        folder.mkdir()
        reader = ResultReader(folder, {"state.npz": 5000, "predictions/a.npz": 10}, shown.append)
        cuts = sorted({0, len(stream), *generator.integers(0, len(stream), 40).tolist()})
        for start, stop in itertools.pairwise(cuts):
            reader.feed(stream[start:stop])
        assert reader.started
        assert reader.done
        assert shown == [progress]
        assert (folder / "state.npz").read_bytes() == content
        assert (folder / "predictions" / "a.npz").read_bytes() == b"x"


def test_files_too_large_or_twice(tmp_path: Path) -> None:
    with pytest.raises(ResourceLimitError, match=r"state.npz is empty, or larger than 10 bytes"):
        ResultReader(tmp_path, {"state.npz": 10}, silent).feed(sent(("file", "state.npz", bytes(11))))
    reader = ResultReader(tmp_path, {"state.npz": 10}, silent)
    reader.feed(sent(("file", "state.npz", b"first")))
    with pytest.raises(SubmissionError, match="a file that was not asked for"):
        reader.feed(sent(("file", "state.npz", b"second")))
    assert (tmp_path / "state.npz").read_bytes() == b"first"


@pytest.mark.parametrize("text", ["pixels 17 21", "loss 12345678901234567890", "loss 1\x1b[2J", "1 " * 40, "Loss of image"])
def test_other_text_is_not_shown(tmp_path: Path, text: str) -> None:
    shown: list[Progress] = []
    ResultReader(tmp_path, {}, shown.append).feed(sent(("progress", Progress(text, 1, 1, text))))
    assert shown == [Progress("working", 1, 1, "")]


def test_counts_that_no_message_can_hold_are_cut(tmp_path: Path) -> None:
    shown: list[Progress] = []
    reader = ResultReader(tmp_path, {}, shown.append)
    for done, total in ((10**300, 10**301), (-(10**30), -1), (7, 3), (np.int64(2), np.int64(3))):
        reader.feed(sent(("progress", Progress("epoch", done, total))))
    assert [(report.done, report.total) for report in shown] == [(2**53, 2**53), (0, 0), (3, 3), (2, 3)]


def test_stages_without_end_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SECONDS_BETWEEN_PROGRESS", 1e-9)
    shown: list[Progress] = []
    reader = ResultReader(tmp_path, {}, shown.append)
    for number in range(1000):
        reader.feed(sent(("progress", Progress(f"epoch {number}", 1, 2))))
    assert len(shown) == 1000
    assert len({report.stage for report in shown}) == 21


def test_reports_without_end_do_not_reach_whoever_shows_them(tmp_path: Path) -> None:
    shown: list[Progress] = []
    reader = ResultReader(tmp_path, {}, shown.append)
    stream = sent(*[("progress", Progress("epoch", 1, 1))] * 5000)
    started = time.monotonic()
    reader.feed(stream)
    assert 10 <= len(shown) <= 11 + 10 * (time.monotonic() - started)
