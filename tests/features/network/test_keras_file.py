from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from keras_models import FIRST, draw_images

from dtl.config.errors import UserError
from dtl.features.network import architecture, conversion, network_file
from dtl.features.network.files import keras_file, source
from dtl.features.network.files.source import NetworkSource
from dtl.features.network.keras_network import Network
from dtl.features.network.openvino_network import OpenVinoNetwork, read_files
from dtl.features.network.quiet_keras import keras
from dtl.features.values import NetworkSpec

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CAFFE = 'order = "bgr"\nmean = [103.939, 116.779, 123.68]'


def save(model: keras.Model, folder: Path, toml: str = "") -> NetworkSource:
    model.save(folder / "a.keras")
    (folder / "a.toml").write_text(toml)
    return source.find(str(folder / "a.keras"))


def small(size: int | None = 16, **options: object) -> keras.Model:
    image = keras.Input((size, size, 3))
    convolved = keras.layers.Conv2D(4, 3, name="conv", **options)(image)
    return keras.Model(image, keras.layers.ReLU(name="relu")(convolved))


def test_vgg16s_first_block_in_a_file_is_itself_on_both_engines(tmp_path: Path) -> None:
    own = Network(FIRST)
    found = save(own.model, tmp_path, CAFFE)
    spec = NetworkSpec(found, FIRST.layers)
    ours, wanted = Network(spec), own.compute(draw_images())["block1_pool"]
    assert ours.weights_sha256 == own.weights_sha256
    assert ours.description.n_features == own.description.n_features
    assert ours.description.weights_bytes == own.description.weights_bytes
    np.testing.assert_allclose(
        ours.compute(draw_images())["block1_pool"], wanted, rtol=1e-4, atol=1e-4
    )
    made = conversion.convert_file(found, spec, {}, tmp_path / "float32")
    assert made.source_sha256 == own.weights_sha256
    model = read_files(tmp_path / "float32.xml", tmp_path / "float32.bin")
    converted = OpenVinoNetwork(model, "", "float32", 2).compute(draw_images())
    np.testing.assert_allclose(converted["block1_pool"], wanted, rtol=1e-4, atol=1e-4)


def test_a_network_of_any_size_takes_the_declared_one(tmp_path: Path) -> None:
    model = small(None)
    ours = Network(NetworkSpec(save(model, tmp_path, "size = [12, 20]"), ("conv",)))
    assert ours.description.input_size == (12, 20)
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), np.uint8)
    wanted = model.get_layer("conv")(images.astype(np.float32)).numpy().mean((1, 2))
    np.testing.assert_allclose(ours.compute(images)["conv"], wanted, rtol=1e-4, atol=1e-3)
    with pytest.raises(UserError, match=r"takes images of any size\. Add the one to use to .*toml"):
        keras_file.load(save(model, tmp_path))


def test_tokens_are_averaged(tmp_path: Path) -> None:
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Reshape((64, 3), name="tokens")(image))
    ours = Network(NetworkSpec(save(model, tmp_path), ("tokens",)))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    found = ours.compute(images)["tokens"]
    np.testing.assert_allclose(found, images.mean((1, 2)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "toml", "message"),
    [
        (small, "size = [8, 8]", r"declares size = \[8, 8\], but .* takes images of \[16, 16\]"),
        (small, 'layout = "nchw"', "declares layout = nchw"),
        (lambda: keras.Sequential([keras.Input((7,)), keras.layers.Dense(2)]), "", "one colour"),
        (
            lambda: keras.Sequential(
                [keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x + 1)]
            ),
            "", r"no network that Keras reads: .*lambda layers .*export it as \.onnx",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    model: type[keras.Model], toml: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        keras_file.load(save(model(), tmp_path, toml))


@pytest.mark.slow
def test_files_that_are_no_networks_are_refused_by_another_process(tmp_path: Path) -> None:
    found = save(small(), tmp_path)
    description = source.describe(found, ("relu",), "avg")
    assert description.n_features == {"relu": 4}
    assert description == architecture.describe(found, ("relu",), "avg")
    (tmp_path / "a.keras").write_bytes((tmp_path / "a.keras").read_bytes()[:900])
    with pytest.raises(UserError, match=r"a\.keras is no network that Keras reads"):
        source.describe(source.find(found.url), ("relu",), "avg")


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    found = save(small(), tmp_path)
    with pytest.raises(UserError, match="is not the file that it was"):
        keras_file.load(replace(found, sha256="0"))


def test_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        source.find(str(tmp_path / "a.onnx"))
    (tmp_path / "a.onnx").write_bytes(b"1")
    with pytest.raises(UserError, match=r"a\.toml is not there(.|\n)*scale = 0\.0039"):
        source.find(str(tmp_path / "a.onnx"))
    (tmp_path / "a.toml").write_text("order = 3")
    with pytest.raises(UserError, match=r"a\.toml: order must be one of rgb, bgr"):
        source.find(str(tmp_path / "a.onnx"))
    (tmp_path / "b.xml").write_bytes(b"1")
    with pytest.raises(UserError, match=r"b\.bin is not there\. It holds the weights of .*b\.xml"):
        source.find(str(tmp_path / "b.xml"))
    (tmp_path / "b.bin").write_bytes(b"2")
    (tmp_path / "b.toml").write_text("")
    found = source.find(str(tmp_path / "b.xml"))
    assert found.sha256 == network_file.hash_files(tmp_path / "b.xml", tmp_path / "b.bin")
    assert found.fingerprint["network"] == f"xml file, SHA-256 {found.sha256}"
    with source.local_files(found) as path:
        assert sorted(each.name for each in path.parent.iterdir()) == ["b.bin", "b.xml"]
