from __future__ import annotations

import os
import random
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from dtl.features import networks
from dtl.features.networks import Network
from dtl.features.values import NetworkSpec
from dtl.head.model import Head

keras = networks.keras

# Keras' own, while it writes a file: TensorFlow's arrays are older than NumPy's `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FIRST = NetworkSpec(layers=("block1_pool",), weights="random", seed=5)
"""VGG16 after its first block: real, and quick to compute."""

VGG16_ARRAYS = [
    *((f"block{b + 1}_conv{c + 1}", (3, 3, n_in if c == 0 else n_out, n_out), (n_out,))
      for b, (n_convs, n_in, n_out) in enumerate(
          [(2, 3, 64), (2, 64, 128), (3, 128, 256), (3, 256, 512), (3, 512, 512)])
      for c in range(n_convs)),
    ("fc1", (25088, 4096), (4096,)),
    ("fc2", (4096, 4096), (4096,)),
    ("predictions", (4096, 1000), (1000,)),
]  # fmt: skip


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two pictures with coarse structure, as a network sees differences in."""
    coarse = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def own(seed: int, **options: object) -> keras.Model:
    """Keras' own application, untrained."""
    keras.utils.set_random_seed(seed)
    return keras.applications.VGG16(weights=None, **options)


def own_convolutions(seed: int) -> keras.Model:
    return own(seed, include_top=False, input_shape=(224, 224, 3))


def outputs(model: keras.Model, layer: str, batch: np.ndarray) -> np.ndarray:
    """What a layer of a whole model puts out, without any code of dtl."""
    return keras.Model(model.inputs[0], model.get_layer(layer).output).predict_on_batch(batch)


def keras_batch(images: np.ndarray) -> np.ndarray:
    return keras.applications.vgg16.preprocess_input(images.astype(np.float32))


