from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from keras_models import FIRST, draw_images, keras_batch, outputs, own_convolutions

from dtl.features.network.keras_network import Network
from dtl.features.network.quiet_keras import keras

# Keras' own, while it writes a file: TensorFlow's arrays are older than NumPy's `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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
    return draw_images()


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
    features = Network(replace(FIRST, weights=str(file))).compute(np.ones((1, 224, 224, 3), "u1"))
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
        r"Set `features\.weights` to the URL of a file that every worker can read, or to random"
    )
    try:
        with pytest.raises(OSError, match=message):
            Network(replace(FIRST, weights="imagenet"))
    finally:
        urllib.request.install_opener(None)
