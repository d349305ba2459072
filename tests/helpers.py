"""Functions that several test files share."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from distributed import Client, LocalCluster
from PIL import Image

from dtl import storage
from dtl.config import TrainConfig
from dtl.features.store import FeatureStore
from dtl.head.model import WEIGHTS, Head
from dtl.head.scaling import scale_rows
from dtl.head.softmax import Params, log_softmax, residuals
from dtl.images.decoding.formats import decode
from dtl.images.values import ImageList

ROOT = Path(__file__).parents[1]
T = TypeVar("T")
MakeStore = Callable[..., FeatureStore]

COLOURS = {"blue": (20, 20, 200), "green": (20, 180, 20), "red": (200, 20, 20)}

CUT = [
    "--features.layers", "block1_pool", "--features.weights", "random", "--features.chunk-images",
    "8", "--features.batch-images", "4", "--features.precision", "float32", "--train.epochs", "10",
    "--split.validation", "0.25", "--split.test", "0.25",
]  # fmt: skip
"""VGG16 after its first block: real, and quick to compute."""


Run = Callable[..., subprocess.CompletedProcess[str]]

REAL_RUN_S = 2700
"""What all photographs may take: processors with AVX2 alone, in use by others, need half of it."""

THREADS = ("--cluster.processes", "false")
"""Workers that are threads of the driver: they need not import Keras again."""


def command(
    *arguments: object, timeout_s: float = 540, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, in a process of its own: see the fixture `here`, too."""
    return subprocess.run(
        [sys.executable, "-m", "dtl.pipeline", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=timeout_s,
        env=os.environ | environment,
    )  # fmt: skip


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """Return what the first of pytest's processes that needs it has made, in a folder, for all."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    made = folder / "made.pickle"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_bytes(pickle.dumps(make(folder)))
    return pickle.loads(made.read_bytes())


def draw(folder: Path, colours: dict[str, tuple[int, int, int]], n: int) -> None:
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(colour, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{i}.jpg").write_bytes(jpeg(pixels))


def small_environment(folder: Path) -> Path:
    """An environment of its own with little in it, that finds the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site_packages = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "big.pth").write_text("\n".join([*site_packages, str(ROOT)]) + "\n")
    return folder / "bin" / "python"


def processes_of(folder: Path | str) -> list[int]:
    """Processes whose command line, environment or working folder names `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if str(folder).encode() in known or os.readlink(entry / "cwd").startswith(str(folder)):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def in_session(session: int) -> bool:
    """Whether a process of a session lives: workers outlive a killed driver for a while."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(entry.name)) == session:
                return True
    return False


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


@contextmanager
def when_logged(message: str, act: Callable[[], object]) -> Iterator[None]:
    """Act whenever dtl logs a message in which this pattern is found.

    What a test's tasks wait for is then the message, not a time in which a busy machine may not
    come to write it.
    """

    class Acting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if re.search(message, record.getMessage()):
                act()

    acting = Acting()
    logging.getLogger("dtl").addHandler(acting)
    try:
        yield
    finally:
        logging.getLogger("dtl").removeHandler(acting)


def local_cluster(n_workers: int = 1, threads: int = 1, *, processes: bool = False) -> LocalCluster:
    """Workers without a limit of memory.

    Dask would hold the memory of all of this process, which many tests share, against the share of
    each worker that is a thread of it, and have it pause for ever.
    """
    return LocalCluster(
        n_workers=n_workers,
        threads_per_worker=threads,
        processes=processes,
        memory_limit=0,
        dashboard_address=":0",
    )


