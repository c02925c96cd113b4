"""Chunks and shards of the arrays that the pipeline keeps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium_pipeline.storage.encodings import CHUNK_BYTES, SHARD_BYTES, choose_layout


@pytest.mark.parametrize(
    ("dims", "shape", "dtype", "chunks", "shards"),
    [
        (("time", "plane", "y", "x"), (9000, 3, 512, 512), "i2", (32, 1, 256, 256), (256, 1, 512, 512)),
        (("trial", "neuron"), (5000, 8000), "f4", (256, 1024), (1024, 8192)),
        (("neuron", "time"), (8000, 72000), "f4", (64, 4096), (64, 73728)),
        (("image_id", "y", "x"), (5100, 144, 256), "u1", (80, 144, 256), (880, 144, 256)),
        (("neuron",), (800,), "f8", (800,), None),
        ((), (), "f8", (), None),
        (("time",), (0,), "f8", (1,), None),
    ],
)
def test_layouts_of_the_arrays_of_a_session(
    dims: tuple[str, ...], shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...], shards: tuple[int, ...] | None
) -> None:
    layout = choose_layout(dims, shape, dtype)
    assert (layout.chunks, layout.shards) == (chunks, shards)


@given(
    st.lists(st.tuples(st.sampled_from(["plane", "trial", "neuron", "image_id", "z", "y"]), st.integers(0, 2_000_000)), max_size=4),
    st.sampled_from(["u1", "i2", "f4", "f8", "c16"]),
)
def test_chunks_are_bounded_and_shards_hold_whole_chunks(axes: list[tuple[str, int]], dtype: str) -> None:
    layout = choose_layout([name for name, _ in axes], [length for _, length in axes], dtype)
    width = np.dtype(dtype).itemsize
    assert math.prod(layout.chunks) * width <= CHUNK_BYTES
    assert math.prod(layout.shards or layout.chunks) * width <= SHARD_BYTES
    assert all(shard % chunk == 0 for shard, chunk in zip((layout.shards or layout.chunks), layout.chunks, strict=True))
    if layout.shards is None:
        assert all(chunk >= length for chunk, (_, length) in zip(layout.chunks, axes, strict=True))
