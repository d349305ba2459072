"""What several test files share: clusters, pictures, and the data that lies beside the project."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster
from PIL import Image

from dtl import cluster, config
from dtl.storage import FeatureStore
from dtl.types import ImageList

DATA = Path(os.environ.get("DTL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The real photographs and weights."""
    if not (DATA / "caltech256").is_dir():
        pytest.skip(f"no photographs at {DATA}; DTL_DATA can say where they are")
    return DATA


@pytest.fixture(scope="session")
def threads() -> Iterator[Client]:
    """Two workers that are threads of this process: quick, for what needs no Keras."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def processes() -> Iterator[Client]:
    """One worker process, as a run has it."""
    settings = config.build({"cluster": {"n_workers": 1, "dashboard_address": ":0"}})
    with cluster.connect(settings.cluster) as client:
        yield client


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of eight small pictures, each of one colour and some noise."""
    folder = tmp_path / "pictures"
    draw(folder, {"blue": (20, 20, 200), "green": (20, 180, 20), "red": (200, 20, 20)}, 8)
    return folder


def draw(folder: Path, colours: dict[str, tuple[int, int, int]], n: int) -> None:
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(colour, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{i}.jpg").write_bytes(jpeg(pixels))


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


MakeStore = Callable[..., FeatureStore]


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