@contextmanager
def two_worker_processes() -> Iterator[Client]:
    """A client of two worker processes, which say nothing when they are killed."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
            silence_logs=50,
        ) as local,
        Client(local) as client,
    ):  # fmt: skip
        yield client


@contextmanager
def a_worker_is_killed(once: str) -> Iterator[Client]:
    """A client of two worker processes, of which one is killed while the block runs.

    As soon as the result of a task is there whose name begins so.
    """
    ended, killed = threading.Event(), threading.Event()
    with two_worker_processes() as client:

        def kill() -> None:
            while not any(key.startswith(once) for key in client.who_has()):
                if ended.wait(0.01):
                    return
            os.kill(client.cluster.workers[0].pid, signal.SIGKILL)
            killed.set()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield client
            assert killed.is_set(), "all was done before a worker was killed"
        finally:
            ended.set()
            killer.join()


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def put(folder: Path, url: str) -> None:
    """Copy all files below a folder to a URL."""

    def copy(path: Path) -> None:
        storage.write_bytes(f"{url}/{path.relative_to(folder)}", path.read_bytes())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(copy, sorted(path for path in folder.rglob("*") if path.is_file())))


def all_files(url: str) -> dict[str, bytes]:
    """All files below a URL."""
    return {f.path: storage.read_bytes(storage.join(url, f.path)) for f in storage.walk(url)}


def random_head(
    features: np.ndarray, *, n_units: int = 0, normalize: str = "standardise", **provenance: str
) -> Head:
    """A head of three classes on features (n, n_features), whose scores are not near 0 or 1."""
    rng = np.random.default_rng(1)
    n_features, rows = features.shape[1], scale_rows(features, normalize)
    head = Head(
        kernel=rng.normal(size=(n_features, 3)).astype(np.float32) / np.sqrt(n_features),
        bias=np.array([0.5, -0.5, 0.0], np.float32),
        mean=rows.mean(axis=0),
        scale=rows.std(axis=0) + np.float32(1e-3),
        class_names=("a", "b", "c"),
        provenance=provenance,
        normalize=normalize,
        temperature=0.8,
    )
    if n_units:
        head = replace(
            head,
            hidden_kernel=rng.normal(size=(n_features, n_units)).astype(np.float32) / 8,
            hidden_bias=np.full(n_units, 0.1, np.float32),
            kernel=rng.normal(size=(n_units, 3)).astype(np.float32) / 10,
        )
    return head


def check_classifier(xml: Path, images: Path, predictions: Path) -> None:
    """A classifier on OpenVINO gives images what `predict` gave them."""
    import openvino
    import pyarrow.parquet

    core = openvino.Core()
    model = core.read_model(xml)
    names = json.loads(model.get_rt_info(["dtl", "class_names"]).astype(str))
    shape = model.input().get_partial_shape()
    size = shape[1].get_length(), shape[2].get_length()
    rows = pyarrow.parquet.read_table(predictions).to_pylist()[:20]
    pixels = np.stack([decode((images / row["path"]).read_bytes(), size) for row in rows])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for row, probability in zip(rows, compiled(pixels)["probabilities"], strict=True):
        assert names[probability.argmax()] == row["class"]
        assert probability.max() == pytest.approx(row["probability"], abs=1e-4)


def loss_and_gradient(
    kernel: np.ndarray,
    bias: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    l2: float = 0.0,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """The objective, ``mean cross-entropy + l2 / 2 * sum(kernel ** 2)``, and its gradient.

    The plain reference for steps, which compute in place. scikit-learn's
    ``LogisticRegression(C=1 / (l2 * n))`` minimises the same, and with `balanced_weights` its
    ``class_weight="balanced"``. The mean is over n rows whatever their weights.
    """
    n = len(labels)
    log_p = log_softmax(features @ kernel + bias)
    losses = (label_smoothing - 1) * log_p[np.arange(n), labels]
    losses -= label_smoothing * log_p.mean(axis=1)
    if class_weights is not None:
        losses *= class_weights[labels]
    loss = losses.mean() + 0.5 * l2 * (kernel * kernel).sum()
    residual = residuals(log_p, labels, label_smoothing, class_weights) / n
    return float(loss), features.T @ residual + l2 * kernel, residual.sum(axis=0)


def descend_keras_model(
    optimizer: Any,
    config: TrainConfig,
    params: Params,
    features: np.ndarray,
    labels: np.ndarray,
    batches: Sequence[np.ndarray],
    rates: Sequence[float],
    class_weights: np.ndarray | float = 1.0,
) -> list[np.ndarray]:
    """The weights of a head with a hidden layer after steps that Keras and TensorFlow took.

    Its Dense layers, cross-entropy, label smoothing, clipping and optimizer.
    """
    import keras
    import tensorflow as tf

    n_units, n_classes = params["kernel"].shape
    layers = [keras.layers.Dense(n_units, activation="relu"), keras.layers.Dense(n_classes)]
    model = keras.Sequential([keras.Input(features.shape[1:]), *layers])
    model.set_weights([params[name] for name in WEIGHTS])
    weights = model.trainable_weights
    row_weights = np.broadcast_to(np.asarray(class_weights, np.float32), n_classes)
    optimizer.global_clipnorm = config.clip_norm or None
    for rows, rate in zip(batches, rates, strict=True):
        targets = keras.utils.to_categorical(labels[rows], n_classes)
        with tf.GradientTape() as tape:
            losses = keras.losses.categorical_crossentropy(
                targets, model(features[rows]), from_logits=True,
                label_smoothing=config.label_smoothing,
            )  # fmt: skip
            loss = tf.reduce_mean(losses * row_weights[labels[rows]])
            loss += config.l2 / 2 * sum(tf.reduce_sum(layer.kernel**2) for layer in layers)
        optimizer.learning_rate = rate
        optimizer.apply(tape.gradient(loss, weights), weights)
    return [np.asarray(value) for value in model.get_weights()]


def write_store(
    url: str,
    label: np.ndarray,
    features: Callable[[int, slice], np.ndarray],
    split: np.ndarray,
    *,
    layer: str = "fc2",
    chunk_images: int = 50,
    dtype: str = "float32",
    **attrs: object,
) -> FeatureStore:
    """Write a store of images that nobody took.

    Parameters
    ----------
    label, split : (n_images,) integers
    features : callable
        Gives the rows of a chunk, (n_rows, n_features), from its number and its slice of `label`.
    """
    listed = ImageList(
        root="/nowhere",
        path=np.array([f"{k}/{i}.jpg" for i, k in enumerate(label)], np.dtypes.StringDType()),
        label=label.astype(np.int32),
        given_split=np.full(len(label), -1, np.int8),
        size_bytes=np.ones(len(label), np.int64),
        class_names=tuple(f"class {k}" for k in range(label.max() + 1)),
    )
    known = {"settings": {"made": "by a test"}, "weights_sha256": "0", "weights": "random",
             "root": "/nowhere", "left_out": [], "n_left_out": 0, "versions": {}}  # fmt: skip
    n_features = features(0, slice(0, chunk_images)).shape[1]
    storage.remove(url)  # a test may make several in one place
    store = FeatureStore.create(
        url, listed, {layer: n_features}, dtype=dtype, chunk_images=chunk_images,
        attrs=known | attrs,
    )  # fmt: skip
    for chunk in range(store.n_chunks):
        rows = store.rows(chunk)
        values = features(chunk, rows).astype(dtype)
        hashes = np.arange(rows.start, rows.stop, dtype=np.uint64)
        store.write_chunk(chunk, {layer: values}, hashes, [""] * len(hashes))
    store.write_split(split.astype(np.int8), {"made": "by a test"})
    return store


def gaussian_store(
    url: str,
    n_images: int = 600,
    n_features: int = 20,
    n_classes: int = 5,
    *,
    chunk_images: int = 50,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    distance: float = 1.2,
) -> FeatureStore:
    """Write a store whose classes are Gaussian, of features of unlike scales."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, n_classes, n_images)
    centres = distance * rng.normal(size=(n_classes, n_features)) / np.sqrt(n_features) * 4
    features = rng.normal(size=(n_images, n_features)) * rng.uniform(0.5, 20, n_features)
    features += centres[label] * features.std(axis=0)
    features[:, 0] = 3  # a constant feature, as dead ReLUs are
    split = rng.choice(3, n_images, p=shares)
    return write_store(url, label, lambda _, rows: features[rows], split, chunk_images=chunk_images)


