"""What several test files share: clusters, pictures, and the data that lies beside the project."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, command, draw, local_cluster

from dtl import config, storage
from dtl.cluster import connection
from dtl.features.store import FeatureStore
from dtl.images.values import ImageList

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "deploy" / "hadoop"))

from minicluster import MiniCluster, UnavailableError  # noqa: E402

DATA = Path(os.environ.get("DTL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The real photographs and weights."""
    if not (DATA / "caltech256").is_dir():
        pytest.skip(f"no photographs at {DATA}; DTL_DATA can say where they are")
    return DATA


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
    out = tmp_path_factory.mktemp("real") / "out"
    done = command("run", "--images", data / "caltech256", "--out", out, *real_options)
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


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
def hadoop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    """HDFS with two DataNodes and two copies of each block; YARN does not run, unless it does."""
    # So that tests of a NameNode that is gone for good need not wait for three minutes.
    site = {"hdfs-site": {"dfs.client.failover.max.attempts": 6}}
    running = MiniCluster(tmp_path_factory.mktemp("hadoop"), yarn=False, site=site)
    try:
        running.start()
    except UnavailableError as error:
        pytest.skip(str(error))
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
def make_store(tmp_path: Path) -> MakeStore:
    """Makes stores of Gaussian classes, without a network."""

    def make(
        n_images: int = 600,
        n_features: int = 20,
        n_classes: int = 5,
        chunk_images: int = 50,
        shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int = 0,
        name: str = "features.zarr",
        distance: float = 1.2,
    ) -> FeatureStore:
        rng = np.random.default_rng(seed)
        label = rng.integers(0, n_classes, n_images).astype(np.int32)
        centres = distance * rng.normal(size=(n_classes, n_features)) / np.sqrt(n_features) * 4
        features = rng.normal(size=(n_images, n_features)) * rng.uniform(0.5, 20, n_features)
        features += centres[label] * features.std(axis=0)
        features[:, 0] = 3  # a constant feature, as dead ReLUs are
        listed = ImageList(
            root="/nowhere",
            path=np.array([f"{k}/{i}.jpg" for i, k in enumerate(label)], np.dtypes.StringDType()),
            label=label,
            given_split=np.full(n_images, -1, np.int8),
            size_bytes=np.ones(n_images, np.int64),
            class_names=tuple(f"class {k}" for k in range(n_classes)),
        )
        store = FeatureStore.create(
            str(tmp_path / name),
            listed,
            {"fc2": n_features},
            dtype="float32",
            chunk_images=chunk_images,
            attrs={"settings": {"made": "by a test"}, "weights_sha256": "0", "weights": "random",
                   "root": "/nowhere", "left_out": [], "n_left_out": 0, "versions": {}},
        )  # fmt: skip
        for chunk in range(store.n_chunks):
            rows = store.rows(chunk)
            n = rows.stop - rows.start
            store.write_chunk(
                chunk,
                {"fc2": features[rows].astype(np.float32)},
                np.arange(rows.start, rows.stop, dtype=np.uint64),
                [""] * n,
            )
        split = rng.choice(3, n_images, p=shares).astype(np.int8)
        store.write_split(split, {"made": "by a test"})
        return store

    return make
