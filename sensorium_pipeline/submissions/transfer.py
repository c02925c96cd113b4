"""The one stream by which anything leaves a sandbox: progress, the learning curve, checkpoints, files, an error, the end.

A frame is a 4-byte length, a JSON header of that length, and for files and checkpoints their bytes. The writer runs inside beside the
submission's code, so the reader takes every byte as hostile: only expected files, of expected size at most, and text cut short.
"""

import json
import math
import os
import re
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sensorium_pipeline.errors import ResourceLimitError, SubmissionError
from sensorium_pipeline.progress import Progress, ProgressCallback

LENGTH = struct.Struct("<I")
LARGEST_HEADER = 16384
LARGEST_MESSAGE = 400
MOST_FRAMES = 100_000
MOST_EPOCHS = 10_000
ARRIVING = "checkpoint.arriving"
SECONDS_BETWEEN_PROGRESS = 0.1
REPORTS_AT_ONCE = 10
MOST_STAGES = 20
LARGEST_COUNT = 2**53
"""Dask's messages hold no number of more than 64 bits; a worker that sends one dies, and all runs on it."""
# Progress is shown outside, so it is held to these words and a few numbers: "epoch 3: loss 1.25, validation 0.31".
WORD = re.compile(
    "a|about|at|batch|batches|best|correlation|epoch|epochs|fit|fold|h|images|layer|learning|left|loss|m|mean|member|min|minutes|model|most|"
    "neurons|of|predicting|preparing|rate|s|score|seconds|seed|session|sessions|stage|step|steps|train|training|trial|trials|validation"
)
NUMBER = re.compile(r"[+-]?[0-9]{1,9}([.][0-9]{1,6})?(e[+-]?[0-9]{1,2})?%?")
MOST_WORDS = 16


@dataclass(frozen=True)
class ReportedError:
    """What the submission's own code raised: type, message, its last own line, and the system's error number where there is one."""

    kind: str
    message: str
    place: str
    number: int | None
    advice: str


class Epoch(NamedTuple):
    """One point of a learning curve, as the submission says: number from 1, loss and validation score (None: not a number)."""

    number: int
    loss: float | None
    validation: float | None


@dataclass(frozen=True)
class CheckpointRules:
    """What the reader does with checkpoints.

    Attributes:
        keep: called with each one, a file that is gone when it returns; its bytes are opaque to this side.
        largest: bytes of one.
        seconds_between: one that comes sooner after the last that was kept is dropped.
    """

    keep: Callable[[Path], None]
    largest: int
    seconds_between: float


