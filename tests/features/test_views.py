"""Several views of each image, against Keras' own network at each size and NumPy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from helpers import contents
from PIL import Image

from dtl import config
from dtl.config import Config, FeaturesConfig, ImagesConfig
from dtl.config.errors import UserError
from dtl.evaluation import prediction
from dtl.features import derivation, extraction, featurization
from dtl.features.extraction import Extractor, extract
from dtl.features.network import keras_network
from dtl.features.store import FeatureStore
from dtl.features.values import ExtractionSpec, NetworkSpec
from dtl.features.views import Views
from dtl.head.model import Head
from dtl.images import listing
from dtl.images.decoding import formats
from dtl.images.listing import ImageFiles

SPEC = NetworkSpec(layers=("block1_pool",), weights="random")
"""VGG16 after its first block: real, and quick to compute."""
SIZES = ((32, 32), (48, 48))
OPTIONS = {
    "layers": ["block1_pool"], "weights": "random", "precision": "float32", "batch_images": 4,
    "chunk_images": 8, "views": ["48", "mirror", "32"],
}  # fmt: skip


def options(folder: Path, **changes: Any) -> Config:
    return config.build({"images": {"url": str(folder)}, "features": OPTIONS | changes})


def spec_of(c: Config) -> ExtractionSpec:
    return ExtractionSpec(c.features, c.images, c.seed)


def featurize(c: Config, url: Path, client: Client) -> FeatureStore:
    images = listing.list_images(c.images, c.seed)
    return featurization.featurize(str(url), images, spec_of(c), client)


def make_extractor(views: Views) -> Extractor:
    return Extractor(
        SPEC, keras_network.load(SPEC).weights_sha256, ImagesConfig(), 4, (224, 224),
        views.widen({"block1_pool": 64}), views=views,
    )  # fmt: skip


def view(file: Path, size: tuple[int, int], *, mirror: bool) -> np.ndarray:
    """The features of one view, (64,), by Keras' own network for this size."""
    from dtl.features.network.quiet_keras import keras

    own = keras.applications.VGG16(weights=None, include_top=False, input_shape=(*size, 3))
    ours = keras_network.load(SPEC).model
    for name in ("block1_conv1", "block1_conv2"):
        own.get_layer(name).set_weights(ours.get_layer(name).get_weights())
    with Image.open(file) as image:
        resized = image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    if mirror:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    batch = keras.applications.vgg16.preprocess_input(np.asarray(resized, np.float32)[None])
    block = keras.Model(own.inputs, own.get_layer("block1_pool").output)
    return block.predict_on_batch(batch)[0].mean(axis=(0, 1), dtype=np.float64)


@pytest.mark.parametrize(
    ("views", "combine"),
    [
        (Views(SIZES, mirror=True), lambda v: (v[0, 0] + v[0, 1] + v[1, 0] + v[1, 1]) / 4),
        (
            Views(SIZES, mirror=True, stack=True),
            lambda v: np.hstack([(v[0, 0] + v[0, 1]) / 2, (v[1, 0] + v[1, 1]) / 2]),
        ),
        (Views(SIZES[1:]), lambda v: v[1, 0]),
    ],
    ids=["average", "stack", "one"],
)
def test_features_are_those_of_the_views_combined(
    pictures: Path, views: Views, combine: Callable[[Any], np.ndarray]
) -> None:
    files = sorted(pictures.glob("red/*.jpg"))[:2]
    (pictures / "broken.jpg").write_bytes(b"no picture")
    given = [str(files[0]), str(pictures / "broken.jpg"), str(files[1])]
    features, _, errors, _ = extract(given, make_extractor(views))
    assert [error != "" for error in errors] == [False, True, False]
    found = features["block1_pool"]
    assert found.dtype == np.float32
    assert not found[1].any()
    for file, row in zip(files, found[::2], strict=True):
        alone = {
            (k, mirror): view(file, size, mirror=bool(mirror))
            for k, size in enumerate(SIZES)
            for mirror in (0, 1)
        }
        assert not np.allclose(alone[0, 0], alone[0, 1], rtol=1e-3)
        np.testing.assert_allclose(row, combine(alone), rtol=1e-4, atol=1e-3)


def test_an_image_is_decoded_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = [], formats._decode

    def count(data: bytes, *rest: Any) -> Any:
        decoded.append(data)
        return decode(data, *rest)

    monkeypatch.setattr(formats, "_decode", count)
    extract([str(pictures / "red" / "0.jpg")], make_extractor(Views(SIZES, mirror=True)))
    assert len(decoded) == 1


