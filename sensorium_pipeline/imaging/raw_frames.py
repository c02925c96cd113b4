"""Frames of a raw movie as motion correction takes them: chunk by chunk, in one of two types."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.recordings.movie import Movie

Frames = NDArray[Any]


def native(frames: Frames) -> Frames:
    """Frames as int16 or float32, the two types that the compiled loops are made for."""
    if frames.dtype == np.int16 and frames.dtype.isnative:
        return np.ascontiguousarray(frames)
    return np.ascontiguousarray(frames, dtype=np.float32)


def chunks(movie: Movie, length: int) -> Iterator[tuple[int, Frames]]:
    """Chunks of `length` raw frames with their first frame's number; the next one is read while the last one is worked on."""
    with ThreadPoolExecutor(1) as reader:

        def read(start: int) -> Frames:
            return native(movie.read(start, min(start + length, movie.frames)))

        ahead = reader.submit(read, 0)
        for start in range(0, movie.frames, length):
            raw = ahead.result()
            if start + length < movie.frames:
                ahead = reader.submit(read, start + length)
            yield start, raw


def stored_type(sample: Frames) -> np.dtype[Any]:
    """Type of the corrected movie, given frames (n, y, x) of the raw one.

    int16 where the movie came as such and its noise hides the rounding (at most 2 % of the noise variance), else float32.
    """
    if sample.dtype != np.int16:
        return np.dtype("<f4")
    rough = np.diff(sample[: min(len(sample), 20)].astype(np.float32), axis=0) if len(sample) > 1 else np.zeros(1)
    return np.dtype("<i2") if rough.std() / np.sqrt(2) >= 2.0 else np.dtype("<f4")
