"""What finds the cells of a plane: our own segmentation, or suite2p's in an environment of its own."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.cells import Cells, segment
from sensorium_pipeline.imaging.corrected_movie import CorrectedMovie
from sensorium_pipeline.imaging.parameters import SegmenterName
from sensorium_pipeline.imaging.suite2p_segmenter import open_suite2p
from sensorium_pipeline.progress import ProgressCallback
from sensorium_pipeline.settings import Settings


class Segmenter(Protocol):
    """Finds cells in a motion-corrected movie; the same cells in the same order from the same movie and parameters."""

    def __call__(
        self,
        movie: CorrectedMovie,
        *,
        frame_rate: float,
        flagged: NDArray[np.bool_],
        inside: NDArray[np.bool_],
        parameters: CellParameters,
        scratch: Path,
        pixel_size: float | None = None,
        progress: ProgressCallback = ...,
        threads: int = 1,
    ) -> Cells:
        """Find the cells.

        Args:
            movie: corrected frames on scratch disk.
            frame_rate: Hz.
            flagged: (frames,) frames to leave out.
            inside: (y, x) pixels that lay in the field in nearly every frame; no footprint reaches beyond them.
            parameters: of the segmentation, of which a segmenter uses those that it has a use for.
            scratch: folder in which nothing is left at the end.
            pixel_size: um; None where it is not known, and sizes count in pixels.
            progress: told of the stage "cells"; what it raises ends the search.
            threads: at work at a time; the result does not depend on it.
        """


def open_segmenter(name: SegmenterName) -> Segmenter:
    """The segmenter of a name.

    Raises:
        InputError: it needs an environment that is not there.
    """
    return open_suite2p(Settings().suite2p_python) if name == "suite2p" else segment
