"""Fixture: one cluster per session with a real node, KubeRay, and the operator installed from its chart."""

import os
from collections.abc import Iterator

import pytest
from devcluster import NodeCluster, missing
from devcluster.system import install_dreambooth


@pytest.fixture(scope="session")
def cluster() -> Iterator[NodeCluster]:
    """The cluster. The tests are skipped on machines that cannot run a node, except in CI."""
    reason = missing()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    with NodeCluster() as cluster:
        install_dreambooth(cluster)
        yield cluster
