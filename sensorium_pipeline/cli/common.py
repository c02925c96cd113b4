"""What the commands share: options, the workspace, and flows run with progress in the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.progress import ProgressCallback
from sensorium_pipeline.settings import Settings

if TYPE_CHECKING:
    from sensorium_pipeline.storage import Workspace

Root = Annotated[
    str | None,
    typer.Option(help="Workspace: a folder or s3://bucket/prefix. [env: SENSORIUM_ROOT; default: workspace]", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
ReleaseName = Annotated[
    str | None, typer.Option("--release", help="Name of the release; the only one where it is left out.", show_default=False)
]


def settings_of(root: str | None) -> Settings:
    """Settings of this run; a local root is made absolute, since workers have folders of their own."""
    try:
        settings = Settings(root=root) if root else Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "SENSORIUM_" + "__".join(str(part) for part in first["loc"]).upper()
        raise InputError(first["msg"], where=name, advice="Correct the environment variable.") from error
    if "://" in settings.root:
        return settings
    return settings.model_copy(update={"root": str(Path(settings.root).expanduser().absolute())})


def workspace_of(root: str | None) -> "Workspace":
    """The workspace of this run."""
    from sensorium_pipeline.storage import open_workspace

    return open_workspace(settings_of(root))


@contextmanager
def flows_ready(settings: Settings) -> Iterator[ProgressCallback]:
    """A Prefect server to run flows against, and bars in the terminal for what they report.

    Raises:
        PlatformError: somebody cancelled the run of a flow.
    """
    from sensorium_pipeline.services import prefect_server
    from sensorium_pipeline.terminal import progress_bars

    with progress_bars() as show, prefect_server(settings, show, import_flows):
        from prefect.exceptions import CancelledRun

        from tasks.reporting import display

        display.show = show
        try:
            yield show
        except CancelledRun as error:
            raise PlatformError("the run was cancelled in Prefect", advice="What was finished is kept; run it again to go on.") from error


def import_flows() -> None:
    """Import what every flow needs; it takes as long as a Prefect server takes to start."""
    import flows.evaluate_submissions
    import flows.ingest_session  # noqa: F401
