"""A workspace: four stores with credentials of their own, named by the settings."""

from dataclasses import dataclass

from sensorium_pipeline.settings import RootSettings, Settings
from sensorium_pipeline.storage.store import Store


@dataclass(frozen=True)
class Workspace:
    """Where everything that the pipeline keeps lies.

    Attributes:
        url: root URL that the settings name; a store may lie elsewhere.
        lab: recordings' products, full quality reports, run records: for lab engineers and ingestion.
        open: released sessions, releases, ranking publications: for everyone.
        sealed: hidden responses, and predictions and scores of tiers not yet opened: for the trusted scorer.
        inbox: submissions as sent: for organisers; each team writes its own.
    """

    url: str
    lab: Store
    open: Store
    sealed: Store
    inbox: Store


def open_workspace(settings: Settings) -> Workspace:
    """The workspace of `settings`. Nothing is read or made yet: a process may hold keys for some of the roots only.

    Raises:
        InputError: a root is not a folder or URL that can be used.
    """
    root = Store("root", _with_defaults(settings, RootSettings(url=settings.root)))

    def part(name: str, own: RootSettings) -> Store:
        return Store(name, _with_defaults(settings, own if own.url else own.model_copy(update={"url": f"{root.url}/{name}"})))

    return Workspace(
        root.url,
        lab=part("lab", settings.lab),
        open=part("open", settings.open),
        sealed=part("sealed", settings.sealed),
        inbox=part("inbox", settings.inbox),
    )


def _with_defaults(settings: Settings, root: RootSettings) -> RootSettings:
    own_keys = root.access_key is not None or root.secret_key is not None
    return RootSettings(
        url=root.url,
        endpoint_url=root.endpoint_url or settings.endpoint_url,
        # Keys come in pairs: half a pair of one root and half of another would only confuse.
        access_key=root.access_key if own_keys else settings.access_key,
        secret_key=root.secret_key if own_keys else settings.secret_key,
    )
