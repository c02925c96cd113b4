"""The nightly flow: what is new in any release is evaluated, and the tables of each are published."""

from typing import Literal

from prefect import flow

from flows.evaluate_submissions import evaluate_submissions
from sensorium_pipeline.errors import PlatformError
from tasks.workspaces import workspace_at


@flow(name="evaluate-all-releases", flow_run_name="evaluate all releases")
def evaluate_all_releases(root: str | None = None, device_class: Literal["cpu", "cuda"] = "cpu") -> list[str]:
    """Evaluate one release after the other, and return their names; a failure in one holds up no other.

    Args:
        root: root URL of the workspace; the environment's where it is left out.
        device_class: what the workers compute on.
    """
    names = workspace_at(root).open.list("releases")
    ended = [(name, evaluate_submissions(name, root, device_class=device_class, return_state=True)) for name in names]
    if broken := [name for name, state in ended if not state.is_completed()]:
        raise PlatformError(
            "the evaluation of some releases failed", where=", ".join(broken), advice="Their runs of evaluate-submissions say why."
        )
    return names
