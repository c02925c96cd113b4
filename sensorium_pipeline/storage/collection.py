"""Garbage collection: data that no manifest names, left by writers that failed, were killed or found their content there already."""

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.storage.local_files import TEMPORARY
from sensorium_pipeline.storage.manifests import DATA, MANIFESTS, read_manifest
from sensorium_pipeline.storage.store import Store

# Longer than any dataset takes to be written: a younger prefix may belong to a writer that has not sealed it yet.
GRACE_PERIOD = timedelta(days=7)
# Of runs that are under way: kept by them, and removed at their end.
CHECKPOINTS = "checkpoints"
SHORTEST_GRACE_PERIOD = timedelta(hours=1)


class Garbage(BaseModel):
    """One prefix that nothing names: path in the store, bytes, last change."""

    path: str
    size: int
    modified: datetime


class CollectionReport(BaseModel):
    """What a collection removed, or on a dry run would remove, and which unnamed prefixes it left as too young."""

    dry_run: bool
    removed: list[Garbage]
    too_young: list[Garbage]

    @property
    def freed_bytes(self) -> int:
        """Bytes removed, or to be removed."""
        return sum(garbage.size for garbage in self.removed)


def collect_garbage(
    store: Store, *, dry_run: bool, grace_period: timedelta = GRACE_PERIOD, now: datetime | None = None
) -> CollectionReport:
    """Remove what no manifest of this store names and what has not changed for the grace period, checkpoints of abandoned runs too.

    Manifests, generations of series and results are never removed.

    Args:
        store: which store.
        dry_run: only report.
        grace_period: longer than any dataset takes to be written; at least an hour.
        now: time to compare with, with a time zone; left out, this moment.

    Raises:
        InputError: the grace period is too short.
        PlatformError: a manifest cannot be read; nothing is removed then, as it may name anything.
    """
    if grace_period < SHORTEST_GRACE_PERIOD:
        raise InputError(
            f"a grace period of {grace_period} would remove datasets that are being written",
            where=store.url,
            advice=f"Use at least {SHORTEST_GRACE_PERIOD}",
        )
    moment = now or datetime.now(UTC)
    # Data are listed before manifests are read: what is sealed in between is then found named.
    candidates = [found for prefix in (DATA, TEMPORARY, CHECKPOINTS) for found in _prefixes(store, prefix)]
    named = _named_prefixes(store)
    unnamed = [candidate for candidate in candidates if candidate.path not in named]
    old = [candidate for candidate in unnamed if moment - candidate.modified > grace_period]
    if not dry_run:
        for garbage in old:
            store.remove(garbage.path)
    return CollectionReport(dry_run=dry_run, removed=old, too_young=[candidate for candidate in unnamed if candidate not in old])


def _prefixes(store: Store, parent: str) -> list[Garbage]:
    found: dict[str, Garbage] = {}
    for entry in store.walk(parent):
        path = "/".join(entry.path.split("/")[:2])
        before = found.get(path)
        found[path] = Garbage(
            path=path,
            size=entry.size + (before.size if before else 0),
            modified=max(entry.modified, before.modified) if before else entry.modified,
        )
    return [found[path] for path in sorted(found)]


def _named_prefixes(store: Store) -> set[str]:
    named = set()
    for name in store.list(MANIFESTS):
        if not name.endswith(".json"):
            raise PlatformError("this is not a manifest", where=f"{store.url}/{MANIFESTS}/{name}", advice="Find out who wrote it")
        named.add(read_manifest(store, name.removesuffix(".json"))[0])
    return named
