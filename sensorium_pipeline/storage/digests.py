"""Content digests: sha256 over bytes, and over the one canonical JSON text of a record."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from sensorium_pipeline.errors import InputError

READ_BYTES = 8 * 2**20


def canonical_json(value: object) -> bytes:
    """The one JSON text of `value`: keys sorted, no spaces, UTF-8, numbers as Python prints them.

    Args:
        value: a pydantic model, or dictionaries, lists, strings, numbers and models in them.

    Raises:
        InputError: `value` holds something JSON does not know, such as NaN or an array.
    """
    try:
        plain = json.loads(value.model_dump_json()) if isinstance(value, BaseModel) else to_jsonable_python(value)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, PydanticSerializationError) as error:
        raise InputError(
            "the value cannot be written as JSON",
            where=type(value).__name__,
            advice=f"Use plain numbers, strings, lists and records ({error})",
        ) from error


def digest_of(value: object) -> str:
    """The sha256, as 64 hexadecimal digits, of the canonical JSON of a record or a JSON-like value."""
    return digest_of_bytes(canonical_json(value))


def digest_of_bytes(payload: bytes) -> str:
    """The sha256 of `payload`, as 64 hexadecimal digits."""
    return hashlib.sha256(payload).hexdigest()


def digest_of_file(path: Path) -> str:
    """The sha256 of a file of this machine, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