class ResultWriter:
    """The end inside the sandbox."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._owner = os.getpid()
        self._last_progress = 0.0

    def started(self) -> None:
        """The sandbox stands, and the submission's code has not run yet: from here on a crash is the submission's."""
        self._send({"kind": "started"})

    def progress(self, progress: Progress) -> None:
        """Report progress; more than ten reports a second are dropped, except the last of a stage."""
        now = time.monotonic()
        if now - self._last_progress >= SECONDS_BETWEEN_PROGRESS or progress.done >= progress.total:
            self._last_progress = now
            # A submission may count with numpy's numbers, which json does not know.
            header = {"stage": progress.stage[:64], "done": int(progress.done), "total": int(progress.total)}
            self._send({"kind": "progress", **header, "detail": progress.detail[:128]})

    def epoch(self, number: int, loss: float, validation: float) -> None:
        """Report a point of the learning curve."""
        self._send({"kind": "epoch", "number": int(number), "loss": float(loss), "validation": float(validation)})

    def checkpoint(self, content: bytes | memoryview) -> None:
        """Send a checkpoint."""
        self._send({"kind": "checkpoint", "size": len(content)}, content)

    def file(self, name: str, content: bytes | memoryview) -> None:
        """Send a whole file."""
        self._send({"kind": "file", "name": name, "size": len(content)}, content)

    def error(self, error: ReportedError) -> None:
        """Report why the submission failed."""
        self._send({**vars(error), "error": error.kind, "kind": "error"})

    def done(self) -> None:
        """Everything has been sent."""
        self._send({"kind": "done"})

    def _send(self, header: Mapping[str, Any], content: bytes | memoryview = b"") -> None:
        if os.getpid() != self._owner:
            # A process that the submission forked; it must not write into the middle of ours.
            return
        encoded = json.dumps(header).encode()
        for part in (LENGTH.pack(len(encoded)) + encoded, content):
            view = memoryview(part)
            while view:
                view = view[os.write(self._descriptor, view) :]


class ResultReader:
    """The trusted end: feed it pieces of the stream; files appear in `folder` under their expected names.

    Args:
        folder: of the host, private to this run.
        files: expected names -> largest size in bytes.
        progress: called ten times a second on average, at most.
        checkpoints: what to do with checkpoints; left out, there must be none.
    """

    def __init__(
        self, folder: Path, files: Mapping[str, int], progress: ProgressCallback, checkpoints: CheckpointRules | None = None
    ) -> None:
        self._folder, self._files, self._progress, self._checkpoints = folder, files, progress, checkpoints
        self._buffer = bytearray()
        self._open: BinaryIO | None = None
        self._arriving: Path | None = None  # a checkpoint
        self._missing_bytes = 0
        self._frames = 0
        self._last_progress = -math.inf
        self._reports_left = 0.0
        self._stages: set[str] = set()
        self._last_checkpoint = -math.inf
        self._epochs: dict[int, Epoch] = {}
        self.received: set[str] = set()
        self.error: ReportedError | None = None
        self.started = False
        self.done = False

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream.

        Raises:
            SubmissionError: the stream is not what the runner writes.
            ResourceLimitError: a file is too large.
        """
        self._buffer += data
        while self._buffer:
            if self._open is not None:
                piece = self._buffer[: self._missing_bytes]
                self._open.write(piece)
                del self._buffer[: len(piece)]
                self._missing_bytes -= len(piece)
                if self._missing_bytes:
                    return
                self.close()
                self._keep_checkpoint()
            elif len(self._buffer) < LENGTH.size:
                return
            else:
                (length,) = LENGTH.unpack_from(self._buffer)
                if length > LARGEST_HEADER:
                    raise _broken("a header is too long")
                if len(self._buffer) < LENGTH.size + length:
                    return
                header = bytes(self._buffer[LENGTH.size : LENGTH.size + length])
                del self._buffer[: LENGTH.size + length]
                self._frame(header)

    def close(self) -> None:
        """Close a file that is still open."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _frame(self, encoded: bytes) -> None:
        self._frames += 1
        if self.done or self._frames > MOST_FRAMES:
            raise _broken("it goes on after its end")
        try:
            header = json.loads(encoded)
            kind = header["kind"]
            if kind == "started":
                self.started = True
            elif kind == "done":
                self.done = True
            elif kind == "error":
                self.error = ReportedError(
                    _text(header["error"], 80),
                    _text(header["message"], LARGEST_MESSAGE),
                    _text(header["place"], 120),
                    header["number"] if type(header["number"]) is int else None,
                    _text(header["advice"], LARGEST_MESSAGE),
                )
            elif kind == "progress":
                self._show(header)
            elif kind == "epoch":
                self._take_epoch(header)
            elif kind == "checkpoint":
                self._start_checkpoint(header["size"])
            elif kind == "file":
                self._start_file(header["name"], header["size"])
            else:
                raise _broken("an unknown kind of frame")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise _broken("a header is not what was agreed") from error

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The learning curve; of two points of one epoch the later."""
        return tuple(self._epochs[number] for number in sorted(self._epochs))

    def _take_epoch(self, header: Mapping[str, Any]) -> None:
        number = header["number"]
        if type(number) is not int or not 0 < number <= MOST_EPOCHS:
            raise _broken("an epoch of no usable number")
        self._epochs[number] = Epoch(number, _finite(header["loss"]), _finite(header["validation"]))

    def _start_checkpoint(self, size: object) -> None:
        rules = self._checkpoints
        if rules is None:
            raise _broken("a checkpoint that was not asked for")
        if type(size) is not int or not 0 < size <= rules.largest:
            raise ResourceLimitError(
                f"a checkpoint is empty, or larger than {rules.largest} bytes", where="checkpoint", advice="Keep less in it"
            )
        if time.monotonic() - self._last_checkpoint < rules.seconds_between:
            # Nobody is hurt by one that is dropped, while storing one after the other would keep the store busy.
            self._open = Path(os.devnull).open("wb")  # noqa: SIM115
        else:
            self._arriving = self._folder / ARRIVING
            self._open = self._arriving.open("wb")
        self._missing_bytes = size

    def _keep_checkpoint(self) -> None:
        if self._arriving is not None and self._checkpoints is not None:
            self._checkpoints.keep(self._arriving)
            self._arriving.unlink()
            self._arriving, self._last_checkpoint = None, time.monotonic()

    def _start_file(self, name: object, size: object) -> None:
        if not isinstance(name, str) or name not in self._files or name in self.received:
            raise _broken("a file that was not asked for")
        if type(size) is not int or not 0 < size <= self._files[name]:
            raise ResourceLimitError(
                f"{name} is empty, or larger than {self._files[name]} bytes",
                where=name,
                advice="Keep less, predict only what was asked for",
            )
        self.received.add(name)
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._open = target.open("xb")
        self._missing_bytes = size

    def _show(self, header: Mapping[str, Any]) -> None:
        done, total = float(header["done"]), float(header["total"])
        if not (math.isfinite(done) and math.isfinite(total)):
            return
        now = time.monotonic()
        # Those that end a stage follow others closely, so some may come at once.
        earned = (now - self._last_progress) / SECONDS_BETWEEN_PROGRESS
        self._reports_left, self._last_progress = min(self._reports_left + earned, REPORTS_AT_ONCE), now
        if self._reports_left < 1:
            return
        self._reports_left -= 1
        total = min(max(total, 0), LARGEST_COUNT)
        stage = _plain(str(header["stage"]))
        if len(self._stages) < MOST_STAGES:
            self._stages.add(stage)
        # Each has a bar of its own.
        shown = stage if stage and stage in self._stages else "working"
        self._progress(Progress(shown, int(min(max(done, 0), total)), int(total), _plain(str(header["detail"]))))


def _plain(text: str) -> str:
    """The text if it is made of known words and numbers, else nothing: a submission has no say in what is shown."""
    words = re.split(r"[ ,:;/()=]+", text.strip())
    plain = len(words) <= MOST_WORDS and all(WORD.fullmatch(word) or NUMBER.fullmatch(word) for word in words if word)
    return text.strip() if plain else ""


def _finite(value: object) -> float | None:
    number = float(value)  # type: ignore[arg-type]  # what is no number is refused by the caller
    return number if math.isfinite(number) else None


def _text(value: object, longest: int) -> str:
    """Printable text of bounded length."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value)[:longest]).strip()


def _broken(problem: str) -> SubmissionError:
    return SubmissionError(
        f"the stream of results is broken: {problem}", where="sandbox", advice="Leave descriptor 3 to the runner; return predictions"
    )
