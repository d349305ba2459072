"""A real Hadoop for the tests: started once, on loopback, when the first test asks for it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "hadoop"))

from minicluster import MiniCluster, UnavailableError


@pytest.fixture(scope="session")
def hadoop(tmp_path_factory):
    """HDFS with two DataNodes and two copies of each block; YARN does not run, unless it does."""
    cluster = MiniCluster(tmp_path_factory.mktemp("hadoop"), yarn=False)
    try:
        cluster.start()
    except UnavailableError as error:
        pytest.skip(str(error))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def yarn(hadoop):
    """The same cluster with its ResourceManager and NodeManager."""
    hadoop.start_yarn()
    return hadoop


@pytest.fixture
def breakable_hadoop(hadoop):
    """The same cluster, to kill daemons of: those that ran are started again after the test."""
    before = list(hadoop.pids)
    yield hadoop
    for name in before:
        hadoop.start_daemon(name, wait=False)
    hadoop.wait_ready()