def rectified_store(
    url: str,
    n_images: int = 30_607,
    n_features: int = 4096,
    n_classes: int = 257,
    *,
    chunk_images: int = 256,
    shares: tuple[float, float, float] = (0.65, 0.15, 0.2),
    distance: float = 0.28,
) -> FeatureStore:
    """Write a store of features like fc2's, made up chunk by chunk.

    Sparse, not negative and correlated: rectified mixtures of fewer factors, whose means differ
    between classes by `distance`.
    """
    rng = np.random.default_rng(0)
    n_factors = n_features // 16
    centres = distance * rng.normal(size=(n_classes, n_factors)).astype(np.float32)
    mixture = rng.normal(size=(n_factors, n_features)).astype(np.float32) / np.sqrt(n_factors)
    label = rng.integers(0, n_classes, n_images)

    def features(chunk: int, rows: slice) -> np.ndarray:
        rng = np.random.default_rng([1, chunk])
        classes = label[rows]
        factors = rng.normal(size=(len(classes), n_factors)).astype(np.float32)
        noise = rng.normal(size=(len(classes), n_features)).astype(np.float32)
        return np.maximum((centres[classes] + factors) @ mixture + 0.5 * noise - 1, 0)

    split = np.random.default_rng(2).choice(3, n_images, p=shares)
    return write_store(url, label, features, split, chunk_images=chunk_images)
