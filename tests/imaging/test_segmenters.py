"""Segmenters behind one protocol: ours, and suite2p in another process, for which a program of the test stands in where it is absent."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, TruePlane, simulate_plane

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.imaging.cell_parameters import CellParameters
from sensorium_pipeline.imaging.cells import Cells, segment
from sensorium_pipeline.imaging.corrected_movie import CorrectedMovie
from sensorium_pipeline.imaging.extraction import extract_plane
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.imaging.segmenters import Segmenter, open_segmenter
from sensorium_pipeline.imaging.stage_results import StageResults, stage_keys
from sensorium_pipeline.imaging.suite2p_segmenter import SCRIPT, SETTING
from sensorium_pipeline.progress import Progress, ProgressCallback, silent
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Store

TWO_CELLS = """
cells = dict(neuron=[0, 0, 1, 1, 1], pixel=[66, 65, 700, 701, 5], weight=[4, 3, 1, 1, 9], probability=[0.25, 0.9])
trace = np.random.default_rng(0).normal(0, 1, (2, 1000))
trace[0, 50] += 100
trace[1, 50] += 400
"""
NO_CELLS = """
cells, trace = dict(neuron=[], pixel=[], weight=[], probability=[]), np.empty((0, 0))
"""
SAVE = """
kinds = dict(neuron="i4", pixel="i4", weight="f4", probability="f4", trace="f4")
np.savez(folder / "cells.npz", **{name: np.array(value, kinds[name]) for name, value in {**cells, "trace": trace}.items()})
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a program that stands for the interpreter of suite2p's environment, does `body` instead of our script, and is named."""

    def make(body: str, version: str = "1.1.0") -> Path:
        program = tmp_path / "interpreter"
        head = f"""\
            #!{sys.executable}
            import json, os, sys, time
            from pathlib import Path
            if sys.argv[1] == "-c":
                print({version!r})
                sys.exit()
            import numpy as np
            folder = Path(sys.argv[2])
            request, frames = json.loads((folder / "request.json").read_text()), np.load(folder / "frames.npy")
            """
        program.write_text(textwrap.dedent(head) + body)
        program.chmod(0o755)
        monkeypatch.setenv(SETTING, str(program))
        return program

    return make


def written(array: np.ndarray, folder: Path) -> CorrectedMovie:
    """A corrected movie as motion correction leaves it on scratch."""
    path = folder / "corrected"
    array.tofile(path)
    return CorrectedMovie(path, *array.shape, array.dtype)


def find(
    movie: CorrectedMovie,
    segmenter: Segmenter,
    *,
    flagged: np.ndarray | None = None,
    inside: np.ndarray | None = None,
    progress: ProgressCallback = silent,
    threads: int = 2,
) -> Cells:
    scratch = movie.path.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    try:
        return segmenter(
            movie,
            frame_rate=RATE,
            flagged=np.zeros(movie.frames, bool) if flagged is None else flagged,
            inside=np.ones((movie.height, movie.width), bool) if inside is None else inside,
            parameters=CellParameters(),
            scratch=scratch,
            progress=progress,
            threads=threads,
        )
    finally:
        assert list(scratch.iterdir()) == []


@pytest.fixture
def small(tmp_path: Path) -> CorrectedMovie:
    return written(np.random.default_rng(0).integers(0, 100, (200, 30, 32)).astype(np.int16), tmp_path)


def test_ours_is_the_default_and_the_choice_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTING, raising=False)
    assert ImagingParameters().segmenter == "sensorium"
    assert open_segmenter("sensorium") is segment
    ours, theirs = (
        stage_keys("raw", frame_rate=RATE, pixel_size=None, bidirectional=False, parameters=ImagingParameters(segmenter=name))
        for name in ("sensorium", "suite2p")
    )
    assert ours.motion == theirs.motion
    assert ours.cells != theirs.cells
    assert ours.activity != theirs.activity