def test_the_same_bytes_whatever_was_interrupted_and_on_any_workers(
    pictures: Path, tmp_path: Path, processes: Client, threads: Client
) -> None:
    c = options(pictures, combine="stack", pooling="avg,max")
    store = featurize(c, tmp_path / "f.zarr", processes)
    assert store.read("block1_pool").shape == (24, 256)
    assert store.fingerprint["views"] == "32,48,mirror"
    assert store.fingerprint["combine"] == "stack"
    before = contents(tmp_path / "f.zarr")
    shutil.copytree(tmp_path / "f.zarr", tmp_path / "g.zarr")
    (tmp_path / "g.zarr/status/c/1").unlink()
    (tmp_path / "g.zarr/block1_pool/c/1/0").write_bytes(b"half")
    featurize(c, tmp_path / "g.zarr", threads)
    assert contents(tmp_path / "g.zarr") == before
    others = [
        ({"views": ["32", "48"]}, r"views: asked for '32,48', stored '32,48,mirror'"),
        ({"views": []}, r"views: asked for None, stored '32,48,mirror'"),
        ({"combine": "average"}, r"combine: asked for 'average', stored 'stack'"),
        ({"pooling": "avg"}, r"pooling: asked for 'avg', stored 'avg,max'"),
    ]
    for changes, message in others:
        other = options(pictures, **{"combine": "stack", "pooling": "avg,max"} | changes)
        with pytest.raises(UserError, match=message):
            featurize(other, tmp_path / "f.zarr", processes)
    with pytest.raises(
        UserError, match=r"are of several views .* no later layer follows from them"
    ):
        derivation.fingerprint_derived(store, c.features)


def test_predictions_are_of_the_same_views(
    pictures: Path, tmp_path: Path, processes: Client
) -> None:
    import pyarrow.parquet as pq

    c = options(pictures)
    spec, views = spec_of(c), Views.of(c.features)
    files = sorted(str(path.relative_to(pictures)) for path in pictures.glob("*/*.jpg"))
    extractor = make_extractor(views)
    features, _, _, _ = extract([str(pictures / file) for file in files], extractor)
    rows = features["block1_pool"]
    rng = np.random.default_rng(0)
    head = Head(
        kernel=rng.normal(size=(64, 5)).astype(np.float32),
        bias=np.zeros(5, np.float32),
        mean=rows.mean(axis=0),
        scale=rows.std(axis=0) + np.float32(1e-3),
        class_names=tuple("abcde"),
        provenance={
            "layer": "block1_pool",
            "features": {"precision": "float32"} | spec.meaning,
            "weights_sha256": extractor.weights_sha256,
        },
    )
    images = ImageFiles(str(pictures))
    for file in files:
        images.add(file, (pictures / file).stat().st_size)
    prediction.predict(str(tmp_path / "out"), images, head, spec, lambda: processes)
    found = pq.read_table(tmp_path / "out").to_pylist()
    expected = [head.class_names[k] for k in head.logits(rows).argmax(axis=1)]
    assert [row["class"] for row in found] == expected
    assert len(set(expected)) > 1
    one_view = replace(spec, features=replace(c.features, views=()))
    with pytest.raises(UserError, match=r"views: asked for None, stored '32,48,mirror'"):
        extraction.check_head(head, one_view)


def test_options_of_before_have_the_fingerprint_of_before() -> None:
    assert ExtractionSpec(FeaturesConfig(combine="stack"), ImagesConfig()).options == {
        "network": "VGG16", "layers": ["fc2"], "pooling": "avg", "preprocess": "network",
        "resize": "stretch", "max_pixels": 100_000_000, "dtype": "float32", "batch_images": 16,
        "chunk_images": 256,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"views": ["flip"]}, r"features\.views must be sizes in pixels, mirror, or both.*'flip'"),
        ({"views": ["224", "224"]}, r"each once, such as 224,320,mirror\. Received"),
        ({"views": ["mirror", "mirror"]}, r"each once, such as 224,320,mirror\. Received"),
        ({"views": ["0"]}, r"features\.views must be sizes in pixels"),
        ({"views": ["-64"]}, r"features\.views must be sizes in pixels"),
        ({"views": ["320"], "pooling": "flatten"}, r"flatten makes as many .* avg, max or avg,max"),
        ({"pooling": "max,avg"}, r"features\.pooling must be one of avg, max, flatten, avg,max\."),
    ],
)
def test_views_that_are_none(features: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.build({"features": features})


def test_a_hidden_layer_of_the_network_takes_no_views() -> None:
    train = {"hidden_start": "network", "hidden_units": 4096}
    with pytest.raises(UserError, match=r"whose inputs are no combined views \(mirror\)"):
        config.build({"features": {"views": ["mirror"], "layers": ["fc1"]}, "train": train})


@pytest.mark.parametrize(
    ("views", "layer", "message"),
    [
        ("96", "fc2", r"fc1 \(Dense\) takes no images of 96 x 96\. It takes 224 x 224 only: cut "),
        ("16", "block5_pool", r"block5_pool .* takes no images of 16 x 16\. Give larger ones\."),
    ],
)
def test_sizes_that_the_network_does_not_take(
    processes: Client, views: str, layer: str, message: str
) -> None:
    features = FeaturesConfig(layers=(layer,), weights="random", views=(views,))
    with pytest.raises(UserError, match=message):
        extraction.prepare(processes, ExtractionSpec(features, ImagesConfig()))
