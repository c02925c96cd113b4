"""Writing xarray trees as zarr v3: sharded, compressed, with dimension names and consolidated metadata, the same bytes each time.

The arrays are made directly with zarr, shard by shard: xarray alone would load a lazy variable wholly before writing it. What
results is what xarray reads: dimension names of zarr v3, and the group attribute `coordinates` for coordinates that are not
dimensions.
"""

import itertools
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
import zarr
from numpy.typing import DTypeLike, NDArray
from pydantic_core import PydanticSerializationError, to_jsonable_python
from zarr.abc.store import Store as ZarrStore
from zarr.core.common import JSON
from zarr.errors import ContainsArrayError, GroupNotFoundError, ZarrUserWarning

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress, ProgressCallback
from sensorium_pipeline.storage.encodings import choose_layout, compressor

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def write_tree(store: ZarrStore, tree: xr.DataTree, progress: ProgressCallback) -> None:
    """Write every group of `tree`, in order of path, holding one shard of one variable in memory at a time."""
    nodes = sorted(tree.subtree_with_keys, key=lambda item: item[0])
    total = sum(variable.nbytes for _, node in nodes for variable in node.to_dataset(inherit=False).variables.values())
    done = 0
    for relative, node in nodes:
        path = "" if relative == "." else relative
        dataset = node.to_dataset(inherit=False)
        attributes = dict(dataset.attrs)
        others = sorted(str(name) for name in dataset.coords if name not in dataset.dims)
        if others:
            attributes["coordinates"] = " ".join(others)
        for part in path.split("/") if path else []:
            _check_name(part, path)
        zarr.open_group(store, mode="a", path=path, zarr_format=3, attributes=_plain_attributes(attributes, path or "/"))
        for key, variable in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
            name = _check_name(str(key), path)
            where = f"{path}/{name}" if path else name
            array = _make_array(
                store, where, [str(dim) for dim in variable.dims], variable.shape, _stored_type(variable, where), variable.attrs
            )
            for block in _write_units(array):
                values = np.asarray(variable[block].values)
                array[block] = values.astype(object) if array.dtype.kind in "OT" else values
                done += math.prod(part.stop - part.start for part in block) * variable.dtype.itemsize
                progress(Progress("write dataset", done, total, where))


def create_array(
    store: ZarrStore, path: str, dims: Sequence[str], shape: Sequence[int], dtype: DTypeLike, attributes: Mapping[str, object]
) -> zarr.Array:
    """Make one array, and the groups above it, without any element; see `StagedDataset.write_array`."""
    parts = path.split("/")
    for part in parts:
        _check_name(part, path)
    if not dims or len(dims) != len(shape):
        raise InputError(f"{len(dims)} dimension names for {len(shape)} lengths", where=path, advice="Name every dimension once")
    kind = np.dtype(dtype)
    if kind.kind not in "biufc":
        raise InputError(f"elements of type {kind} cannot be written in blocks", where=path, advice="Use numbers or booleans")
    for depth in range(len(parts)):
        zarr.open_group(store, mode="a", path="/".join(parts[:depth]), zarr_format=3)
    return _make_array(store, path, dims, shape, kind.newbyteorder("<"), attributes)


def fill_array(array: zarr.Array, blocks: Iterable[NDArray[np.generic]], path: str, progress: ProgressCallback) -> None:
    """Write consecutive blocks along the first dimension, whole shards at a time; see `StagedDataset.write_array`."""
    length = array.shape[0]
    start = 0
    for slab in _regrouped(blocks, (array.shards or array.chunks)[0], array.shape[1:], path):
        stop = start + len(slab)
        if stop > length:
            raise InputError(f"the blocks hold more than the {length} announced", where=path, advice="Check the first dimension")
        array[start:stop] = slab
        start = stop
        progress(Progress("write dataset", start, length, path))
    if start != length:
        raise InputError(f"the blocks hold {start} of the {length} announced", where=path, advice="Check the first dimension")


