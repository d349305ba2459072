"""What several test files share: clusters, pictures, and the data that lies beside the project."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client
from helpers import (
    REAL_RUN_S,
    MakeStore,
    Run,
    command,
    draw,
    gaussian_store,
    local_cluster,
    make_once,
)
from xdist.scheduler import LoadGroupScheduling

from dtl import config, storage
from dtl.cluster import connection, workers
from dtl.features.store import FeatureStore
from dtl.pipeline import command_line
from dtl.storage import retries

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "deploy" / "hadoop"))

from localhadoop.machine import fetch_hadoop, find_java  # noqa: E402
from minicluster import MiniCluster, UnavailableError  # noqa: E402

dask.config.set(workers.SETTINGS)  # for the clusters that tests start by themselves

DATA = Path(os.environ.get("DTL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", default="0-2", help="of tests/chaos: one, or the first and last")


@pytest.fixture(scope="session")
def data() -> Path:
    """The real photographs and weights."""
    if not (DATA / "caltech256").is_dir():
        pytest.skip(f"no photographs at {DATA}; DTL_DATA can say where they are")
    return DATA


@pytest.fixture(scope="session")
def cases() -> Path:
    """Small inputs that failed in the field."""
    folder = DATA.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; DTL_DATA can say where the data beside it are")
    return folder


@pytest.fixture(scope="session")
def real_options(data: Path) -> list[str]:
    """The real weights, the layer that they suffice for, and the split of the issue's bar."""
    return [
        "--features.layers", "block5_pool",
        "--features.weights", str(data / "vgg16_imagenet_conv.npz"),
        "--split.train", "0.6", "--split.validation", "0.15", "--split.test", "0.25",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def real_run(
    data: Path, real_options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The results of a run on all photographs, on a local disk, and what it printed."""

    def make(folder: Path) -> tuple[Path, str]:
        done = command(
            "run", "--images", data / "caltech256", "--out", folder / "out", *real_options,
            timeout_s=REAL_RUN_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return folder / "out", done.stdout + done.stderr

    return make_once(tmp_path_factory, "real", make)


SERVERS = {"hadoop", "yarn", "breakable_hadoop", "s3"}
"""Fixtures that start servers."""


class Scheduler(LoadGroupScheduling):
    """Gives a process whole files, or all tests that need YARN, or all that need other servers.

    So YARN starts once, HDFS twice, and tests that break a server disturb nobody else.
    """

    def _split_scope(self, nodeid: str) -> str:
        return super()._split_scope(nodeid).split("::")[0]


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: those that have servers wait for these much of the time."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, and put first what takes longest."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        backend = parameters.get("root")  # a fixture that asks for its server by itself
        if not SERVERS.isdisjoint(item.fixturenames) or backend in ("hdfs", "webhdfs", "s3"):
            item.add_marker("servers")
            on_yarn = "yarn" in item.fixturenames or item.path.name == "test_minicluster.py"
            item.add_marker(pytest.mark.xdist_group("yarn" if on_yarn else "servers"))
        if "real_run" in item.fixturenames:
            item.add_marker("slow")
            item.add_marker(pytest.mark.timeout(2 * REAL_RUN_S))  # it may wait for another's
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    real = {item.path for item in items if "real_run" in item.fixturenames}
    items.sort(
        key=lambda item: (
            not item.get_closest_marker("servers"), item.path not in real, item.path not in slow
        )
    )  # fmt: skip


class _Failures:
    """Says at once which test failed: a run that is ended from outside prints no summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\n{report.nodeid} ({report.when}): {report.longreprtext}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(_Failures(terminal))


@pytest.fixture(autouse=True)
def _logger_as_it_was(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The command line, run in this process, shows what dtl logs and passes none of it on.

    Before a test, too: fixtures of a whole module may have run it. And a local cluster, as long as
    it runs, silences the handlers of Dask's logger, among which are those of pytest.
    """
    ours = logging.getLogger("dtl")

    def put_back() -> None:
        ours.handlers[:], ours.propagate = [], True
        ours.setLevel(logging.NOTSET)

    put_back()
    caplog.handler.setLevel(logging.NOTSET)
    yield
    put_back()


@pytest.fixture(autouse=True)
def _signals_are_heard() -> None:
    """What is started here hears Ctrl-C: a shell's background jobs, and all of theirs, ignore it.

    Before each test, since a library puts back what it found.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage whose transient errors are tried again at once."""
    monkeypatch.setattr(retries, "_PAUSES_S", (0.0, 0.01, 0.01, 0.01))


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, which saves the seconds that imports take."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        status = command_line.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def threads() -> Iterator[Client]:
    """Two workers that are threads of this process: quick, for what needs no Keras."""
    with local_cluster(n_workers=2) as local, Client(local) as client:
        yield client


@pytest.fixture(scope="session")
def processes() -> Iterator[Client]:
    """One worker process, as a run has it."""
    settings = config.build({"cluster": {"n_workers": 1, "dashboard_address": ":0"}})
    with connection.connect(settings.cluster) as client:
        yield client


@pytest.fixture(scope="session")
def hadoop_installed() -> None:
    """Java and Hadoop's jars, for tests that start clusters of their own."""
    try:
        fetch_hadoop(find_java()[0])
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def hadoop(
    hadoop_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MiniCluster]:
    """HDFS with two DataNodes and two copies of each block; YARN runs once `yarn` is used."""
    # So that tests of a NameNode that is gone for good need not wait for three minutes.
    site = {"hdfs-site": {"dfs.client.failover.max.attempts": 6}}
    running = MiniCluster(tmp_path_factory.mktemp("hadoop"), yarn=False, site=site)
    running.start()
    before = dict(os.environ)
    os.environ.update(running.environment)  # as `. env.sh` does; worker processes inherit it
    yield running
    os.environ.clear()
    os.environ.update(before)
    running.stop()


@pytest.fixture(scope="session")
def yarn(hadoop: MiniCluster) -> MiniCluster:
    """The same cluster with its ResourceManager and NodeManager."""
    hadoop.start_yarn()
    return hadoop


@pytest.fixture
def breakable_hadoop(hadoop: MiniCluster) -> Iterator[MiniCluster]:
    """The same cluster, to kill daemons of: those that ran are started again after the test."""
    before = list(hadoop.pids)
    yield hadoop
    for name in before:
        hadoop.start_daemon(name, wait=False)
    hadoop.wait_ready()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of a bucket on an S3 server of this machine."""
    server_module = pytest.importorskip("moto.server")
    import boto3

    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket="tests")
    yield "s3://tests"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture(params=["file", "memory", "hdfs", "webhdfs", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder, which is there, on every backend."""
    if request.param == "file":
        yield str(tmp_path)
        return
    name = uuid.uuid4().hex
    if request.param == "memory":
        url = f"memory://{name}"
    elif request.param == "s3":
        url = f"{request.getfixturevalue('s3')}/{name}"
    else:
        hadoop = request.getfixturevalue("hadoop")
        where = {"hdfs": hadoop.url, "webhdfs": hadoop.webhdfs_url}[request.param]
        url = f"{where}/tests/{name}"
    if request.param == "s3":
        storage.write_bytes(f"{url}/.keep", b"")  # a folder is there as long as a file is in it
        storage.remove(f"{url}/.keep")
    else:
        storage.filesystem(url)[0].makedirs(storage.filesystem(url)[1])
    yield url
    storage.remove(url)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of eight small pictures, each of one colour and some noise."""
    folder = tmp_path / "pictures"
    draw(folder, {"blue": (20, 20, 200), "green": (20, 180, 20), "red": (200, 20, 20)}, 8)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Makes stores of Gaussian classes, without a network."""

    def make(*shape: int, name: str = "features.zarr", **options: Any) -> FeatureStore:
        return gaussian_store(str(tmp_path / name), *shape, **options)

    return make
