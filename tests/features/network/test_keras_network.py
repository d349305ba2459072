from __future__ import annotations

import random
import threading
from dataclasses import replace

import numpy as np
import pytest
from keras_models import FIRST, draw_images, keras_batch, outputs, own, own_convolutions

from dtl.features.network import keras_network
from dtl.features.network.keras_network import Network
from dtl.features.network.quiet_keras import keras
from dtl.features.values import NetworkSpec

# Keras' own, while it writes a file: TensorFlow's arrays are older than NumPy's `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return draw_images()


# --- what it computes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_fc2_of_an_untrained_vgg16_is_that_of_keras_own(images: np.ndarray) -> None:
    expected = outputs(own(5), "fc2", keras_batch(images))
    stop = threading.Event()

    def draw() -> None:  # as threads of Dask do
        while not stop.is_set():
            random.random()
            stop.wait(1e-4)

    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        network = Network(NetworkSpec(weights="random", seed=5))
    finally:
        stop.set()
        drawing.join()
    found = network.compute(images)["fc2"]
    assert found.shape == (2, 4096)
    assert found.dtype == np.float32
    assert np.ptp(expected, axis=0).max() > 0.01  # the pictures differ, and so do their features
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_several_layers_in_one_pass_equal_each_alone(images: np.ndarray) -> None:
    layers = ("block2_pool", "block1_conv1", "block1_pool")
    together = Network(replace(FIRST, layers=layers))
    found = together.compute(images)
    assert list(found) == list(layers)
    assert [values.shape[1] for values in found.values()] == [128, 64, 64]
    for layer in layers:
        alone = Network(replace(FIRST, layers=(layer,))).compute(images)[layer]
        assert alone.any()
        assert np.allclose(found[layer], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
def test_pooling_is_that_of_numpy(images: np.ndarray, pooling: str) -> None:
    maps = outputs(own_convolutions(5), "block1_pool", keras_batch(images))
    assert maps.shape == (2, 112, 112, 64)
    expected = {
        "avg": maps.mean(axis=(1, 2), dtype=np.float64),
        "max": maps.max(axis=(1, 2)),
        "flatten": maps.reshape(2, -1),
    }[pooling]
    network = Network(replace(FIRST, pooling=pooling))
    found = network.compute(images)["block1_pool"]
    assert network.description.n_features == {"block1_pool": expected.shape[1]}
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_average_and_maximum_side_by_side_are_each_of_unit_length(images: np.ndarray) -> None:
    network = Network(replace(FIRST, pooling="avg,max"))
    found = network.compute(images)["block1_pool"]
    assert network.description.n_features == {"block1_pool": 128}
    maps = outputs(own_convolutions(5), "block1_pool", keras_batch(images)).astype(np.float64)
    pooled = [maps.mean(axis=(1, 2)), maps.max(axis=(1, 2))]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pooled]
    np.testing.assert_allclose(found, np.hstack(unit), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("network", "layer"), [("VGG16", "block2_pool"), ("MobileNetV2", "Conv1")])
def test_another_size_is_the_network_that_keras_makes_for_it(network: str, layer: str) -> None:
    spec = replace(FIRST, name=network, layers=(layer,))
    ours = Network(spec)
    own = getattr(keras.applications, network)(
        weights=None, include_top=False, input_shape=(96, 64, 3)
    )
    for each in own.layers:
        if each.get_weights() and each.name in [known.name for known in ours.model.layers]:
            each.set_weights(ours.model.get_layer(each.name).get_weights())
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), np.uint8)
    module = {"VGG16": "vgg16", "MobileNetV2": "mobilenet_v2"}[network]
    batch = getattr(keras.applications, module).preprocess_input(images.astype(np.float32))
    expected = outputs(own, layer, batch).mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(ours.compute(images)[layer], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "module"), [("VGG16", "vgg16"), ("MobileNetV2", "mobilenet_v2")]
)
def test_preprocessing_is_that_of_keras(images: np.ndarray, network: str, module: str) -> None:
    layer = {"VGG16": "block1_conv1", "MobileNetV2": "Conv1"}[network]
    made = Network(replace(FIRST, name=network, layers=(layer,), pooling="flatten"))
    batch = getattr(keras.applications, module).preprocess_input(images.astype(np.float32))
    expected = made.model.predict_on_batch(batch)
    before = images.copy()
    found = made.compute(images)[layer]
    assert np.ptp(found) > 0.1
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert (images == before).all()


def test_dl4j_preprocessing_is_bgr_with_the_means_in(images: np.ndarray) -> None:
    network = Network(replace(FIRST, preprocess="dl4j"))
    features = network.compute(images)["block1_pool"]
    maps = outputs(own_convolutions(5), "block1_pool", images[..., [2, 1, 0]].astype(np.float32))
    assert np.allclose(features, maps.mean(axis=(1, 2), dtype=np.float64), rtol=1e-4, atol=1e-3)


def test_another_network(images: np.ndarray) -> None:
    keras.utils.set_random_seed(5)
    mobile = keras.applications.MobileNetV2(weights=None)
    batch = keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))
    network = Network(replace(FIRST, name="MobileNetV2", layers=("block_2_add",)))
    found = network.compute(images)["block_2_add"]
    expected = outputs(mobile, "block_2_add", batch).mean(axis=(1, 2), dtype=np.float64)
    assert np.abs(expected).max() > 1e-3
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    "bfloat16" not in keras_network.list_precisions(), reason="no bfloat16 in this processor"
)
def test_bfloat16_is_float32_with_fewer_digits(images: np.ndarray) -> None:
    exact, fast = (Network(replace(FIRST, precision=p)) for p in ("float32", "bfloat16"))
    assert fast.weights_sha256 == exact.weights_sha256
    assert keras.config.dtype_policy().name == "float32"  # put back
    expected, found = (n.compute(images)["block1_pool"] for n in (exact, fast))
    assert found.dtype == np.float32
    assert not np.allclose(found, expected, rtol=1e-6)
    # 8 bits of a significand; values near 0 are differences of larger ones.
    assert np.allclose(found, expected, rtol=0.02, atol=0.02 * expected.max())


def test_a_process_loads_a_network_once() -> None:
    first = keras_network.load(FIRST)
    assert keras_network.load(replace(FIRST)) is first
    assert keras_network.load(replace(FIRST, seed=6)) is not first