def test_footprints_become_cells_in_the_usual_order(stand_in, small: CorrectedMovie, tmp_path: Path) -> None:
    said = tmp_path / "said"
    stand_in(f"(Path({str(said)!r})).write_text(json.dumps([request, frames.tolist(), 'PYTHONPATH' in os.environ]))\n{TWO_CELLS}{SAVE}")
    flagged, inside = np.zeros(200, bool), np.ones((30, 32), bool)
    flagged[[3, 77]] = True
    inside[0] = inside[:, :1] = False
    seen: list[Progress] = []
    cells = find(small, open_segmenter("suite2p"), flagged=flagged, inside=inside, progress=seen.append)
    # The larger signal comes first, pixels are sorted, and what lies outside is gone.
    assert cells.pixel.tolist() == [700, 701, 65, 66]
    assert cells.neuron.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(cells.weight, [0.5**0.5, 0.5**0.5, 0.6, 0.8], rtol=1e-6)
    assert [array.dtype for array in (cells.neuron, cells.pixel, cells.weight)] == [np.int32, np.int32, np.float32]
    np.testing.assert_allclose(cells.centroids, [(21, 28.5), (2, 11 / 7)], rtol=1e-6)
    assert cells.detection_snr == pytest.approx([400, 100], rel=0.1)
    assert cells.kept.tolist() == [True, False]
    assert cells.reason == ("", "suite2p: not a cell, probability 0.25")
    assert (seen[0].stage, seen[-1].done, seen[-1].total) == ("cells", 1, 1)
    request, frames, path_is_set = json.loads(said.read_text())
    assert frames == np.flatnonzero(~flagged).tolist()
    assert (request["rows"], request["columns"], request["bin_size"]) == ([1, 30], [1, 32], 6)
    assert not path_is_set


def test_no_cells_are_an_honest_empty_result(stand_in, tmp_path: Path) -> None:
    stand_in(NO_CELLS + SAVE)
    movie, parameters = simulate_plane([(20, 20)], (48, 48), 200).movie, ImagingParameters(segmenter="suite2p")
    keys = stage_keys("raw", frame_rate=RATE, pixel_size=None, bidirectional=False, parameters=parameters)
    finished = StageResults(Store("lab", RootSettings(url=str(tmp_path / "store"))), keys)
    # What a run that was killed left there is no hindrance.
    (tmp_path / "scratch" / keys.motion.rsplit("/", 1)[1][:32] / "suite2p-killed").mkdir(parents=True)
    plane = extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch", parameters=parameters, finished=finished)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert plane.neurons == plane.metrics.cells == 0
    assert plane.activity.shape == (0, 200)


def test_where_nothing_can_be_found_nothing_is_run(stand_in, small: CorrectedMovie) -> None:
    stand_in("sys.exit(1)")
    suite2p = open_segmenter("suite2p")
    assert len(find(small, suite2p, flagged=np.arange(200) > 20)) == 0
    assert len(find(small, suite2p, inside=np.zeros((30, 32), bool))) == 0


def test_a_failure_says_what_suite2p_said_last(stand_in, small: CorrectedMovie) -> None:
    program = stand_in("for line in range(100): print('line', line, file=sys.stderr)\nsys.exit(3)")
    with pytest.raises(PlatformError, match=r"exit status 3.*line 95 \| line 96 \| line 97 \| line 98 \| line 99") as caught:
        find(small, open_segmenter("suite2p"))
    assert caught.value.where == str(program)
    assert "line 94" not in str(caught.value)
    stand_in("os.kill(os.getpid(), 9)")
    with pytest.raises(PlatformError, match="signal SIGKILL"):
        find(small, open_segmenter("suite2p"))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ("sys.exit()", "FileNotFoundError"),
        ("(folder / 'cells.npz').write_bytes(b'PK garbage'); sys.exit()", "no usable result"),
        ("np.savez(folder / 'cells.npz', neuron=np.zeros(3, 'i4')); sys.exit()", "pixel"),
        ("cells['pixel'] = [66, 65, 700, 701, 960]", "beyond the field"),
        ("cells['pixel'] = [66, 65, 700, 700, 5]", "twice"),
        ("cells['neuron'] = [0, 0, 2, 2, 2]", "missing"),
        ("cells['neuron'] = [1, 1, 0, 0, 0]", "out of order"),
        ("cells['weight'][0] = np.nan", "not finite"),
        ("cells['probability'][0] = 1.5", "out of range"),
        ("cells['probability'] += [0.5]", "lengths"),
        ("cells['weight'] = [[1, 2, 3, 4, 5]]", "dimensions"),
        ("np.savez(folder / 'cells.npz', **cells, trace=np.array([{}, {}], object)); sys.exit()", "no usable result"),
    ],
)
def test_results_that_cannot_be_are_refused(stand_in, small: CorrectedMovie, spoil: str, named: str) -> None:
    stand_in(f"{TWO_CELLS}\n{spoil}\n{SAVE}")
    with pytest.raises(PlatformError, match=named) as caught:
        find(small, open_segmenter("suite2p"))
    assert caught.value.advice


