from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from keras_models import FIRST, draw_images
from onnx import helper, numpy_helper
from onnx_models import draw_weights, write, write_convolutions

from dtl.config.errors import UserError
from dtl.features.network.files import graph, source
from dtl.features.network.keras_network import Network
from dtl.features.network.openvino_network import OpenVinoNetwork, read_files, write_model
from dtl.features.network.quiet_openvino import core
from dtl.features.values import NetworkSpec

CAFFE = 'order = "bgr"\nmean = [103.939, 116.779, 123.68]'
node = helper.make_node


def declare(path: Path, toml: str = "") -> source.NetworkSource:
    path.with_suffix(".toml").write_text(toml)
    return source.find(str(path))


def compute(
    found: source.NetworkSource, layers: tuple[str, ...], pooling: str, images: np.ndarray
) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32"
        graph.convert(found, NetworkSpec(layers=layers, pooling=pooling), {}, path)
        model = read_files(path.with_suffix(".xml"), path.with_suffix(".bin"))
    return OpenVinoNetwork(model, "", "float32", len(images)).compute(images)


def draw_pixels(size: tuple[int, int] = (32, 32), n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, *size, 3), np.uint8)


def convolve(images: np.ndarray) -> np.ndarray:
    """The convolution of `draw_weights` with ReLU, in NumPy: (n_images, height, width, n_out)."""
    ((_, kernel, bias),) = draw_weights()
    padded = np.pad(images.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.maximum(np.einsum("nhwcij,ijco->nhwo", windows, kernel) + bias, 0)


@functools.cache
def first_block() -> tuple[Network, list[tuple[str, np.ndarray, np.ndarray]]]:
    network = Network(replace(FIRST, layers=("block1_conv1", "block1_pool")))
    names = ("block1_conv1", "block1_conv2")
    return network, [(n, *network.model.get_layer(n).get_weights()) for n in names]


@pytest.mark.parametrize("shape", [("n", 3, 224, 224), ("n", 224, 224, 3)])
def test_vgg16s_first_block_as_onnx_is_kerass(shape: tuple[Any, ...], tmp_path: Path) -> None:
    network, weights = first_block()
    write_convolutions(tmp_path / "a.onnx", weights, shape=shape, pool_after=["block1_conv2"])
    layers = ("block1_conv1", "block1_conv2_pool")
    ours = compute(declare(tmp_path / "a.onnx", CAFFE), layers, "avg", draw_images())
    wanted = network.compute(draw_images())
    np.testing.assert_allclose(ours["block1_conv1"], wanted["block1_conv1"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours[layers[1]], wanted["block1_pool"], rtol=1e-4, atol=1e-4)


def test_vgg16s_first_block_as_openvinos_own_file_is_kerass(tmp_path: Path) -> None:
    network, _ = first_block()
    network.model.export(str(tmp_path / "a.xml"), format="openvino", verbose=False)
    found = declare(tmp_path / "a.xml", CAFFE)
    model = core.read_model(tmp_path / "a.xml")
    # The export cuts off at the pooled outputs, whose names count all networks of a process.
    last = model.get_results()[1].input_value(0).get_node().get_friendly_name()
    ours = compute(found, (last,), "avg", draw_images())[last]
    wanted = network.compute(draw_images())["block1_pool"]
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
def test_preprocessing_and_pooling(pooling: str, tmp_path: Path) -> None:
    back = node("Transpose", ["conv"], ["back"], perm=[0, 2, 3, 1])
    write_convolutions(tmp_path / "a.onnx", draw_weights(), last=[back])
    toml = "scale = 0.0078125\nmean = [0.9, 1.0, 1.1]\ndeviation = [1.0, 1.1, 1.2]"
    images = draw_pixels()
    values = (images / 128 - [0.9, 1.0, 1.1]) / [1.0, 1.1, 1.2]
    wanted = convolve(values)
    found = compute(declare(tmp_path / "a.onnx", toml), ("conv", "back"), pooling, images)
    pool: dict[str, Callable[..., np.ndarray]] = {"avg": np.mean, "max": np.max}
    if pooling == "flatten":
        rows = {"conv": wanted.transpose(0, 3, 1, 2).reshape(3, -1), "back": wanted.reshape(3, -1)}
    else:
        rows = dict.fromkeys(("conv", "back"), pool[pooling](wanted, axis=(1, 2)))
    for layer, wanted_rows in rows.items():
        np.testing.assert_allclose(found[layer], wanted_rows, rtol=1e-4, atol=1e-4)
    assert found["conv"].dtype == np.float32


def test_tokens_are_averaged(tmp_path: Path) -> None:
    sizes = numpy_helper.from_array(np.array([0, 5, -1]), "sizes")
    last = [
        node("Reshape", ["conv", "sizes"], ["rows"]),
        node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
    ]
    write_convolutions(tmp_path / "a.onnx", draw_weights(), last=last, initializers=[sizes])
    images, found = draw_pixels(), declare(tmp_path / "a.onnx")
    ours = compute(found, ("tokens",), "avg", images)["tokens"]
    np.testing.assert_allclose(ours, convolve(images).mean((1, 2)), rtol=1e-4)


def test_a_network_of_any_size_takes_the_declared_one(tmp_path: Path) -> None:
    write_convolutions(tmp_path / "a.onnx", draw_weights(), shape=("n", 3, "h", "w"))
    images = draw_pixels((24, 40))
    ours = compute(declare(tmp_path / "a.onnx", "size = [24, 40]"), ("conv",), "avg", images)
    np.testing.assert_allclose(ours["conv"], convolve(images).mean((1, 2)), rtol=1e-4)
    with pytest.raises(UserError, match=r"any size .* Add the one to use to .*a\.toml"):
        graph.read(declare(tmp_path / "a.onnx"), ("conv",), "avg")


def test_description(tmp_path: Path) -> None:
    found = make(tmp_path, pool_after=["conv"])
    description = graph.describe(found, ("conv",), "avg")
    assert description.input_size == (32, 32)
    assert description.n_features == {"conv": 5}
    assert description.weights_bytes == 4 * (27 * 5 + 5)
    assert [(layer.name, layer.output_shape) for layer in description.layers] == [
        ("conv_sum", (5, 32, 32)), ("conv", (5, 32, 32)), ("conv_pool", (5, 16, 16)),
    ]  # fmt: skip
    assert [layer.n_parameters for layer in description.layers] == [27 * 5 + 5, 0, 0]
    assert description.used == {"conv_sum", "conv"}


def test_the_same_file_has_the_same_bytes_and_another_declaration_others(tmp_path: Path) -> None:
    made = []
    for k, toml in enumerate(["", "", 'order = "bgr"']):
        model = graph.read(make(tmp_path, toml=toml), ("conv",), "avg")
        made.append(write_model(model, tmp_path / f"made{k}", "", {}).sha256)
    assert made[0] == made[1] != made[2]


def make(folder: Path, toml: str = "", **options: Any) -> source.NetworkSource:
    write_convolutions(folder / "a.onnx", draw_weights(), **options)
    return declare(folder / "a.onnx", toml)


SQUASH = [node("Reshape", ["conv", "sizes"], ["row"])]
SIZES = [numpy_helper.from_array(np.array([1, 5 * 32 * 32]), "sizes")]


@pytest.mark.parametrize(
    ("options", "layer", "message"),
    [
        ({}, "con_sum", r"no output 'con_sum'\. Did you mean conv_sum.*last are: conv_sum, conv"),
        ({"shape": ("n", 3, 8)}, "conv", "is no network that OpenVINO reads|is no image of"),
        ({"toml": "size = [64, 64]"}, "conv", r"a\.toml declares size = \[64, 64\], but the input"),
        ({"toml": 'layout = "nhwc"'}, "conv", "3 channels where layout = nhwc has them"),
        (
            {"shape": (1, 3, 32, 32), "last": SQUASH, "initializers": SIZES},
            "row", "does not take images|depend on how many .*any number of images",
        ),
        ({"shape": ("n", 3, 3, 3)}, "conv", r"where its channels are\. Add to .*layout = "),
        ({"last": [node("Shape", ["conv"], ["sizes"])]}, "sizes", "must be .images, features."),
        ({"last": [node("Log", ["low"], ["logs"])]}, "logs", "is no network that OpenVINO reads"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], layer: str, message: str, tmp_path: Path
) -> None:
    found = make(tmp_path, **options)
    with pytest.raises(UserError, match=message):
        graph.read(found, (layer,), "avg")


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    last = [node("Neg", ["conv"], ["low"]), node("Log", ["low"], ["logs"])]
    with pytest.raises(UserError, match=r"are not finite.*declaration, is wrong"):
        graph.read(make(tmp_path, last=last), ("logs",), "avg")


def test_an_operation_that_openvino_lacks(tmp_path: Path) -> None:
    odd = [node("Odd", ["conv"], ["odd"], domain="ours")]
    with pytest.raises(UserError, match=r"a\.onnx .*Odd"):
        graph.read(make(tmp_path, last=odd), ("odd",), "avg")


def test_layouts_that_the_operations_do_not_tell(tmp_path: Path) -> None:
    sizes = numpy_helper.from_array(np.array([0, 8, 20, 32]), "sizes")
    last = [node("Reshape", ["conv", "sizes"], ["odd"])]
    found = make(tmp_path, last=last, initializers=[sizes])
    with pytest.raises(UserError, match=r"odd .*which of these are channels.*flatten"):
        graph.read(found, ("odd",), "avg")
    assert graph.describe(found, ("odd",), "flatten").n_features == {"odd": 5 * 32 * 32}


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    both = helper.make_graph(
        [node("Add", ["image", "mask"], ["sum"])], "network",
        [helper.make_tensor_value_info(n, 1, ["n", 3, 8, 8]) for n in ("image", "mask")],
        [helper.make_tensor_value_info("sum", 1, None)],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(both, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"In .*a\.onnx they take: (image, mask|mask, image)\."):
        graph.read(declare(tmp_path / "a.onnx"), ("sum",), "avg")


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    make(tmp_path)
    model = onnx.load(str(tmp_path / "a.onnx"))
    onnx.save_model(
        model, str(tmp_path / "b.onnx"), save_as_external_data=True, location="b.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    found, images = declare(tmp_path / "b.onnx"), draw_pixels()
    ours = compute(found, ("conv",), "avg", images)["conv"]
    np.testing.assert_allclose(ours, convolve(images).mean((1, 2)), rtol=1e-4)
    data = bytearray((tmp_path / "b.onnx.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "b.onnx.data").write_bytes(data)
    assert source.find(found.url).sha256 != found.sha256
    with pytest.raises(UserError, match="is not the file that it was"):
        graph.read(found, ("conv",), "avg")
    (tmp_path / "b.onnx.data").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"must lie beside it, named NAME\.onnx\.data"):
        graph.read(source.find(found.url), ("conv",), "avg")


@pytest.mark.parametrize("name", ["a.onnx", "a.xml"])
def test_files_that_are_no_networks(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / name).write_text("hello")
    with pytest.raises(UserError, match=rf"{re.escape(name)} is no network that OpenVINO reads: "):
        graph.read(declare(tmp_path / name), ("conv",), "avg")


def test_a_graph_of_one_constant_has_no_image(tmp_path: Path) -> None:
    ones = numpy_helper.from_array(np.ones((1, 3), np.float32), "ones")
    write(tmp_path / "a.onnx", [node("Neg", ["ones"], ["low"])], [ones], ("n", 3, 8, 8), "low")
    with pytest.raises(UserError, match="take one input, the image"):
        graph.read(declare(tmp_path / "a.onnx"), ("low",), "avg")
