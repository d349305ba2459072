"""Operations that are counted from shapes are those that TensorFlow's profiler counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx_models import draw_weights, write_convolutions
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from dtl.features.network import architecture
from dtl.features.network.classifiers.quiet_tensorflow import tf
from dtl.features.network.files import graph, source
from dtl.features.network.flop import count_flop, find_calls
from dtl.features.network.quiet_keras import keras

PRODUCTS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul", "Conv2DBackpropInput"}


def count(model: keras.Model) -> dict[str, int | None]:
    calls = find_calls(model)
    return {each.name: count_flop(each, calls[each.name]) for each in model.operations}


def profile(model: keras.Model) -> int:
    shapes = [tf.TensorSpec((1, *each.shape[1:])) for each in model.inputs]
    traced = tf.function(lambda *x: model(x[0], training=False)).get_concrete_function(*shapes)
    frozen = convert_variables_to_constants_v2(traced).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    waiting = [tf.compat.v1.profiler.profile(frozen, options=options, cmd="op")]
    total = 0
    while waiting:
        node = waiting.pop()
        total += node.float_ops if node.name in PRODUCTS else 0
        waiting += node.children
    return total


@pytest.mark.parametrize("name", ["MobileNet", "ResNet50", "EfficientNetB0"])
def test_networks_as_the_profiler_counts_them(name: str) -> None:
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=10)
    assert sum(count(model).values()) == profile(model) > 10**7


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(6, 3, strides=2, padding="same"),
        keras.layers.Conv2D(6, 3, dilation_rate=2),
        keras.layers.SeparableConv2D(5, 3, depth_multiplier=2),
        keras.layers.DepthwiseConv2D(5, padding="same"),
        keras.layers.Dense(7),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_as_the_profiler_counts_them(layer: Any) -> None:
    image = keras.Input((16, 12, 4))
    model = keras.Model(image, layer(image))
    assert sum(count(model).values()) == profile(model) > 0


def test_groups_of_channels_and_positions_of_inputs() -> None:
    image = keras.Input((16, 12, 4))
    grouped = keras.Model(image, keras.layers.Conv2D(6, 3, groups=2, padding="same")(image))
    assert sum(count(grouped).values()) == 2 * 16 * 12 * 6 * 9 * 2  # of two channels each
    transposed = keras.Model(image, keras.layers.Conv2DTranspose(6, 3, strides=2)(image))
    assert sum(count(transposed).values()) == 2 * 16 * 12 * 4 * 9 * 6


@pytest.mark.parametrize(
    ("name", "layer", "billions"),
    [
        # Simonyan and Zisserman (2015) by hand; He et al. (2016) 3.8 to 3.9; Sandler et al. (2018);
        # Szegedy et al. (2016) 5.7; Liu et al. (2022) 4.5.
        ("VGG16", "fc2", 15.466), ("ResNet50", "avg_pool", 3.86),
        ("MobileNetV2", "global_average_pooling2d", 0.30), ("InceptionV3", "avg_pool", 5.71),
        ("ConvNeXtTiny", "convnext_tiny_head_gap", 4.46),
    ],
)  # fmt: skip
def test_multiply_adds_that_papers_have(name: str, layer: str, billions: float) -> None:
    found = architecture.describe(name, (layer,), "avg")
    assert found.flop / 2e9 == pytest.approx(billions, rel=0.01)


def test_attention() -> None:
    tokens = keras.Input((9, 8))
    model = keras.Model(tokens, keras.layers.MultiHeadAttention(2, 3)(tokens, tokens))
    projections = 4 * 9 * 8 * 6
    pairs = 2 * 2 * 9 * 9 * 3  # scores and means, of each head
    assert sum(count(model).values()) == 2 * (projections + pairs)


def test_what_is_not_known_is_no_number() -> None:
    tokens = keras.Input((9, 8))
    model = keras.Model(tokens, keras.layers.LSTM(4)(tokens))
    assert None in count(model).values()
    anything = keras.Input((None, None, 3))
    assert None in count(keras.Model(anything, keras.layers.Conv2D(4, 3)(anything))).values()


def test_narrow_kernels_masks_and_constants() -> None:
    image = keras.Input((4, 4, 3))
    assert sum(count(keras.Model(image, keras.layers.Conv2D(1, 1)(image))).values()) == 2 * 16 * 3
    row = keras.Input((4,))
    assert sum(count(keras.Model(row, keras.layers.Dense(1)(row))).values()) == 2 * 4
    maps = keras.Input((2, 3, 8))
    attended = keras.layers.Attention()([maps, maps])
    assert None in count(keras.Model(maps, attended)).values()
    constant = keras.ops.ones((7, 5))
    tokens = keras.Input((5, 4))
    assert None in count(keras.Model(tokens, keras.ops.matmul(constant, tokens))).values()


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    one, other = keras.Input((8,)), keras.Input((8,))
    dense = keras.layers.Dense(4)
    model = keras.Model([one, other], keras.layers.Add()([dense(one), dense(other)]))
    assert sum(count(model).values()) == 2 * 2 * 8 * 4


def test_a_file_counts_as_keras_does(tmp_path: Path) -> None:
    write_convolutions(tmp_path / "a.onnx", draw_weights())
    (tmp_path / "a.toml").touch()
    found = graph.describe(source.find(str(tmp_path / "a.onnx")), ("conv",), "avg")
    assert found.flop == 2 * 27 * 5 * 32 * 32
    assert [layer.inputs for layer in found.layers] == [(), (0,)]
