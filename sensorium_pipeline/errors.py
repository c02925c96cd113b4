"""The error taxonomy: whose fault, what happened to which file or field, what to do, and whether a retry can help.

Everything that this package raises on purpose is a `SensoriumError`. The class says who must act; the three parts of the
message say what happened (`problem`), to which file or field (`where`) and what to do (`advice`).
"""

from typing import ClassVar, Literal

Fault = Literal["user", "participant", "limit", "organiser", "platform"]


class SensoriumError(Exception):
    """Base of the taxonomy; never raised itself.

    Args:
        problem: what happened, a short sentence; it is kept without a final stop.
        where: the file, field, session or submission it happened to.
        advice: what the one at fault should do next; it is kept with a final stop.
    """

    fault: ClassVar[Fault] = "platform"
    retry: ClassVar[bool] = False
    exit_code: ClassVar[int] = 2

    def __init__(self, problem: str, *, where: object = "", advice: str = "") -> None:
        self.problem = problem.rstrip(". ")
        self.where = str(where)
        self.advice = advice if not advice or advice.endswith((".", "!", "?")) else f"{advice}."
        super().__init__(self.problem, self.where, self.advice)

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{text}. {self.advice}" if self.advice else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors cross process borders on a Dask cluster.
        return (_rebuild, (type(self), self.problem, self.where, self.advice))


def _rebuild(kind: type[SensoriumError], problem: str, where: str, advice: str) -> SensoriumError:
    return kind(problem, where=where, advice=advice)


class InputError(SensoriumError):
    """The user's own input (a recording, a movie, an option, a path) cannot be used; exit code 1."""

    fault = "user"
    exit_code = 1


class QualityGateError(InputError):
    """A session was processed and measured, and a quality gate refuses to publish it."""


class SubmissionError(SensoriumError):
    """A submission is malformed, crashed or predicted something unusable: shown to its team, never retried."""

    fault = "participant"
    exit_code = 1


class ResourceLimitError(SensoriumError):
    """A submission ran out of time, memory, disk or processes: shown to its team, never retried."""

    fault = "limit"
    exit_code = 1


class IsolationError(SensoriumError):
    """This machine cannot isolate strangers' code, so it is refused here."""

    fault = "organiser"
    exit_code = 2


class OrganiserError(SensoriumError):
    """The release or the configuration of the benchmark is at fault, or a leak audit failed."""

    fault = "organiser"
    exit_code = 1


class PlatformError(SensoriumError):
    """The platform failed (a store, a worker, a network): retried, and nobody's quota is charged."""

    fault = "platform"
    retry = True
    exit_code = 2