def legacy_h5(path: Path, arrays: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> Path:
    """A file in the layout of Keras 1 and 2, of zeros that take no space on the disk."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name, *_ in arrays]
        for name, kernel, bias in arrays:
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
            group.create_dataset(f"{name}/kernel:0", kernel, "f4")
            group.create_dataset(f"{name}/bias:0", bias, "f4")
    return path


# --- what it computes ----------------------------------------------------------------------------


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
    found = together.features(images)
    assert list(found) == list(layers)
    assert [values.shape[1] for values in found.values()] == [128, 64, 64]
    for layer in layers:
        alone = Network(replace(FIRST, layers=(layer,))).features(images)[layer]
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


@pytest.mark.parametrize(
    ("network", "module"), [("VGG16", "vgg16"), ("MobileNetV2", "mobilenet_v2")]
)
def test_preprocessing_is_that_of_keras(images: np.ndarray, network: str, module: str) -> None:
    layer = {"VGG16": "block1_conv1", "MobileNetV2": "Conv1"}[network]
    made = Network(replace(FIRST, network=network, layers=(layer,), pooling="flatten"))
    batch = getattr(keras.applications, module).preprocess_input(images.astype(np.float32))
    expected = made.model.predict_on_batch(batch)
    before = images.copy()
    found = made.features(images)[layer]
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
    network = Network(replace(FIRST, network="MobileNetV2", layers=("block_2_add",)))
    found = network.compute(images)["block_2_add"]
    expected = outputs(mobile, "block_2_add", batch).mean(axis=(1, 2), dtype=np.float64)
    assert np.abs(expected).max() > 1e-3
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_that_keras_names_itself_have_one_name_whatever_was_made_before() -> None:
    """Keras numbers them over all models of a process."""
    description = networks.describe("MobileNetV3Small", ("re_lu_1",), "avg")
    assert {"re_lu", "re_lu_1", "activation"} <= {layer.name for layer in description.layers}
    keras.applications.MobileNetV3Small(weights=None)
    network = Network(replace(FIRST, network="MobileNetV3Small", layers=("re_lu_1",)))
    assert network.description.n_features == {"re_lu_1": 16}
    assert {"re_lu", "re_lu_1"} <= {layer.name for layer in network.model.layers}
    assert network.compute(np.zeros((1, 224, 224, 3), "u1"))["re_lu_1"].shape == (1, 16)


@pytest.mark.skipif(
    "bfloat16" not in networks.list_precisions(), reason="no bfloat16 in this processor"
)
def test_bfloat16_is_float32_with_fewer_digits(images: np.ndarray) -> None:
    exact, fast = (Network(replace(FIRST, precision=p)) for p in ("float32", "bfloat16"))
    assert fast.weights_sha256 == exact.weights_sha256
    assert keras.config.dtype_policy().name == "float32"  # put back
    expected, found = (n.features(images)["block1_pool"] for n in (exact, fast))
    assert found.dtype == np.float32
    assert not np.allclose(found, expected, rtol=1e-6)
    # 8 bits of a significand; values near 0 are differences of larger ones.
    assert np.allclose(found, expected, rtol=0.02, atol=0.02 * expected.max())


def test_a_process_loads_a_network_once() -> None:
    first = networks.load(FIRST)
    assert networks.load(replace(FIRST)) is first
    assert networks.load(replace(FIRST, seed=6)) is not first


# --- weights -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights() -> None:
    first, same, other = (Network(replace(FIRST, seed=s)).weights_sha256 for s in (5, 5, 6))
    assert first == same != other
    assert len(first) == 64
    assert int(first, 16)


def test_the_real_weights_file(data: Path, images: np.ndarray) -> None:
    file = data / "vgg16_imagenet_conv.npz"
    network = Network(replace(FIRST, layers=("block5_pool",), weights=str(file)))
    trained = own_convolutions(0)
    with np.load(file) as arrays:
        trained.set_weights([arrays[name] for name in sorted(arrays.files)])
    maps = outputs(trained, "block5_pool", keras_batch(images))
    found = network.compute(images)["block5_pool"]
    assert found.shape == (2, 512)
    assert np.allclose(found, maps.mean(axis=(1, 2), dtype=np.float64), rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    """Convolutions and biases that no seed of the tests makes."""
    model = own_convolutions(99)
    for variable in model.weights:
        if variable.name == "bias":
            variable.assign(np.linspace(-1, 1, variable.shape[0]))
    return model


def save_npz(model: keras.Model, path: Path) -> None:
    np.savez(path, **{f"{i:02}": array for i, array in enumerate(model.get_weights())})


def save_legacy_weights(model: keras.Model, path: Path) -> None:
    """As the files of keras.applications are, and what `save_weights` of Keras 2 wrote."""
    layers = [(layer.name, *(w.shape for w in layer.weights)) for layer in model.layers if
              layer.weights]  # fmt: skip
    with h5py.File(legacy_h5(path, layers), "r+") as file:
        for layer in model.layers:
            for name, variable in zip(("kernel:0", "bias:0"), layer.weights, strict=False):
                file[layer.name][layer.name][name][...] = variable.numpy()


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("w.npz", save_npz),
        ("w.weights.h5", keras.Model.save_weights),
        ("w.h5", save_legacy_weights),
        ("whole.h5", keras.Model.save),
    ],
)
def test_weights_of_a_file(
    trained: keras.Model, images: np.ndarray, tmp_path: Path, name: str,
    save: Callable[[keras.Model, Path], None],
) -> None:  # fmt: skip
    save(trained, tmp_path / name)
    network = Network(
        replace(FIRST, layers=("block1_pool", "block2_pool"), weights=str(tmp_path / name))
    )
    batch = keras_batch(images)
    for layer, found in network.compute(images).items():
        expected = outputs(trained, layer, batch).mean(axis=(1, 2), dtype=np.float64)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)


def refused(path: Path, layer: str = "block2_pool") -> str:
    with pytest.raises(ValueError, match=path.name) as caught:
        Network(replace(FIRST, layers=(layer,), weights=str(path)))
    return str(caught.value)


def test_weights_of_another_network(tmp_path: Path) -> None:
    file = tmp_path / "mobile.weights.h5"
    keras.applications.MobileNetV2(weights=None, include_top=False, alpha=0.35).save_weights(file)
    assert refused(file).endswith(
        "does not fit vgg16: first difference at layer block1_conv1, which has kernel of shape "
        "(3, 3, 3, 64); the file has layers/conv2d/vars/0 of shape (3, 3, 3, 16)."
    )


def test_the_first_layer_that_differs_is_named(tmp_path: Path) -> None:
    arrays = [*VGG16_ARRAYS[:2], ("block2_conv1", (3, 3, 64, 100), (100,)), *VGG16_ARRAYS[3:]]
    message = refused(legacy_h5(tmp_path / "w.h5", arrays), "block1_pool")
    assert "does not fit" in message
    assert (
        "first difference at layer block2_conv1, which has kernel of shape (3, 3, 64, 128); the "
        "file has block2_conv1/kernel:0 of shape (3, 3, 64, 100)."
    ) in message


def test_weights_that_end_too_early(tmp_path: Path) -> None:
    file = legacy_h5(tmp_path / "w.h5", VGG16_ARRAYS[:3])
    message = refused(file)
    assert "ends before layer block2_conv2 of " in message
    assert "Give a file with those weights, or cut at an earlier layer." in message
    # Where the cut needs no more of them, they are enough.
    features = Network(replace(FIRST, weights=str(file))).features(np.ones((1, 224, 224, 3), "u1"))
    assert not features["block1_pool"].any()


def test_weights_of_no_layer(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["something"] = np.ones(3)
    assert "ends before layer block1_conv1 of " in refused(tmp_path / "w.h5")


def test_more_weights_than_the_network_has(tmp_path: Path) -> None:
    file = legacy_h5(tmp_path / "w.h5", [*VGG16_ARRAYS, ("extra", (5, 5), (5,))])
    message = refused(file)
    assert "has more weights than the network, from extra/kernel:0 on." in message
    # The whole network's are not too many for its first blocks.
    Network(replace(FIRST, weights=str(legacy_h5(tmp_path / "whole.h5", VGG16_ARRAYS))))


@pytest.mark.parametrize("name", ["w.npz", "w.weights.h5", "w.h5"])
@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_truncated_weights(tmp_path: Path, name: str, kept: float) -> None:
    file = tmp_path / name
    if name == "w.npz":
        np.savez(file, *(np.zeros(shape, "f4") for shape in VGG16_ARRAYS[0][1:]))
    else:
        legacy_h5(file, VGG16_ARRAYS)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    kind = ".npz file" if name == "w.npz" else "HDF5 file"
    assert f"is no {kind} of weights: " in refused(file)


def test_weights_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_text("what is this")
    assert "is no HDF5 file of weights: " in refused(tmp_path / "w.h5")
    (tmp_path / "w.npz").write_text("what is this")
    assert "is no .npz file of weights: " in refused(tmp_path / "w.npz")
    with open(tmp_path / "one.npz", "wb") as file:
        np.save(file, np.zeros(3))
    assert "is no .npz file of weights: " in refused(tmp_path / "one.npz")
    (tmp_path / "w.pt").write_text("what is this")
    expected = "w.pt: weights are imagenet, random, or a .h5, .weights.h5 or .npz file."
    assert refused(tmp_path / "w.pt").endswith(expected)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file: .*gone\.npz"):
        Network(replace(FIRST, weights=str(tmp_path / "gone.npz")))


def test_imagenet_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    if file := next(cache.glob("vgg16_*_notop.h5"), None):
        pytest.skip(f"{file} is there")
    # Where there is a network after all: a proxy that answers nothing.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    urllib.request.install_opener(None)  # it would know the proxies of before
    message = (
        r"ImageNet weights of VGG16 are not in Keras' cache .* and could not be downloaded: .*"
        r"Give a file .* with --features.weights URL, or use --features.weights random\."
    )
    try:
        with pytest.raises(OSError, match=message):
            Network(replace(FIRST, weights="imagenet"))
    finally:
        urllib.request.install_opener(None)


# --- what is known without weights ---------------------------------------------------------------


def test_describe_vgg16() -> None:
    layers = ("fc1", "fc2", "predictions", "block5_pool")
    found = networks.describe("VGG16", layers, "avg")
    assert found.n_features == {"fc1": 4096, "fc2": 4096, "predictions": 1000, "block5_pool": 512}
    assert found.input_size == (224, 224)
    assert found.weights_bytes == 4 * 138_357_544
    assert networks.describe("VGG16", ("fc2",), "avg").weights_bytes == 4 * 134_260_544
    flat = networks.describe("VGG16", ("block5_pool",), "flatten")
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
    found = networks.describe(network, ("avg_pool",), "avg")
    assert found.input_size == (299, 299)
    assert found.n_features == {"avg_pool": 2048}


def test_describe_makes_no_weights() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    found = networks.describe("VGG19", ("predictions",), "avg")
    grown = process.memory_info().rss - before
    assert found.weights_bytes == 4 * 143_667_240
    assert grown < found.weights_bytes / 4


def test_unknown_network() -> None:
    message = r"Unknown network 'VGG99'\. Known: ConvNeXtBase, .*MobileNetV2, .*VGG16, VGG19, Xcept"
    with pytest.raises(ValueError, match=message):
        networks.describe("VGG99", ("fc2",), "avg")


def test_unknown_layer() -> None:
    message = r"has no layer 'fc3'\. It has: .*block1_conv1, .*fc1, fc2, predictions\."
    with pytest.raises(ValueError, match=message):
        networks.describe("VGG16", ("fc2", "fc3"), "avg")
    with pytest.raises(ValueError, match=message):
        Network(replace(FIRST, layers=("fc3",)))


# --- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "layer", "preprocess", "n_units"),
    [
        (("block1_pool",), "block1_pool", "network", 0),
        (("block1_pool",), "block1_pool", "dl4j", 0),
        (("block1_pool", "block2_pool"), "block2_pool", "network", 0),
        (("block1_pool",), "block1_pool", "network", 200),
    ],
)
def test_the_exported_classifier_predicts_what_the_head_does(
    images: np.ndarray, tmp_path: Path, layers: tuple[str, ...], layer: str, preprocess: str,
    n_units: int,
) -> None:  # fmt: skip
    spec = replace(FIRST, layers=layers, preprocess=preprocess)
    network = Network(spec)
    rng = np.random.default_rng(1)
    # Four pictures more, so that means and scales are of more than two.
    many = np.concatenate([images, rng.integers(0, 256, (4, 224, 224, 3), np.uint8)])
    features = network.compute(many)[layer]
    n_features = features.shape[1]
    head = Head(
        kernel=rng.normal(size=(n_features, 3)).astype(np.float32) / np.sqrt(n_features),
        bias=np.array([0.5, -0.5, 0.0], np.float32),
        mean=features.mean(axis=0),
        scale=features.std(axis=0) + np.float32(1e-3),
        class_names=("a", "b", "c"),
        provenance={"layer": layer, "weights_sha256": network.weights_sha256},
    )
    if n_units:
        head = replace(
            head,
            hidden_kernel=rng.normal(size=(n_features, n_units)).astype(np.float32) / 8,
            hidden_bias=np.full(n_units, 0.1, np.float32),
            kernel=rng.normal(size=(n_units, 3)).astype(np.float32) / 10,
        )
    logits = head.logits(features).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.ptp(expected, axis=0).min() > 0.05

    with pytest.raises(ValueError, match=r"the network has .*Give --features\.weights as it was"):
        networks.export(replace(spec, seed=spec.seed + 1), head)
    file = tmp_path / "classifier.keras"
    file.write_bytes(networks.export(spec, head))
    classifier = keras.models.load_model(file)
    assert classifier.input_shape == (None, 224, 224, 3)
    assert np.allclose(classifier.predict_on_batch(many), expected, atol=1e-4)
    assert np.allclose(classifier.predict_on_batch(many.astype(np.float32)), expected, atol=1e-4)
