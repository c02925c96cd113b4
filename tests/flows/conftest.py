"""A real Prefect server and a real Dask cluster, started once for all tests of flows in this process."""

from collections.abc import Iterator

import pytest

from sensorium_pipeline.cli.common import import_flows
from sensorium_pipeline.compute import cluster_address
from sensorium_pipeline.services import prefect_server
from sensorium_pipeline.settings import Settings


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the server's API."""
    # Imported before there are threads of Dask: pytest parses some of what Prefect needs, and Python 3.11 may not parse in two at once.
    with prefect_server(Settings(root=str(tmp_path_factory.mktemp("prefect"))), meanwhile=import_flows) as url:
        from prefect.settings import PREFECT_API_URL

        assert PREFECT_API_URL.value() == url
        yield url


@pytest.fixture(scope="session")
def cluster(prefect_api: str) -> Iterator[str]:
    """Address of a Dask scheduler with two workers, each with one stand-in for a GPU."""
    with cluster_address(Settings(workers=2)) as address:
        yield address


@pytest.fixture(scope="module")
def on_cluster(cluster: str) -> Iterator[str]:
    """Flows of this module run on the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_DASK_ADDRESS", cluster)
        yield cluster
