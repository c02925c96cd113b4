"""Memory that is used again for block after block: a fresh large array costs a page fault for each of its pages."""

import math

import numpy as np
from numpy.typing import NDArray


class BlockMemory:
    """Room for the arrays of one block at a time, of one thread."""

    def __init__(self) -> None:
        self._rooms: list[NDArray[np.float32]] = []
        self._used = 0

    def start(self) -> None:
        """From here on the arrays given so far are used again."""
        self._used = 0

    def array(self, *shape: int) -> NDArray[np.float32]:
        """An array of any content, good until the next `start`."""
        size = math.prod(shape)
        if self._used == len(self._rooms):
            self._rooms.append(np.empty(0, np.float32))
        if self._rooms[self._used].size < size:
            self._rooms[self._used] = np.empty(size, np.float32)
        self._used += 1
        return self._rooms[self._used - 1][:size].reshape(shape)
