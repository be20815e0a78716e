"""One cluster with a real node for the session: KubeRay, and the operator in pods, from its chart."""

import os
from collections.abc import Iterator

import pytest
from devcluster import NodeCluster, missing
from devcluster.system import install_dreambooth


@pytest.fixture(scope="session")
def cluster() -> Iterator[NodeCluster]:
    """The cluster. Where this machine cannot run a node the tests are skipped, but never in CI."""
    lack = missing()
    if lack and not os.environ.get("CI"):
        pytest.skip(lack)
    with NodeCluster() as cluster:
        install_dreambooth(cluster)
        yield cluster
