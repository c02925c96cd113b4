"""Extraction by stages: what is finished is found, a killed run goes on, and the result is that of a run nobody disturbed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, ArrayMovie, simulate_plane

from sensorium_pipeline.errors import InputError, PlatformError
from sensorium_pipeline.imaging.cells import CellParameters
from sensorium_pipeline.imaging.deconvolution import DeconvolutionParameters
from sensorium_pipeline.imaging.extraction import extract_plane
from sensorium_pipeline.imaging.parameters import ImagingParameters
from sensorium_pipeline.imaging.stage_results import StageKeys, StageResults, stage_keys
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.settings import RootSettings
from sensorium_pipeline.storage import Store

STAGES = tuple(StageKeys.model_fields)


def results(folder: Path, parameters: ImagingParameters = ImagingParameters(), raw: str = "a movie") -> StageResults:
    keys = stage_keys(raw, frame_rate=RATE, pixel_size=None, bidirectional=False, parameters=parameters)
    return StageResults(Store("lab", RootSettings(url=str(folder / "store"))), keys)


@pytest.fixture(scope="module")
def movie() -> ArrayMovie:
    return simulate_plane([(20, 20), (40, 44)], (60, 64), 400).movie


class Watched(ArrayMovie):
    """Counts the frames that are read."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array)
        object.__setattr__(self, "read_frames", 0)

    def read(self, start: int, stop: int) -> np.ndarray:
        object.__setattr__(self, "read_frames", self.read_frames + stop - start)
        return super().read(start, stop)


def test_a_second_run_reads_no_frame_and_gives_the_same(movie: ArrayMovie, tmp_path: Path) -> None:
    kept = results(tmp_path)
    first = extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch", finished=kept)
    watched = Watched(movie.array)
    second = extract_plane(watched, frame_rate=RATE, scratch=tmp_path / "scratch", finished=kept)
    assert watched.read_frames == 0
    assert second.metrics == first.metrics
    for name in ("shifts", "footprint_weight", "dff", "activity", "snr", "flagged"):
        assert getattr(second, name).tobytes() == getattr(first, name).tobytes(), name
    assert second.reason == first.reason
    assert list((tmp_path / "scratch").iterdir()) == []
    # Without a store the same comes out, and the digests are those of a store of its own.
    alone = extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch")
    assert alone.activity.tobytes() == first.activity.tobytes()
    elsewhere = results(tmp_path / "elsewhere")
    extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch", finished=elsewhere)
    assert elsewhere.digests() == kept.digests()


@pytest.mark.parametrize(
    ("change", "repeated"),
    [
        (ImagingParameters(deconvolution=DeconvolutionParameters(order=1)), {"activity"}),
        (ImagingParameters(cells=CellParameters(least_snr=11.0)), {"cells", "traces", "activity"}),
    ],
)
def test_another_parameter_repeats_what_depends_on_it_alone(
    movie: ArrayMovie, tmp_path: Path, change: ImagingParameters, repeated: set[str]
) -> None:
    before, after = results(tmp_path).keys, results(tmp_path, change).keys
    assert {stage for stage in STAGES if getattr(before, stage) != getattr(after, stage)} == repeated
    assert set(results(tmp_path, raw="another movie").keys.model_dump().values()).isdisjoint(before.model_dump().values())


