"""Runs with a network of one's own, in a file."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import COLOURS, THREADS, Run, check_classifier, draw

from dtl import storage
from dtl.features.store import FeatureStore

sys.path.insert(0, str(Path(__file__).parents[1] / "features" / "network"))
from onnx_models import draw_weights, write_convolutions


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network-files") / "pictures"
    draw(folder, COLOURS, 16)
    return folder


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often a file is read for its hash: a network's may have gigabytes."""
    counts, sha256 = Counter[str](), storage.sha256

    def count(url: str) -> str:
        counts[url] += 1
        return sha256(url)

    monkeypatch.setattr(storage, "sha256", count)
    return counts


def test_a_run_with_an_onnx_file(
    photographs: Path, tmp_path: Path, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = tmp_path / "mine.onnx"
    write_convolutions(onnx, draw_weights())
    network = ["--features.network", onnx, "--features.layers", "conv"]
    options = [
        "--images", photographs, "--out", tmp_path / "out", *network, "--features.engine",
        "openvino", "--features.precision", "float32", "--train.epochs", "10", *THREADS,
    ]  # fmt: skip
    done = here("run", *options)
    assert "mine.toml is not there" in done.stderr
    (tmp_path / "mine.toml").write_text("scale = 0.00392156862745098\n")
    n_read = count_hashes(monkeypatch)
    done = here("run", *options)
    assert done.returncode == 0, done.stderr
    assert n_read[str(onnx)] == 1
    summary = here("summary", *network, "--features.engine", "openvino").stdout
    assert (
        "mine.toml declares it: size = [32, 32], order = rgb, scale = 0.00392156862745098,"
        in summary
    )
    store = FeatureStore.open(str(tmp_path / "out" / "features.zarr"))
    made = store.fingerprint
    assert made["network"].startswith("onnx file, SHA-256 ")
    assert made["input"]["scale"] == 1 / 255
    assert made["weights"] == "in the network's file"
    assert store.read("conv").shape == (48, 5)
    assert np.isfinite(store.read("conv")).all()

    # The same file elsewhere is the same network.
    (tmp_path / "moved").mkdir()
    for name in ("mine.onnx", "mine.toml"):
        shutil.copy(tmp_path / name, tmp_path / "moved")
    moved = [tmp_path / "moved" / "mine.onnx" if each is onnx else each for each in options]
    assert "done before" in (again := here("run", *moved)).stdout + again.stderr
    predicted = here(
        "predict", "--model", tmp_path / "out", "--images", photographs, "--out", tmp_path / "p",
        *THREADS,
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    rows = pq.read_table(tmp_path / "p").to_pylist()
    assert sum(row["class"] == row["path"].split("/")[0] for row in rows) > 40
    exported = here("export", "--model", tmp_path / "out", "--out", tmp_path / "c.keras")
    assert (
        f"is no network of Keras, so that with the head it is no keras model. Export it for "
        f"OpenVINO: --out {tmp_path}/c.xml" in exported.stderr
    )
    exported = here("export", "--model", tmp_path / "out", "--out", tmp_path / "c.xml")
    assert exported.returncode == 0, exported.stderr
    check_classifier(tmp_path / "c.xml", photographs, tmp_path / "p")
    weights = tmp_path / "out" / "network" / "converted.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused = here("export", "--model", tmp_path / "out", "--out", tmp_path / "d.xml")
    assert "are damaged, or those of another network" in refused.stderr
    assert not list(tmp_path.glob("d.*"))
    derived = here(
        "derive", "--model", tmp_path / "out", "--out", tmp_path / "d", *network[2:], *THREADS
    )
    assert "computed by OpenVINO" in derived.stderr

    (tmp_path / "moved" / "mine.toml").write_text('order = "bgr"\n')
    other = here("run", *moved)
    assert other.returncode != 0
    assert "input" in other.stderr
    predicted = here(
        "predict", "--model", tmp_path / "out", "--images", photographs, "--out", tmp_path / "q",
        "--features.network", tmp_path / "moved" / "mine.onnx",
    )  # fmt: skip
    assert predicted.returncode != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.onnx"], "runs on OpenVINO, and not on TensorFlow. Set --features.engine openvino"),
        (["a.keras", "--features.weights", "w.h5"], "has its own weights. Leave"),
        (["a.keras", "--features.preprocess", "dl4j"], "has a declaration of what its input wants"),
        (["a.keras", "--train.hidden-start", "network", "--train.hidden-units", "8"], "Use random"),
        (["no/a.keras"], "no/a.keras"),
        (["ResNet51"], "Unknown network 'ResNet51'. Known: "),
    ],
)
def test_options_that_do_not_go_with_a_file(
    arguments: list[str], message: str, photographs: Path, tmp_path: Path, here: Run
) -> None:
    done = here(
        "run", "--images", photographs, "--out", tmp_path, *THREADS, "--features.network",
        *arguments,
    )  # fmt: skip
    assert done.returncode != 0
    assert message in done.stderr
