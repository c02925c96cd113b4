"""Neuropil: what is smooth, and sizes in micrometres."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import ArrayMovie

from sensorium_pipeline.imaging.binned_movie import COARSENING, bin_movie, local_weights, measure_neuropil
from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.progress import silent


@pytest.mark.parametrize("length", [20, 100, 171])
def test_parabolas_pass_through_the_smooth_field_up_to_the_edges(length: int) -> None:
    first, weights = local_weights(length, 18.0)
    x = np.arange(length)
    degree = min(2, weights.shape[1] - 1)
    field = 3 + 0.2 * x - (0.01 * x**2 if degree == 2 else 0)
    squares = np.array([field[start : start + COARSENING].mean() for start in range(0, length, COARSENING)])
    found = (weights * squares[first[:, None] + np.arange(weights.shape[1])]).sum(1)
    # A square tells the mean of a parabola over its width, not its value in the middle.
    assert np.abs(found - field).max() < 0.1


def test_what_is_kept_of_neuropil_is_small_beside_the_movie(tmp_path: Path) -> None:
    """It grows with the plane and its bins; the blocks that use it do not."""
    movie = ArrayMovie(np.random.default_rng(0).normal(300, 20, (400, 160, 160)).astype(np.float32))
    binned = bin_movie(
        movie,
        frame_rate=10.0,
        flagged=np.zeros(400, bool),
        bin_duration=0.1,
        high_pass=60.0,
        path=tmp_path / "binned",
        threads=1,
        progress=silent,
    )
    assert binned is not None
    assert len(pickle.dumps(measure_neuropil(binned, 18.0))) < 0.05 * binned.path.stat().st_size


def test_sizes_follow_the_pixel_where_it_is_known() -> None:
    parameters = CellParameters()
    assert parameters.diameters(1.0) == parameters.soma
    assert parameters.areas(2.0)[1] == pytest.approx(parameters.areas(1.0)[1] / 4)
    assert parameters.diameters(None) == parameters.soma_pixels
    assert parameters.diameters(10.0)[0] == 2.0