def test_the_corrected_movie_of_a_run_that_stopped_is_used_and_then_removed(movie: ArrayMovie, tmp_path: Path) -> None:
    kept, seen = results(tmp_path), []

    def full(progress: Progress) -> None:
        if progress.stage == "cells":
            raise OSError(28, "No space left on device")

    with pytest.raises(PlatformError, match="scratch disk is full"):
        extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch", finished=kept, progress=full)
    (folder,) = (tmp_path / "scratch").iterdir()
    assert [path.name for path in folder.iterdir()] == ["corrected"]
    assert kept.find("motion") is not None
    assert kept.find("cells") is None
    extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch", finished=kept, progress=lambda step: seen.append(step.stage))
    assert "motion" not in seen
    assert {"cells", "traces"} <= set(seen)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_corrected_movie_that_is_gone_is_made_again(movie: ArrayMovie, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "traces":
            raise KeyboardInterrupt

    kept = results(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch", finished=kept, progress=stop)
    assert kept.find("cells") is not None
    extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "another disk", finished=kept)
    undisturbed = results(tmp_path / "undisturbed")
    extract_plane(movie, frame_rate=RATE, scratch=tmp_path / "scratch 2", finished=undisturbed)
    assert kept.digests() == undisturbed.digests()


def test_bad_input_leaves_nothing_on_scratch(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        extract_plane(ArrayMovie(np.zeros((100, 40, 40))), frame_rate=RATE, scratch=tmp_path / "scratch", finished=results(tmp_path))
    assert list((tmp_path / "scratch").iterdir()) == []


KILLED_AT = """
import os, signal, sys
from pathlib import Path
import numpy as np
from sensorium_pipeline.extraction_folder import extract_movie

movie, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
seen, moment = 0, 0

def watch(event, arguments):
    global seen
    if event in CHANGES or event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

def run(out):
    # In a process of its own; returns how it ended. What this one has compiled and loaded need not be loaded again.
    child = os.fork()
    if child == 0:
        extract_movie(movie, out, frame_rate=8.0)
        if moment == 0:
            (folder / "changes").write_text(str(seen))
        os._exit(0)
    return os.waitpid(child, 0)[1]

sys.addaudithook(watch)
extract_movie(movie, folder / "warm up", frame_rate=8.0)
seen = 0
assert run(folder / "undisturbed") == 0
moments = sorted({1, 2, *np.linspace(3, int((folder / "changes").read_text()) - 1, count - 2).astype(int).tolist()})
for at in moments:
    seen, moment, out = 0, at, folder / f"killed at {at}"
    assert run(out) == signal.SIGKILL, f"no change number {at}"
    print(at, "complete" if out.exists() else "unfinished", flush=True)
    seen, moment = 0, 0
    assert run(out) == 0, f"did not go on after change {at}"
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def movie_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tifffile

    path = tmp_path_factory.mktemp("movie") / "small.tif"
    tifffile.imwrite(path, simulate_plane([(12, 12), (24, 22)], (36, 36), 160).movie.array)
    return path


def test_killed_at_any_change_of_the_disk_the_next_run_ends_with_the_same_bytes(movie_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT, str(movie_file), str(tmp_path), "8"]
    # One thread, as what is forked must not wait for threads that were not.
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed = dict(line.split() for line in done.stdout.splitlines())
    assert len(killed) > 5
    assert "unfinished" in killed.values()
    expected = contents(tmp_path / "undisturbed")
    assert any(name.endswith("report.md") for name in expected)
    for moment in killed:
        assert contents(tmp_path / f"killed at {moment}") == expected, f"killed at change {moment} of {max(map(int, killed))}"
    # What is left when everything is done: the results and nothing else.
    assert {path.name for path in tmp_path.iterdir()} == {
        "changes",
        "warm up",
        "undisturbed",
        *(f"killed at {moment}" for moment in killed),
    }


def test_two_runs_at_once_do_the_work_once(movie_file: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from sensorium_pipeline.extraction_folder import extract_movie\n"
    code += "extract_movie(Path(sys.argv[1]), Path(sys.argv[2]), frame_rate=8.0)\n"
    # Libraries that take long to load and that nothing here needs.
    code += "sys.exit(','.join({'dask', 'distributed', 'prefect', 'torch'} & set(sys.modules)) or 0)"
    command: Callable[[], subprocess.Popen[bytes]] = lambda: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", code, str(movie_file), str(tmp_path / "out")]
    )
    both = [command(), command()]
    try:
        assert [process.wait(timeout=240) for process in both] == [0, 0]
    finally:
        for process in both:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
