"""How a run ended, in the taxonomy's terms: whose fault it was, and which words of that may be shown to whom.

The class of an error comes from what is certain (the kernel's counters, the clock, our own reader of the result stream) before what the
submission reports of itself.
"""

import errno
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from sensorium_pipeline.errors import InputError, PlatformError, ResourceLimitError, SubmissionError
from sensorium_pipeline.submissions.package import MOST_SOURCE_BYTES, submission_files
from sensorium_pipeline.submissions.sandbox import Limits, Outcome
from sensorium_pipeline.submissions.transfer import Epoch, ReportedError, ResultReader

NO_THREAD = "can't start new thread"
"""What Python says where the kernel refuses one."""
# What surprises those who have run their code on their own machine alone.
NO_NETWORK = "There is no network in the sandbox; bring weights and data along"
ADVICE = {
    "ModuleNotFoundError": "The environment is the platform's; bring Python along as files beside submission.toml",
    "ConnectionError": NO_NETWORK,
    "URLError": NO_NETWORK,
    "gaierror": NO_NETWORK,
}
# What may be said of predictions that a hostile submission could have made: these words of ours, and counts.
PLAIN_PROBLEM = re.compile(r"\d+ of \d+ values are NaN or infinite|no predictions for session [\w.-]+")


class Failure(BaseModel):
    """Why a run failed, by whose fault.

    `own_words` says that problem or advice hold words from inside the sandbox: where hidden tiers were in reach, they could carry them out.
    """

    error: Literal["SubmissionError", "ResourceLimitError"]
    fault: str
    problem: str
    where: str
    advice: str
    own_words: bool = False

    def raise_it(self) -> None:
        """Raise the error that this describes."""
        kind = SubmissionError if self.error == "SubmissionError" else ResourceLimitError
        raise kind(self.problem, where=self.where, advice=self.advice)


class RunOutcome(BaseModel):
    """How one run of a submission ended.

    Attributes:
        status: "finished" (checked predictions of every session lie in `out/predictions/<session>.npz`), "failed" or "stopped".
        trained: whether `out/state.npz` holds a trained state.
        tier: of isolation, and whether memory was only watched; "none needed" for a predictions file.
        wall_seconds: from start to end of the sandbox. It holds its device as long, so these are its device-seconds, too.
        peak_memory_bytes: of all its processes together; where there is no control group, as seen ten times a second.
        energy_joules: of its GPU while it ran, where that can be read and nothing else ran on it.
        epochs: the learning curve, on visible tiers and as the submission says.
        resumed: whether it went on from a checkpoint of an interrupted run.
    """

    status: Literal["finished", "failed", "stopped"]
    failure: Failure | None = None
    sessions: list[str] = []
    trained: bool = False
    seed: int
    tier: str
    device: str = "cpu"
    wall_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    energy_joules: float | None = None
    epochs: tuple[Epoch, ...] = ()
    resumed: bool = False


def why_it_failed(outcome: Outcome, reader: ResultReader, limits: Limits) -> SubmissionError | ResourceLimitError | None:
    """Why a run failed, from what is certain to what is only reported; None when it did not (or was stopped)."""
    where = "sandbox"
    memory = ResourceLimitError(
        f"out of memory: more than {limits.memory_bytes // 1024**2} MB", where=where, advice="Use smaller batches or a smaller model"
    )
    processes = ResourceLimitError(
        f"too many processes: more than {limits.processes}", where=where, advice="Start fewer workers or threads"
    )
    if outcome.status == "timeout":
        advice = "Train for less time, and check that nothing waits for ever"
        return ResourceLimitError(f"out of time: longer than {limits.wall_seconds:.0f} s", where=where, advice=advice)
    if outcome.status == "memory":
        return memory
    if outcome.status == "console":
        return ResourceLimitError(f"more than {limits.console_bytes // 1024**2} MB of printed text", where=where, advice="Print less")
    if outcome.status == "stopped" or (outcome.status == "exited" and outcome.exit_code == 0 and reader.done):
        return None
    if outcome.refused_forks:
        return processes
    if outcome.refusal is not None:
        return outcome.refusal
    reported = reader.error
    if reported is None:
        if not reader.started:
            # Nothing of the submission has run, so these are the platform's own words.
            raise PlatformError(f"the sandbox did not start: {outcome.console[:300].decode(errors='replace').strip()}", where=where)
        return SubmissionError(
            f"its process ended by itself with exit code {outcome.exit_code} before the predictions were sent",
            where=where,
            advice="It crashed in native code, or ended itself; `sensorium check` runs it the same way on your machine",
        )
    if reported.kind == "MemoryError":
        return memory
    if reported.number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceLimitError(
            f"out of disk: more than {limits.disk_bytes // 1024**2} MB of temporary files",
            where=reported.place or where,
            advice="Keep less in /tmp",
        )
    if (reported.kind == "BlockingIOError" and reported.number == errno.EAGAIN) or reported.message == NO_THREAD:
        return processes
    return as_reported(reported)


def as_reported(reported: ReportedError) -> SubmissionError:
    """An error in the words of the submission; one of our own classes says itself what happened to which file."""
    ours = any(reported.kind == kind.__name__ for kind in (InputError, SubmissionError, ResourceLimitError))
    words = reported.message if ours and reported.message else f"{reported.kind}: {reported.message}".rstrip(": ")
    where = reported.place or ("" if ours else "sandbox")
    usual = "Write to /tmp; all else is read-only" if reported.number == errno.EROFS else ADVICE.get(reported.kind, "")
    return SubmissionError(words, where=where, advice=reported.advice or usual)


def describe_failure(error: SubmissionError | ResourceLimitError, *, own_words: bool = False) -> Failure:
    """What is recorded of an error."""
    kind: Literal["SubmissionError", "ResourceLimitError"]
    kind = "ResourceLimitError" if isinstance(error, ResourceLimitError) else "SubmissionError"
    return Failure(error=kind, fault=error.fault, problem=error.problem, where=error.where, advice=error.advice, own_words=own_words)


def failed_before(error: SubmissionError, seed: int, tier: str) -> RunOutcome:
    """The outcome where nothing ran."""
    return RunOutcome(status="failed", failure=describe_failure(error), seed=seed, tier=tier)


def true_place(place: str, folder: Path) -> str:
    """The place of an error as far as there is one in the submission's own files: inside, any text can be made to look like one."""
    found = re.fullmatch(r"(.+), line (\d+), in (.+)", place)
    status = submission_files(folder).get(found[1]) if found is not None else None
    # Weights of a gigabyte can be named as well, and would be read here.
    if found is None or status is None or not found[1].endswith(".py") or status.st_size > MOST_SOURCE_BYTES:
        return ""
    lines = (folder / found[1]).read_text(errors="replace").splitlines()
    if not 0 < int(found[2]) <= len(lines):
        return ""
    known = any(re.search(rf"\bdef {re.escape(found[3])}\b", line) for line in lines)
    return place if known else f"{found[1]}, line {found[2]}"
