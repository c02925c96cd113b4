"""Numbered generations of records: `<name>/000042.json`, each made once, the highest is current, older ones stay."""

import re
import uuid
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.storage.digests import canonical_json
from sensorium_pipeline.storage.store import Store

T = TypeVar("T", bound=BaseModel)

_GENERATION = re.compile(r"(\d{6,})\.json")


class Envelope(BaseModel):
    """What is stored for a record: the record itself and a nonce.

    The nonce makes the bytes of every writer its own. So two writers with equal records do not both believe that they made
    the generation, and a writer whose answer was lost recognises its own object. It stands beside the record, which stays
    plain JSON, and is no part of any digest.
    """

    nonce: str
    record: dict[str, object]


def seal_envelope(record: BaseModel) -> bytes:
    """The bytes to store for `record`, with a fresh nonce.

    Raises:
        InputError: the record would not be read back as itself, such as a NaN in a field of a model without
            `ser_json_inf_nan="strings"`.
    """
    text = record.model_dump_json()
    try:
        type(record).model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            "the record does not survive being written as JSON",
            where=type(record).__name__,
            advice=f"Write None for what is not known, or configure the model with ser_json_inf_nan='strings' ({error})",
        ) from error
    return canonical_json({"nonce": uuid.uuid4().hex, "record": record})


def open_envelope(payload: bytes, kind: type[T], where: str) -> T:
    """The record in `payload`.

    Raises:
        PlatformError: the bytes are not such a record.
    """
    try:
        return kind.model_validate(Envelope.model_validate_json(payload).record)
    except ValidationError as error:
        raise PlatformError(
            f"the stored record is not a readable {kind.__name__}",
            where=where,
            advice=f"It was written by another version, or damaged ({error})",
        ) from error


class Series:
    """A series of records of one name in a store: pointers to what is current, or events.

    Args:
        store: where.
        name: prefix, such as `releases` or `rankings/sensorium/test`.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name

    def numbers(self) -> list[int]:
        """Numbers of all generations, ascending."""
        matches = (_GENERATION.fullmatch(entry) for entry in self.store.list(self.name))
        return sorted(int(match[1]) for match in matches if match)

    def append(self, record: BaseModel) -> int:
        """Make the next generation and return its number (the first is 1); where another writer takes a number, try the next.

        Raises:
            InputError: the record cannot be written as JSON.
            PlatformError: the store cannot be reached; whether the record was appended is then unknown.
        """
        number = max(self.numbers(), default=0) + 1
        while not self.create(number, record):
            number += 1
        return number

    def create(self, number: int, record: BaseModel) -> bool:
        """Make generation `number`; false where another writer has made it."""
        return self.store.create(self._path(number), seal_envelope(record))

    def latest(self, kind: type[T]) -> tuple[int, T] | None:
        """Number and record of the current generation, or None where there is none yet."""
        numbers = self.numbers()
        return (numbers[-1], self.read(numbers[-1], kind)) if numbers else None

    def all(self, kind: type[T]) -> list[tuple[int, T]]:
        """Numbers and records of all generations, ascending."""
        return [(number, self.read(number, kind)) for number in self.numbers()]

    def read(self, number: int, kind: type[T]) -> T:
        """The record of one generation.

        Raises:
            MissingObjectError: there is no such generation.
            PlatformError: it is not a record of this kind.
        """
        path = self._path(number)
        return open_envelope(self.store.read(path), kind, f"{self.store.url}/{path}")

    def _path(self, number: int) -> str:
        if number < 1:
            raise InputError(f"generation {number} cannot exist", where=self.name, advice="The first generation is 1")
        return f"{self.name}/{number:06d}.json"
