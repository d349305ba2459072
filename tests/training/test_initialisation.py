"""Heads that start from the network's own next layer; from saved heads: see test_checkpoint."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from distributed import Client
from helpers import write_store

from dtl import config
from dtl.cluster import connection
from dtl.cluster.spread import Session
from dtl.config import TrainConfig
from dtl.features import splitting
from dtl.features.network import architecture
from dtl.features.network.weights.loading import hash_weights
from dtl.features.store import FeatureStore
from dtl.head import hidden
from dtl.head.model import Head
from dtl.pipeline import command_line
from dtl.pipeline.results import Results
from dtl.training import initialisation, trainer
from dtl.training.spec import TrainingSpec

CONFIG = TrainConfig(
    layer="fc1", n_shards=2, epochs=2.0, batch_size=8, averaging_frequency=2, l2=0.0,
    hidden_units=4096, hidden_start="network",
)  # fmt: skip
N_IMAGES = 48


@pytest.fixture(scope="module")
def vgg16() -> keras.Model:
    """An untrained VGG16 as the seed 3 makes it in dtl, made by Keras alone."""
    keras.utils.set_random_seed(3)
    return keras.applications.VGG16(weights=None)


@pytest.fixture(scope="module")
def store(vgg16: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Made up fc1 features, as if they were of that network."""
    rng, url = np.random.default_rng(0), str(tmp_path_factory.mktemp("starts") / "features.zarr")
    label = np.arange(N_IMAGES) % 3
    to_fc1 = keras.Model(vgg16.inputs, vgg16.get_layer("fc1").output)
    settings = {
        "network": "VGG16", "layers": ["fc1"], "pooling": "avg", "preprocess": "network",
        "precision": "bfloat16",
    }  # fmt: skip
    features = np.maximum(rng.normal(size=(N_IMAGES, 4096)) * rng.uniform(0.5, 3, 4096), 0)
    features += 0.3 * label[:, None]
    return write_store(
        url, label, lambda _, rows: features[rows], np.arange(N_IMAGES) % 4 == 3, layer="fc1",
        chunk_images=12, settings=settings, weights_sha256=hash_weights(to_fc1), seed=3,
    )  # fmt: skip


@pytest.mark.slow
def test_the_network_start_is_the_networks_fc2_below_a_softmax_of_zeros(
    store: FeatureStore, vgg16: keras.Model, threads: Client
) -> None:
    x, fc1 = store.read("fc1"), keras.Input((4096,))
    expected = keras.Model(fc1, vgg16.get_layer("fc2")(fc1)).predict_on_batch(x)
    assert 0.2 < (expected > 0).mean() < 0.8
    spec, session = TrainingSpec(store, CONFIG, "fc1", 0), Session(threads)
    found = initialisation.submit_head(spec, session)
    _, scaling = trainer.load_groups(spec, session)
    params = initialisation.submit_params(spec, found, scaling, session).result()
    mean, scale = scaling.result().mean, scaling.result().scale
    assert np.abs(mean).min() > 0.1  # the features were standardised, and yet:
    assert np.abs(scale - 1).max() > 0.3
    units = hidden.units(params["hidden_kernel"], params["hidden_bias"], (x - mean) / scale)
    np.testing.assert_allclose(units, expected, atol=1e-5 * expected.max())
    assert not hidden.logits(params, x).any()