def consolidate(store: ZarrStore, url: str) -> None:
    """Gather the metadata of all groups and arrays in the root's, so that opening costs one request.

    Raises:
        InputError: there is no root group.
    """
    try:
        with warnings.catch_warnings():
            # zarr warns that consolidated metadata are not in the standard yet; every reader that matters knows them.
            warnings.simplefilter("ignore", ZarrUserWarning)
            zarr.consolidate_metadata(store, zarr_format=3)
    except (GroupNotFoundError, FileNotFoundError, ValueError) as error:
        raise InputError(
            "there is no zarr group at the root of this dataset", where=url, advice="Write a tree or an array first"
        ) from error


def _make_array(
    store: ZarrStore,
    path: str,
    dims: Sequence[str],
    shape: Sequence[int],
    dtype: np.dtype[np.generic] | str,
    attributes: Mapping[object, object] | Mapping[str, object],
) -> zarr.Array:
    layout = choose_layout(dims, shape, "O" if dtype == "string" else dtype)
    text = dtype == "string"
    try:
        return zarr.create_array(
            store,
            name=path,
            shape=tuple(shape),
            dtype=dtype,
            chunks=layout.chunks,
            shards=layout.shards,
            compressors=compressor("O" if text else dtype),
            # What was never written must not look like a measurement.
            fill_value=np.nan if not text and np.dtype(dtype).kind == "f" else None,
            attributes=_plain_attributes(attributes, path),
            dimension_names=list(dims),
            zarr_format=3,
        )
    except ContainsArrayError as error:
        raise InputError("the array was written before", where=path, advice="Write every array of a dataset once") from error


def _write_units(array: zarr.Array) -> Iterator[tuple[slice, ...]]:
    if 0 in array.shape:
        return
    steps = array.shards or array.chunks
    ranges = [
        [slice(start, min(start + step, length)) for start in range(0, length, step)]
        for step, length in zip(steps, array.shape, strict=True)
    ]
    yield from itertools.product(*ranges)


def _regrouped(blocks: Iterable[NDArray[np.generic]], unit: int, rest: tuple[int, ...], path: str) -> Iterator[NDArray[np.generic]]:
    buffer: NDArray[np.generic] | None = None
    length = 0
    for block in blocks:
        if block.ndim == 0 or block.shape[1:] != rest:
            raise InputError(f"a block has shape {block.shape}", where=path, advice=f"It has to be (any, {', '.join(map(str, rest))})")
        if buffer is None:
            buffer = np.empty((unit, *rest), dtype=block.dtype)
        start = 0
        while start < len(block):
            # A block may be a memory map of everything: it is taken in pieces.
            piece = block[start : start + unit - length]
            buffer[length : length + len(piece)] = piece
            start += len(piece)
            length += len(piece)
            if length == unit:
                yield buffer
                length = 0
    if buffer is not None and length:
        yield buffer[:length]


def _stored_type(variable: xr.Variable, where: str) -> np.dtype[np.generic] | str:
    kind = variable.dtype
    if isinstance(kind, np.dtype) and kind.kind in "biufc":
        return kind.newbyteorder("<")
    if isinstance(kind, np.dtype) and (
        kind.kind in "UT" or (kind.kind == "O" and all(isinstance(item, str) for item in variable.values.flat))
    ):
        return "string"
    raise InputError(
        f"values of type {kind} cannot be stored",
        where=where,
        advice="Use numbers, booleans or text; times are float seconds, with units in the attributes",
    )


def _plain_attributes(attributes: Mapping[object, object] | Mapping[str, object], where: str) -> dict[str, JSON]:
    try:
        plain = {str(key): _plain(value) for key, value in attributes.items()}
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError, PydanticSerializationError) as error:
        raise InputError(
            "the attributes cannot be written as JSON", where=where, advice=f"Use numbers, text and lists ({error})"
        ) from error
    return dict(sorted(plain.items()))


def _plain(value: object) -> JSON:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else to_jsonable_python(value)


def _check_name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot be the name of a group or variable", where=where or "/", advice="Use letters, digits, _ and -")
    return name
