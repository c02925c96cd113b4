"""Segmentation against cells that are known to be there, and where there are none."""

from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, ArrayMovie, TruePlane, simulate_plane
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from sensorium_pipeline.imaging.binned_movie import MOST_BINS
from sensorium_pipeline.imaging.cell_block import ROUNDS, _cut_out, _joined, _refine
from sensorium_pipeline.imaging.cell_kernels import subtract
from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.cell_search import stacks_of
from sensorium_pipeline.imaging.cells import Cells, _at_once, _blocks, segment
from sensorium_pipeline.imaging.grown_cell import GrownCell, footprint_in


def find(
    movie: ArrayMovie, scratch: Path, *, flagged: np.ndarray | None = None, threads: int = 2, inside: np.ndarray | None = None
) -> Cells:
    return segment(
        movie,
        frame_rate=RATE,
        flagged=np.zeros(movie.frames, bool) if flagged is None else flagged,
        inside=np.ones((movie.height, movie.width), bool) if inside is None else inside,
        parameters=CellParameters(),
        scratch=scratch,
        threads=threads,
    )


def test_every_cell_is_found_once_and_nothing_else_is_kept(true_plane: TruePlane, tmp_path: Path) -> None:
    cells = find(true_plane.movie, tmp_path)
    matches = true_plane.matches(cells.neuron, cells.pixel, cells.weight)
    assert len(matches) == len(true_plane.footprints)
    assert len(set(matches.values())) == len(matches)
    assert cells.kept[list(matches.values())].all()
    assert cells.kept.sum() == len(matches)
    for cell, neuron in matches.items():
        footprint = true_plane.footprints[cell]
        centre = np.array([np.average(axis, weights=footprint) for axis in np.mgrid[: footprint.shape[0], : footprint.shape[1]]])
        assert np.abs(cells.centroids[neuron] - centre).max() < 1.5
    assert list(tmp_path.iterdir()) == []


def test_footprints_are_sorted_triples_of_norm_one(true_plane: TruePlane, tmp_path: Path) -> None:
    cells = find(true_plane.movie, tmp_path)
    assert (cells.neuron.dtype, cells.pixel.dtype, cells.weight.dtype) == (np.int32, np.int32, np.float32)
    order = np.lexsort([cells.pixel, cells.neuron])
    assert np.array_equal(order, np.arange(len(order)))
    assert cells.weight.min() > 0
    energy = np.bincount(cells.neuron, cells.weight.astype(float) ** 2, minlength=len(cells))
    assert np.allclose(energy, 1, atol=1e-4)
    assert (np.diff(cells.detection_snr) <= 0).all()
    assert [bool(reason) for reason in cells.reason] == (~cells.kept).tolist()


def test_same_bytes_again_and_with_any_number_of_threads(tmp_path: Path) -> None:
    plane = simulate_plane([(20, 20), (30, 76), (60, 110), (70, 75)], (90, 150), 500)
    first, second = find(plane.movie, tmp_path, threads=1), find(plane.movie, tmp_path, threads=4)
    for name in ("neuron", "pixel", "weight", "centroids", "detection_snr", "kept"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert first.reason == second.reason


def test_a_cell_on_the_border_of_two_blocks_is_found_once(tmp_path: Path) -> None:
    plane = simulate_plane([(30, 75), (60, 74.4), (75, 75.6), (30, 30)], (90, 150), 800)
    cells = find(plane.movie, tmp_path)
    assert len(plane.matches(cells.neuron, cells.pixel, cells.weight)) == 4
    assert cells.kept.sum() == 4


def test_masks_of_small_faint_cells_are_no_larger_than_the_cells(tmp_path: Path) -> None:
    """What quietens a faint footprint also blurs it, which for a cell of four pixels across would be as large as the cell."""
    generator = np.random.default_rng(4)
    centres = [(y + generator.random(), x + generator.random()) for y in range(12, 70, 14) for x in range(12, 70, 14)]
    rows, columns = np.mgrid[:78, :78]
    footprints = np.stack([np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 3.0) for y, x in centres])
    added = 35.0 * np.stack([np.convolve(row, np.exp(-np.arange(40) / 5))[:1200] for row in generator.poisson(0.02, (len(centres), 1200))])
    movie = ArrayMovie(generator.normal(300 + np.einsum("nt,nyx->tyx", added, footprints), 25).astype(np.int16))
    cells = find(movie, tmp_path)
    matches = TruePlane(movie, footprints, added, np.zeros(1200)).matches(cells.neuron, cells.pixel, cells.weight)
    assert len(matches) >= len(centres) - 1
    areas = [np.sum(cells.weight[cells.neuron == cell] > 0.2 * cells.weight[cells.neuron == cell].max()) for cell in matches.values()]
    assert np.median(areas) == pytest.approx(np.median([np.sum(one > 0.2) for one in footprints]), rel=0.15)


