"""`sensorium check`: the server's own validation, and smoke runs in the same sandbox on a small public slice.

Two runs, on a quarter of the slice and on the slice, tell what starting costs and what each trial costs, and so what the whole release
would: a straight line through two points, which is right as far as training takes as many epochs there.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.submissions.outcome import RunOutcome
from sensorium_pipeline.submissions.package import Submission, load_submission
from sensorium_pipeline.submissions.predictions import Expected, read_predictions
from sensorium_pipeline.submissions.run import run_submission
from sensorium_pipeline.submissions.sandbox import Limits
from sensorium_pipeline.submissions.staging import Staged, StagedSession, load_staged, stage_sessions
from sensorium_pipeline.training.data import SessionData

SMOKE_LIMITS = Limits(wall_seconds=600.0)
PARTS = 4
"""The first run is on this part of the slice."""


@dataclass(frozen=True)
class WholeRelease:
    """What is known of the release without reading its trials: how many are visible, and what predictions must cover."""

    visible_trials: int
    expected: tuple[Expected, ...]


@dataclass(frozen=True)
class Cost:
    """What a submission would take on a whole release, on this machine.

    Attributes:
        seconds: of one run.
        device_seconds: of the runs with all seeds, which hold one device each for as long as they last.
        memory_bytes: of one run; None where memory cannot be counted here.
        limit_seconds: a run that takes longer is ended.
    """

    seconds: float
    device_seconds: float
    memory_bytes: int | None
    limit_seconds: float


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        submission: as understood.
        run: how the smoke run ended; None where there was no slice to run on, or nothing to run.
        cost: on the whole release; None where nothing ran, or nothing is known of the release.
    """

    submission: Submission
    run: RunOutcome | None
    cost: Cost | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against submitting it."""
        return self.run is None or self.run.status == "finished"


def check_submission(
    folder: Path, staged_slice: Path | None, whole: WholeRelease | None = None, progress: ProgressCallback = silent
) -> CheckReport:
    """Check a submission as the server will.

    Args:
        folder: the submission.
        staged_slice: a small public slice, staged; None checks the files alone.
        whole: the release; None tells no cost, and checks no file of predictions against it.
        progress: of the smoke runs.

    Raises:
        SubmissionError: the files are not valid, or predictions do not cover the release.
        IsolationError: there is a slice, but this machine cannot isolate code.
    """
    submission = load_submission(folder)
    if submission.predictions is not None and whole is not None:
        for expected in whole.expected:
            name = f"{expected.session}.npz"
            read_predictions(folder / submission.predictions / name, expected, f"{submission.predictions}/{name}")
        return CheckReport(submission, None)
    if staged_slice is None:
        return CheckReport(submission, None)
    staged = load_staged(staged_slice)
    with tempfile.TemporaryDirectory(prefix="sensorium-check-") as area:

        def run(sessions: Path, out: str) -> RunOutcome:
            return run_submission(folder, sessions, staged.track, submission.seeds[0], Path(area, out), SMOKE_LIMITS, progress)

        if whole is None:
            return CheckReport(submission, run(staged_slice, "out"))
        part = [_first_part(session) for session in staged.sessions]
        stage_sessions(part, staged.track, Path(area, "part"))
        smaller = run(Path(area, "part"), "out-part")
        if smaller.status != "finished":
            return CheckReport(submission, smaller)
        larger = run(staged_slice, "out")
        if larger.status != "finished":
            return CheckReport(submission, larger)
    trials = (_visible(Staged(staged.track, tuple(part))), _visible(staged), whole.visible_trials)
    return CheckReport(submission, larger, estimated_cost(submission, smaller, larger, trials))


def _first_part(session: StagedSession) -> StagedSession:
    """The first trials of a staged session; one of each kind at least, and two to train on, so that they vary."""
    training, validation, inputs = session.data.training, session.data.validation, session.inputs
    small = SessionData(
        session.data.description,
        training[: max(len(training) // PARTS, min(2, len(training)))],
        validation[: max(len(validation) // PARTS, min(2, len(validation)))],
    )
    asked = max(len(inputs) // PARTS, min(1, len(inputs)))
    return StagedSession(small, inputs[:asked], np.asarray(session.trial_id[:asked]))


def _visible(staged: Staged) -> int:
    return sum(len(session.data.training) + len(session.data.validation) for session in staged.sessions)


def estimated_cost(submission: Submission, smaller: RunOutcome, larger: RunOutcome, trials: tuple[int, int, int]) -> Cost:
    """The cost on a whole release, from two runs and the visible trials of the first run, of the second, and of the release."""
    few, more, all_trials = trials

    def on_all(first: float, second: float) -> float:
        slope = (second - first) / (more - few) if more > few else 0.0
        return second + max(slope, 0.0) * max(all_trials - more, 0)

    seconds = on_all(smaller.wall_seconds, larger.wall_seconds)
    memory = None
    if smaller.peak_memory_bytes is not None and larger.peak_memory_bytes is not None:
        memory = round(on_all(smaller.peak_memory_bytes, larger.peak_memory_bytes))
    limit = Limits().wall_seconds
    if submission.resources.minutes is not None:
        limit = min(limit, submission.resources.minutes * 60)
    return Cost(seconds, seconds * len(submission.seeds), memory, limit)
