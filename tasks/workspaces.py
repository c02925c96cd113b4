"""Which workspace a task works on. Apart from Prefect, whose import takes a second: workers that only run sandboxes do without it."""

from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, open_workspace


def settings_for(root: str | None) -> Settings:
    """The environment's settings, with another root where one is named."""
    return Settings(root=root) if root else Settings()


def workspace_at(root: str | None) -> Workspace:
    """The workspace at a root, or the environment's."""
    return open_workspace(settings_for(root))
