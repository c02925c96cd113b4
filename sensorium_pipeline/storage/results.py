"""Results keyed by their inputs: the first record wins, later attempts find it and use it."""

from typing import TypeVar

from pydantic import BaseModel

from sensorium_pipeline.storage.backend import MissingObjectError
from sensorium_pipeline.storage.series import open_envelope, seal_envelope
from sensorium_pipeline.storage.store import Store

T = TypeVar("T", bound=BaseModel)


def read_result(store: Store, key: str, kind: type[T]) -> T | None:
    """The record of this key, or None where no attempt has ended yet.

    Args:
        store: where.
        key: `digest_of` everything the result depends on; parts such as `scores/<digest>` are allowed.
        kind: model of the record.

    Raises:
        PlatformError: what is stored is not a record of this kind.
    """
    path = _path(key)
    try:
        payload = store.read(path)
    except MissingObjectError:
        return None
    return open_envelope(payload, kind, f"{store.url}/{path}")


def record_result(store: Store, key: str, record: T) -> T:
    """Record a result unless one is recorded already; return the record that is stored, which every attempt then uses."""
    if store.create(_path(key), seal_envelope(record)):
        return record
    winner = read_result(store, key, type(record))
    return record if winner is None else winner


def _path(key: str) -> str:
    return f"results/{key}/record.json"