@pytest.mark.parametrize(
    ("interpreter", "problem"),
    [(None, "none is named"), ("/nowhere/python", "cannot be run"), (sys.executable, "has no suite2p"), ("old", "has suite2p 0.14.5")],
)
def test_an_environment_without_suite2p_is_named_before_any_work(
    stand_in, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interpreter: str | None, problem: str
) -> None:
    if interpreter == "old":
        stand_in("", version="0.14.5")
    elif interpreter is None:
        monkeypatch.delenv(SETTING, raising=False)
    else:
        monkeypatch.setenv(SETTING, interpreter)
    seen: list[Progress] = []
    movie = simulate_plane([(20, 20)], (48, 48), 200).movie
    with pytest.raises(InputError, match=problem) as caught:
        extract_plane(
            movie,
            frame_rate=RATE,
            scratch=tmp_path / "scratch",
            parameters=ImagingParameters(segmenter="suite2p"),
            progress=seen.append,
        )
    assert caught.value.where == SETTING
    assert "suite2p==1.1" in caught.value.advice
    assert seen == []


def test_what_ends_the_wait_ends_suite2p(stand_in, small: CorrectedMovie, tmp_path: Path) -> None:
    process = tmp_path / "process"
    stand_in(
        f"Path({str(tmp_path / 'part')!r}).write_text(str(os.getpid())); os.rename({str(tmp_path / 'part')!r}, {str(process)!r})\n"
        "while True: time.sleep(1)"
    )

    def cancel(_: Progress) -> None:
        if process.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(small, open_segmenter("suite2p"), progress=cancel)
    with pytest.raises(ProcessLookupError):
        os.kill(int(process.read_text()), 0)


def test_the_script_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "suite2p.py").write_text("import time\ntime.sleep(1000)\n")
    (tmp_path / "request.json").write_text("{}")
    np.save(tmp_path / "frames.npy", np.arange(3))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    child = subprocess.Popen([sys.executable, SCRIPT, tmp_path], stdin=subprocess.PIPE, env=environment)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(120) == 2


def test_suite2p_finds_the_cells(true_plane: TruePlane, tmp_path: Path) -> None:
    if SETTING not in os.environ:
        pytest.skip(f"no suite2p: {SETTING} does not name the python of an environment with it")
    suite2p, movie = open_segmenter("suite2p"), written(true_plane.movie.array, tmp_path)
    flagged, inside = np.zeros(movie.frames, bool), np.ones((movie.height, movie.width), bool)
    flagged[100:110] = True
    inside[:3] = inside[:, -2:] = False
    cells = find(movie, suite2p, flagged=flagged, inside=inside, threads=1)
    kept = cells.kept[cells.neuron]
    number = (np.cumsum(cells.kept) - 1)[cells.neuron[kept]].astype(np.int32)
    matched = len(set(true_plane.matches(number, cells.pixel[kept], cells.weight[kept]).values()))
    assert 2 * matched / (len(true_plane.footprints) + cells.kept.sum()) > 0.75
    assert inside.ravel()[cells.pixel].all()
    assert (np.diff(cells.detection_snr) <= 0).all()
    again = find(movie, suite2p, flagged=flagged, inside=inside, threads=2)
    for name in ("neuron", "pixel", "weight", "centroids", "detection_snr", "kept"):
        assert getattr(again, name).tobytes() == getattr(cells, name).tobytes()
    assert again.reason == cells.reason


def test_suite2p_finds_nothing_in_a_constant_movie(tmp_path: Path) -> None:
    if SETTING not in os.environ:
        pytest.skip(f"no suite2p: {SETTING} does not name the python of an environment with it")
    assert len(find(written(np.full((300, 40, 40), 7, np.int16), tmp_path), open_segmenter("suite2p"))) == 0
