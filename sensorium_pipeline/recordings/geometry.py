"""Where the pixels of a plane lie in the tissue."""

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def pixel_edge(sides: tuple[float, float]) -> float:
    """Edge of a square pixel of the same area as one with these sides (y, x)."""
    return sides[0] if sides[0] == sides[1] else math.sqrt(sides[0] * sides[1])


class PlaneGeometry(BaseModel):
    """A plane's place in the tissue, in micrometres.

    Attributes:
        depth: below the surface.
        pixel_size: edge of a pixel, (y, x).
        corner: (y, x) of the centre of the first pixel. It is (0, 0) for a recording of one field of view; where several fields were
            scanned, they share one frame of reference, whose zero is the centre of the microscope's field.
        rotation: degrees by which the field is turned, from the x axis to the y axis.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: Finite
    pixel_size: tuple[Size, Size]
    corner: tuple[Finite, Finite] = (0.0, 0.0)
    rotation: Finite = 0.0

    def positions(self, centroids: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Positions (neurons, 3) = x, y, depth of points (neurons, 2) = y, x in pixels, the first pixel's centre being (0, 0)."""
        y, x = (np.asarray(centroids[:, axis], np.float64) * self.pixel_size[axis] for axis in range(2))
        turn = math.radians(self.rotation)
        return np.column_stack(
            [
                self.corner[1] + math.cos(turn) * x - math.sin(turn) * y,
                self.corner[0] + math.sin(turn) * x + math.cos(turn) * y,
                np.full(len(x), self.depth),
            ]
        )
