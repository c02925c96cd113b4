"""`sensorium check`: the server's own validation, and a smoke run in the same sandbox on a small public slice."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sensorium_pipeline.progress import ProgressCallback, silent
from sensorium_pipeline.submissions.package import Submission, load_submission
from sensorium_pipeline.submissions.run import RunOutcome, run_submission
from sensorium_pipeline.submissions.sandbox import Limits
from sensorium_pipeline.submissions.staging import load_staged

SMOKE_LIMITS = Limits(wall_seconds=600.0)


@dataclass(frozen=True)
class CheckReport:
    """What a check found: the submission as understood, and how the smoke run ended (None: there was no slice to run on)."""

    submission: Submission
    run: RunOutcome | None

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against submitting it."""
        return self.run is None or self.run.status == "finished"


def check_submission(folder: Path, staged_slice: Path | None, progress: ProgressCallback = silent) -> CheckReport:
    """Check a submission as the server will.

    Args:
        folder: the submission.
        staged_slice: a small public slice, staged; None checks the files alone.
        progress: of the smoke run.

    Raises:
        SubmissionError: the files are not valid.
        IsolationError: there is a slice, but this machine cannot isolate code.
    """
    submission = load_submission(folder)
    if staged_slice is None:
        return CheckReport(submission, None)
    track = load_staged(staged_slice).track
    with tempfile.TemporaryDirectory(prefix="sensorium-check-") as out:
        run = run_submission(folder, staged_slice, track, submission.seeds[0], Path(out), SMOKE_LIMITS, progress)
    return CheckReport(submission, run)
