"""Progress of a task: an artifact in the Prefect interface, and the bar of the terminal where one watches."""

import time
from contextlib import suppress
from typing import cast
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from prefect.exceptions import PrefectException

from sensorium_pipeline.progress import Pace, Progress, ProgressCallback, silent

UPDATE_SECONDS = 2.0


class _Display:
    """Where this process shows progress beside Prefect's interface; the command line sets it."""

    show: ProgressCallback = staticmethod(silent)


display = _Display()


class TaskProgress:
    """Receives the reports of one task, in the task's own thread; their stages say what they are about."""

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._updated = 0.0
        self._pace = Pace()

    def __call__(self, progress: Progress) -> None:
        """Show one report; the interface is told at most every `UPDATE_SECONDS`."""
        display.show(progress)
        self._pace.see(progress)
        now = time.monotonic()
        if TaskRunContext.get() is None or (now - self._updated < UPDATE_SECONDS and progress.done < progress.total):
            return
        self._updated = now
        # A server that is being restarted must not cost the work that is reported.
        with suppress(HTTPError, PrefectException):
            self._tell(progress)

    def _tell(self, progress: Progress) -> None:
        percent = 100.0 * progress.done / max(progress.total, 1)
        text = self._pace.describe(progress)
        if self._artifact is None:
            self._artifact = cast(UUID, create_progress_artifact(progress=percent, description=text))
        else:
            update_progress_artifact(self._artifact, progress=percent, description=text)