@pytest.mark.slow
def test_learns_from_there_to_the_same_bits_in_worker_processes(
    store: FeatureStore, threads: Client, processes: Client
) -> None:
    way = replace(CONFIG, learning_rate=1e-3, features_in="store")
    trained = trainer.train(TrainingSpec(store, way, "fc1", 0), threads)
    head, history = trained.head, trained.history
    assert history[-1].train_loss < 0.8 * np.log(3)
    assert head.provenance["start_weights"] == "random, seed 3"
    way = replace(way, features_in="memory")
    other = trainer.train(TrainingSpec(store, way, "fc1", 0), processes).head
    assert other.to_bytes() == head.to_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"hidden_units": 100}, {}, "`train.hidden_units` = 100, but fc2 of .* has 4096 units"),
        ({}, {"weights_sha256": "0" * 64}, r"made with other weights:\n.*, stored '0{64}'"),
    ],
    ids=["units", "weights"],
)
def test_what_does_not_fit_is_refused_before_features_are_read(
    store: FeatureStore, threads: Client, options: dict[str, object], changes: dict[str, object],
    message: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(trainer, "load_groups", None)
    settings = store.fingerprint | {"layers": ["fc1", "fc2"]}  # as it may be: fc2 is stored, too
    monkeypatch.setattr(type(store), "attrs", store.attrs | {"settings": settings} | changes)
    with pytest.raises(ValueError, match=message):
        trainer.train(TrainingSpec(store, replace(CONFIG, **options), "fc1", 0), threads)


def test_other_weights_of_the_networks_layer_train_again(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, weights = tmp_path / "out", tmp_path / "weights.npz"
    shutil.copytree(store.url, out / "features.zarr")
    weights.write_bytes(b"some")
    settings = config.build({
        "out": str(out), "seed": 3, "train": config.to_dict(CONFIG), "split": {"method": "random"},
        "features": {"layers": ["fc1"], "weights": str(weights)},
    })  # fmt: skip
    results = Results(str(out))
    results.write_config(settings)
    splitting.split_images(results.store(), settings.split, 3)
    made_from = TrainingSpec(results.store(), settings.train, "fc1", 3, str(weights)).provenance
    nothing = np.zeros(4096, np.float32)
    kernel, names = np.zeros((4096, 3), np.float32), store.class_names
    results.write_head(Head(kernel, nothing[:3], nothing, nothing + 1, names, made_from), [])

    monkeypatch.setattr(connection, "connect", None)  # no worker is asked
    assert command_line.main(["train", "--out", str(out)]) == 0
    assert "training: done before" in capsys.readouterr().err
    weights.write_bytes(b"others")
    assert command_line.main(["train", "--out", str(out)]) == 1  # one is asked now
    said = capsys.readouterr().err
    for asked_or_stored in (b"others", b"some"):
        assert f"file, SHA-256 {hashlib.sha256(asked_or_stored).hexdigest()}" in said


def test_weights_that_are_not_to_be_had(
    store: FeatureStore, threads: Client, tmp_path: Path
) -> None:
    url = str(tmp_path / "moved.weights.h5")
    with pytest.raises(FileNotFoundError, match=r"moved\.weights\.h5"):
        trainer.train(TrainingSpec(store, CONFIG, "fc1", 0, weights=url), threads)


@pytest.mark.parametrize(
    ("network", "layer", "expected"),
    [
        ("VGG16", "fc1", ("fc2", 4096)),
        ("VGG16", "flatten", ("fc1", 4096)),
        ("VGG16", "fc2", r"After fc2 VGG16 has: predictions \(Dense\)\. Train on an earlier"),
        ("VGG16", "predictions", r"After predictions VGG16 has: nothing\."),
        ("VGG16", "block5_pool", r"has: flatten \(Flatten\)\. Train on an earlier layer, such as"),
        ("ResNet50", "avg_pool", r"After avg_pool ResNet50 has: predictions \(Dense\)"),
        ("ResNet50", "conv2_block1_out", r"has: conv2_block2_1_conv \(Conv2D\), conv2_block2_add"),
    ],
)
def test_a_dense_layer_with_relu_must_follow(network: str, layer: str, expected: object) -> None:
    if isinstance(expected, tuple):
        assert architecture.find_hidden_layer(network, layer) == expected
        return
    with pytest.raises(ValueError, match=str(expected)):
        architecture.find_hidden_layer(network, layer)


def test_the_store_says_which_network_it_was(store: FeatureStore, tmp_path: Path) -> None:
    spec = initialisation.network_spec(store, "random")
    assert (spec.name, spec.layers, spec.seed) == ("VGG16", ("fc1",), 3)
    assert initialisation.network_spec(store, str(tmp_path / "w.npz")).weights == str(
        tmp_path / "w.npz"
    )
