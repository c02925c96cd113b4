"""The part of the leak audit that looks at files: their names, the metadata documents inside, and the pointers.

A reader such as xarray shows what it understands; a leak may stand where it does not look. So every file of the open part has to have a
place in the allow-list, and every key of every metadata document is accounted for.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sensorium_pipeline.recordings.raw_session import Role
from sensorium_pipeline.sessions import schema
from sensorium_pipeline.sessions.records import PublishedSession
from sensorium_pipeline.sessions.schema import ReleaseRule
from sensorium_pipeline.storage import Store, list_files, read_file

METADATA = "zarr.json"
GROUP_KEYS = {"attributes", "zarr_format", "node_type", "consolidated_metadata"}
ARRAY_KEYS = {
    "attributes",
    "zarr_format",
    "node_type",
    "shape",
    "data_type",
    "chunk_grid",
    "chunk_key_encoding",
    "fill_value",
    "codecs",
    "dimension_names",
    "storage_transformers",
}

Problem = tuple[str, str]  # where, what


class _RootAttributes(BaseModel):
    """The root attributes of an open part: these keys, and values too short to carry anything else."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: int
    part: str = Field(pattern="^open$")
    session: str = Field(pattern=r"^\d+-\d+-\d+$")
    animal: int
    role: Role
    track: str = Field(pattern=r"^(sensorium\+?)?$")
    area: str = Field(max_length=32)
    indicator: str = Field(max_length=32)
    code_version: str = Field(max_length=64)
    lock_digest: str = Field(max_length=64)
    response_window: list[float] = Field(min_length=2, max_length=2)


def file_findings(store: Store, session: PublishedSession, rule: ReleaseRule) -> Iterator[Problem]:
    """Files of the open part that have no place in the allow-list, and what their metadata say beyond it."""
    fields = {field.path: field for field in rule.fields}
    groups = {field.group for field in rule.fields}
    documents: dict[str, dict[str, Any]] = {}
    chunks: list[tuple[str, str]] = []
    for entry in list_files(store, session.open_digest):
        folder, _, name = entry.path.rpartition("/")
        array = next((path for path in fields if entry.path.startswith(f"{path}/")), None)
        if name == METADATA and (folder in fields or folder in groups or not folder):
            try:
                documents[folder] = TypeAdapter(dict[str, Any]).validate_python(
                    json.loads(read_file(store, session.open_digest, entry.path))
                )
            except (ValueError, ValidationError):
                yield entry.path, "is not a metadata document"
        elif array is not None and re.fullmatch(r"c(/\d+)*", entry.path.removeprefix(f"{array}/")):
            chunks.append((array, entry.path))
        else:
            yield entry.path, "is not on the allow-list"
    for folder, document in sorted(documents.items()):
        yield from _document(folder, document, fields)
    yield from _root(documents.get("", {}), session)
    copies = (documents.get("", {}).get("consolidated_metadata") or {}).get("metadata", {})
    for folder, copy in sorted(copies.items()):
        # An empty consolidated part stands in the copies of groups and in nothing else.
        if _plain(copy) != _plain(documents.get(folder, {})):
            yield f"{METADATA}, copy of {folder}", "differs from the document itself"
    for array, path in chunks:
        if not _inside(documents.get(array, {}), path.removeprefix(f"{array}/")):
            yield path, "lies outside the array"


def pointer_findings(store: Store, name: str) -> Iterator[Problem]:
    """Keys of the open store's pointers to a session that are not on the list, in every generation."""
    allowed = set(PublishedSession.model_fields)
    for entry in store.list(f"sessions/{name}"):
        path = f"sessions/{name}/{entry}"
        try:
            document = json.loads(store.read(path))
        except ValueError:
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("record"), dict):
            yield path, "is not a pointer"
        elif unexpected := (set(document) - {"nonce", "record"}) | (set(document["record"]) - allowed):
            yield path, f"holds {', '.join(sorted(unexpected))}, which is not on the allow-list"


def _document(folder: str, document: Mapping[str, Any], fields: Mapping[str, schema.Field]) -> Iterator[Problem]:
    where = f"{folder}/{METADATA}" if folder else METADATA
    keys = ARRAY_KEYS if folder in fields else GROUP_KEYS
    if unexpected := set(document) - keys:
        yield where, f"holds the keys {', '.join(sorted(unexpected))}, which are not on the allow-list"
    if document.get("storage_transformers"):
        yield where, "holds storage transformers"
    attributes = document.get("attributes", {})
    if folder in fields:
        field = fields[folder]
        if attributes != {"units": field.units, "long_name": field.long_name}:
            yield where, f"has attributes other than units and long_name of the schema: {', '.join(sorted(attributes))}"
        if tuple(document.get("dimension_names", ())) != field.dims:
            yield where, f"has the dimensions {document.get('dimension_names')}, the schema says {field.dims}"
        if document.get("data_type") not in ({"text": ("string",)}.get(field.dtype, (field.dtype,))):
            yield where, f"has the type {document.get('data_type')}, the schema says {field.dtype}"
        if document.get("fill_value") not in ("NaN", 0, 0.0, ""):
            yield where, f"fills with {document.get('fill_value')}"
    elif folder:
        listed = str(attributes.get("coordinates", "")).split()
        if set(attributes) - {"coordinates"} or any(f"{folder}/{name}" not in fields for name in listed):
            yield where, f"has attributes that are not on the allow-list: {', '.join(sorted(attributes))}"


def _root(document: Mapping[str, Any], session: PublishedSession) -> Iterator[Problem]:
    try:
        attributes = _RootAttributes.model_validate(document.get("attributes", {}))
    except ValidationError as error:
        for problem in error.errors():
            yield f"{METADATA}, attribute {'.'.join(map(str, problem['loc']))}", f"is not as the allow-list says ({problem['msg']})"
        return
    expected = (session.name, session.animal, session.role, session.track or "")
    if (attributes.session, attributes.animal, attributes.role, attributes.track) != expected:
        yield METADATA, "is of another session, role or track than the pointer says"


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "consolidated_metadata"}


def _inside(document: Mapping[str, Any], key: str) -> bool:
    shape = document.get("shape", [])
    grid = document.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape", [])
    indices = [int(part) for part in key.split("/")[1:]]
    return len(indices) == len(shape) == len(grid) and all(
        index < max(1, math.ceil(length / step)) for index, length, step in zip(indices, shape, grid, strict=True)
    )
