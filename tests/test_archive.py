"""The raw movie beside its session: every pixel of every channel, found again, gone on with."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sensorium_pipeline.archive import archive_plane, archived_plane
from sensorium_pipeline.errors import InputError
from sensorium_pipeline.progress import Progress
from sensorium_pipeline.recordings import SimulationParameters, open_session, open_with_rate, simulate_recording
from sensorium_pipeline.settings import Settings
from sensorium_pipeline.storage import Workspace, dataset_url, open_workspace, verify_dataset


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive") / "raw"
    simulate_recording(
        out, SimulationParameters(single_images=10, test_images=2, repeats=2, height=48, width=52, fields=2, neurons_per_plane=4)
    )
    return out


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(Settings(root=str(tmp_path / "workspace")))


def test_every_pixel_comes_back(raw: Path, workspace: Workspace) -> None:
    session = open_session(raw)
    steps: list[Progress] = []
    record = archive_plane(workspace, raw, 1, progress=steps.append)
    movie = session.plane(1)
    assert record.raw_bytes == movie.frames * movie.height * movie.width * 2
    assert 1.2 < record.ratio < 4
    assert steps[-1].done == steps[-1].total
    verify_dataset(workspace.lab, record.digest)
    url = dataset_url(workspace.lab, record.digest)
    with xr.open_zarr(url) as data:
        assert data.channel_1.dims == ("frame", "y", "x")
        assert data.channel_1.encoding["shards"] is not None
        np.testing.assert_array_equal(data.channel_1, movie.read(0, movie.frames))
        np.testing.assert_allclose(data.frame_time, session.frame_times + session.plane_delays[1])
        assert tuple(data.attrs["corner"]) == session.description.planes[1].corner
    opened = open_with_rate(Path(url.removeprefix("file://")))  # extract takes it as it is
    np.testing.assert_array_equal(opened.movie.read(7, 30), movie.read(7, 30))
    assert (opened.frame_rate, opened.bidirectional) == (session.frame_rate, True)
    assert opened.pixel_size == session.description.planes[1].pixel_size


def test_an_archive_is_written_once_and_goes_on(raw: Path, workspace: Workspace) -> None:
    session = open_session(raw)
    first = archive_plane(workspace, raw, 0)

    def stop(step: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive_plane(workspace, raw, 1, progress=stop)
    assert archived_plane(workspace, session.digest, 0) == first
    assert archived_plane(workspace, session.digest, 1) is None
    assert archive_plane(workspace, raw, 0, progress=stop) == first  # found: nothing is written
    assert archive_plane(workspace, raw, 1).plane == 1
    with pytest.raises(InputError, match="no plane 9"):
        archive_plane(workspace, raw, 9)