def test_a_cell_that_motion_correction_left_at_two_places_is_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    rows, columns = np.mgrid[:60, :60]
    astray = np.where(gaussian_filter1d(generator.standard_normal(1200), 20) > 0, 1.9, 0.0)[:, None, None]
    footprints = np.exp(-((((rows - 30) ** 2 + (columns - 30 - astray) ** 2) / 14.0) ** 2))
    added = 250.0 * np.convolve(generator.poisson(0.03, 1200), np.exp(-np.arange(40) / 6))[:1200, None, None]
    cells = find(ArrayMovie(generator.normal(300 + added * footprints, 20).astype(np.int16)), tmp_path)
    assert cells.kept.tolist() == [True]
    assert np.abs(cells.centroids[0] - (30, 31)).max() < 1.5


@pytest.mark.parametrize(("radius", "one"), [(4, True), (11, False)])
def test_the_light_around_a_bright_cell_is_not_the_cell(radius: int, one: bool) -> None:
    """Something as large as the cell, 2 px from it and in other bins, is the cell astray; something far larger is not."""
    rows, columns = np.mgrid[:40, :40]
    at = [((rows - 20) ** 2 + (columns - x) ** 2 < size**2).astype(np.float32) for x, size in ((20, 4), (22, radius))]
    traces = 10 * np.random.default_rng(0).exponential(1, (2, 400)).astype(np.float32)
    cells = [GrownCell((slice(0, 40), slice(0, 40)), footprint, trace) for footprint, trace in zip(at, traces, strict=True)]
    kept, joined = _joined(np.zeros((40, 40, 400), np.float32), cells, CellParameters())
    assert (len(kept), len(joined)) == ((1, 1) if one else (2, 0))


