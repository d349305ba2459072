from __future__ import annotations

from dataclasses import replace

import numpy as np
import psutil
import pytest
from keras_models import FIRST

from dtl.config.errors import UserError
from dtl.features.network import architecture
from dtl.features.network.keras_network import Network
from dtl.features.network.quiet_keras import keras


def test_layers_that_keras_names_itself_have_one_name_whatever_was_made_before() -> None:
    """Keras numbers them over all models of a process."""
    description = architecture.describe("MobileNetV3Small", ("re_lu_1",), "avg")
    assert {"re_lu", "re_lu_1", "activation"} <= {layer.name for layer in description.layers}
    keras.applications.MobileNetV3Small(weights=None)
    network = Network(replace(FIRST, name="MobileNetV3Small", layers=("re_lu_1",)))
    assert network.description.n_features == {"re_lu_1": 16}
    assert {"re_lu", "re_lu_1"} <= {layer.name for layer in network.model.layers}
    assert network.compute(np.zeros((1, 224, 224, 3), "u1"))["re_lu_1"].shape == (1, 16)


def test_describe_vgg16() -> None:
    layers = ("fc1", "fc2", "predictions", "block5_pool")
    found = architecture.describe("VGG16", layers, "avg")
    assert found.n_features == {"fc1": 4096, "fc2": 4096, "predictions": 1000, "block5_pool": 512}
    assert found.input_size == (224, 224)
    assert found.weights_bytes == 4 * 138_357_544
    assert architecture.describe("VGG16", ("fc2",), "avg").weights_bytes == 4 * 134_260_544
    flat = architecture.describe("VGG16", ("block5_pool",), "flatten")
    assert flat.n_features == {"block5_pool": 7 * 7 * 512}
    assert [(layer.name, layer.kind) for layer in flat.layers[-5:]] == [
        ("block5_pool", "MaxPooling2D"), ("flatten", "Flatten"), ("fc1", "Dense"), ("fc2", "Dense"),
        ("predictions", "Dense"),
    ]  # fmt: skip
    fc1 = flat.layers[-3]
    assert (fc1.output_shape, fc1.n_parameters) == ((4096,), 25088 * 4096 + 4096)
    assert "block5_conv3" in flat.used
    assert not {"flatten", "fc1", "fc2"} & flat.used


@pytest.mark.parametrize("network", ["InceptionV3", "Xception"])
def test_describe_networks_of_another_size(network: str) -> None:
    found = architecture.describe(network, ("avg_pool",), "avg")
    assert found.input_size == (299, 299)
    assert found.n_features == {"avg_pool": 2048}


def test_describe_makes_no_weights() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    found = architecture.describe("VGG19", ("predictions",), "avg")
    grown = process.memory_info().rss - before
    assert found.weights_bytes == 4 * 143_667_240
    assert grown < found.weights_bytes / 4


def test_unknown_network() -> None:
    message = r"Unknown network 'VGG99'\. Known: ConvNeXtBase, .*MobileNetV2, .*VGG16, VGG19, Xcept"
    with pytest.raises(ValueError, match=message):
        architecture.describe("VGG99", ("fc2",), "avg")


def test_unknown_layer() -> None:
    message = r"has no layer 'fc3'\. It has: .*block1_conv1, .*fc1, fc2, predictions\."
    with pytest.raises(ValueError, match=message):
        architecture.describe("VGG16", ("fc2", "fc3"), "avg")
    with pytest.raises(ValueError, match=message):
        Network(replace(FIRST, layers=("fc3",)))


def test_sizes_that_a_network_takes() -> None:
    own = architecture.describe("VGG16", ("block5_pool",), "avg,max")
    assert own.n_features == {"block5_pool": 1024}
    assert own.activation_bytes == 4 * 2 * 64 * 224 * 224  # of the second convolution
    larger = architecture.describe("VGG16", ("block5_pool",), "avg", ((32, 32), (448, 448)))
    assert larger.input_size == (224, 224)
    assert larger.n_features == {"block5_pool": 512}
    assert larger.activation_bytes == 4 * own.activation_bytes
    assert architecture.describe("VGG16", ("fc2",), "avg", ((224, 224),)).n_features == {
        "fc2": 4096
    }
    with pytest.raises(UserError, match=r"block4_pool .* takes no images of 8 x 8\. Give larger"):
        architecture.describe("VGG16", ("block5_pool",), "avg", ((8, 8),))
    with pytest.raises(
        UserError, match=r"fc1 \(Dense\) takes no .* takes 224 x 224 only: cut the network before"
    ):
        architecture.describe("VGG16", ("fc2",), "avg", ((224, 224), (320, 320)))