def test_neighbours_that_were_first_taken_for_one_are_told_apart() -> None:
    """A footprint that holds both, and another of the second: the first one becomes the first neighbour alone."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40]
    first, second = (np.exp(-((((rows - 20) ** 2 + (columns - x) ** 2) / 14.0) ** 2)).astype(np.float32) for x in (16.5, 23.5))
    traces = [4 * np.convolve(generator.poisson(0.3, 400), np.exp(-np.arange(9) / 2))[:400].astype(np.float32) for _ in range(2)]
    stack = np.multiply.outer(first, traces[0]) + np.multiply.outer(second, traces[1])
    stack += generator.standard_normal(stack.shape, np.float32)
    whole = (slice(0, 40), slice(0, 40))
    half = np.float32(0.5)
    union, other = GrownCell(whole, first + second, half * (traces[0] + traces[1])), GrownCell(whole, second.copy(), half * traces[1])
    for cell in (union, other):
        subtract(stack, cell.footprint, cell.trace, 0, 0)
    _cut_out(stack, [union, other], CellParameters())
    _refine(stack, [union, other], rounds=ROUNDS)
    for cell, footprint, trace in ((union, first, traces[0]), (other, second, traces[1])):
        mask, true = footprint_in(cell, whole) > 0.2 * cell.footprint.max(), footprint > 0.2
        assert np.sum(mask & true) > 0.8 * np.sum(mask | true)
        assert np.corrcoef(cell.trace, trace)[0, 1] > 0.98


def test_large_faint_cells_are_found_whole(tmp_path: Path) -> None:
    """No pixel of theirs stands out of the noise by much, and they make up what is smooth around them."""
    generator = np.random.default_rng(5)
    centres = [(y + generator.random(), x + generator.random()) for y in (20, 56, 92) for x in (20, 56, 92)]
    rows, columns = np.mgrid[:112, :112]
    footprints = np.stack([np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 4.5**2)) for y, x in centres])
    events = generator.poisson(0.02, (len(centres), 1000))
    added = 30.0 * np.stack([np.convolve(row, np.exp(-np.arange(40) / 6))[:1000] for row in events])
    movie = ArrayMovie(generator.normal(300 + np.einsum("nt,nyx->tyx", added, footprints), 40).astype(np.int16))
    cells = find(movie, tmp_path)
    matches = TruePlane(movie, footprints, added, np.zeros(1000)).matches(cells.neuron, cells.pixel, cells.weight)
    assert len(matches) == len(centres)
    assert cells.kept[list(matches.values())].all()
    assert cells.kept.sum() == len(centres)


def test_no_cells_in_noise_and_neuropil(tmp_path: Path) -> None:
    assert find(simulate_plane([], (70, 70), 1000, neuropil=40.0).movie, tmp_path).kept.sum() == 0


def test_few_cells_in_textured_neuropil(tmp_path: Path) -> None:
    """Vessels and processes give neuropil a texture that no smooth field takes away; it rises and falls alike."""
    found = 0
    for seed in (1, 2, 3):
        generator = np.random.default_rng(seed)

        def smooth(width: float, generator: np.random.Generator = generator) -> np.ndarray:
            field = gaussian_filter(generator.standard_normal((100, 100)), width)
            return field / field.std()

        still = 300 * (1.25 + 0.18 * smooth(5) + 0.08 * smooth(1.2))
        modes = still * np.stack([np.abs(smooth(10)) for _ in range(4)])
        waves = gaussian_filter1d(generator.standard_normal((1600, 4)), 12, axis=0)
        clean = still + np.einsum("tm,myx->tyx", 0.07 * waves / waves.std(0), modes)
        movie = generator.normal(clean, np.sqrt(8 * clean + 100)).astype(np.int16)
        found += int(find(ArrayMovie(movie), tmp_path).kept.sum())
    assert found <= 4


def test_flagged_frames_have_no_say(true_plane: TruePlane, tmp_path: Path) -> None:
    spoiled, flagged = true_plane.movie.array.copy(), np.zeros(true_plane.movie.frames, bool)
    flagged[200:240] = flagged[::50] = True
    spoiled[flagged] = 3000
    spoiled[flagged, 20:30, 60:70] = 20000
    cells = find(ArrayMovie(spoiled), tmp_path, flagged=flagged)
    assert len(true_plane.matches(cells.neuron, cells.pixel, cells.weight)) == len(true_plane.footprints)
    assert cells.kept.sum() == len(true_plane.footprints)


@pytest.mark.parametrize("largest", [10.0, 30.0, 80.0])
@pytest.mark.parametrize(("height", "width"), [(170, 170), (512, 512), (300, 1500)])
def test_blocks_cover_the_field_in_bounded_memory_on_any_number_of_cores(height: int, width: int, largest: float) -> None:
    for bins in (100, 333, MOST_BINS):
        blocks = _blocks(height, width, bins, largest)
        owned = np.zeros((height, width), int)
        for block in blocks:
            owned[block.inner] += 1
        assert (owned == 1).all()
        held = max(4 * bins * np.zeros(owned.shape)[block.outer].size * stacks_of(largest) for block in blocks)
        assert held < 600e6
        assert held * _at_once(blocks, bins, largest, threads=64) < 600e6
        assert _at_once(blocks, bins, largest, threads=1) == _at_once(blocks, bins, largest, threads=0) == 1


def test_nothing_to_find_in_constant_or_flagged_or_hidden_movies(true_plane: TruePlane, tmp_path: Path) -> None:
    assert len(find(ArrayMovie(np.full((200, 40, 40), 7, np.int16)), tmp_path)) == 0
    assert len(find(true_plane.movie, tmp_path, flagged=np.ones(true_plane.movie.frames, bool))) == 0
    assert len(find(true_plane.movie, tmp_path, inside=np.zeros((82, 80), bool))) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_rejected_footprint_says_why(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    movie = generator.normal(300, 20, (600, 60, 60))
    line = np.convolve(generator.poisson(0.03, 600), np.exp(-np.arange(40) / 6))[:600]
    movie[:, 30, 20:42] += 200 * line[:, None]  # an axon, not a soma
    cells = find(ArrayMovie(movie.astype(np.int16)), tmp_path)
    assert cells.kept.sum() == 0
    assert any("compactness" in reason for reason in cells.reason)
