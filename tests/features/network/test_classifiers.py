"""Classifiers of every format give what the network and then the head give, each by itself."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import random_head
from keras_models import FIRST

from dtl.config.errors import DifferentSettingsError, UserError
from dtl.features.network import conversion
from dtl.features.network.classifiers import formats, keras_classifier, onnx_classifier
from dtl.features.network.classifiers.formats import EXTRA_NAME, About
from dtl.features.network.keras_network import Network
from dtl.features.network.openvino_network import OpenVinoNetwork, read_files
from dtl.features.network.quiet_openvino import core
from dtl.features.views import Views
from dtl.head.model import Head

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TWO = ((32, 32), (48, 48))
LAYERS = ("block1_conv1", "block1_pool")


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(replace(FIRST, layers=LAYERS))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("network") / "float32"
    conversion.convert(replace(FIRST, layers=LAYERS), {}, path)
    return path.with_suffix(".xml"), path.with_suffix(".bin")


def describe(head: Head, views: Views) -> About:
    return About(
        head.class_names, formats.name_inputs(views, (224, 224)), "stretch", head.temperature,
        head.fingerprint, "0.1", dict(head.provenance),
    )  # fmt: skip


Write = Callable[[str, Head, Views, Path], Any]


@pytest.fixture
def write(network: Network, converted: tuple[Path, Path]) -> Write:
    """Writes a classifier, and loads it as others would."""

    def write(kind: str, head: Head, views: Views, path: Path) -> Any:
        about = describe(head, views)
        module = importlib.import_module(f"dtl.features.network.classifiers.{kind}_classifier")
        if kind == "openvino":
            module.write(converted, head, views, path, about)
        else:
            module.write(keras_classifier.make(network, head, views), path, about)
        return module.load(path)

    return write


@pytest.mark.parametrize("kind", formats.ENDINGS)
@pytest.mark.parametrize(
    ("views", "layer", "n_units", "normalize"),
    [
        (Views(), "block1_pool", 0, "standardise"),
        (Views(), "block1_pool", 200, "sqrt-l2"),
        (Views(mirror=True), "block1_pool", 0, "l2"),
        (Views(TWO, mirror=True, stack=True), "block1_pool", 200, "standardise"),
        (Views(TWO), "block1_pool", 0, "sqrt-l2"),
    ],
    ids=["plain", "hidden", "mirror", "stack", "average"],
)
def test_a_classifier_is_the_network_and_the_head(
    network: Network, converted: tuple[Path, Path], write: Write, tmp_path: Path, kind: str,
    views: Views, layer: str, n_units: int, normalize: str,
) -> None:  # fmt: skip
    rng = np.random.default_rng(1)
    sizes = views.sizes or ((224, 224),)
    coarse = rng.integers(0, 256, (4, 4, 4, 3), np.uint8)
    batches = [coarse.repeat(side // 4, 1).repeat(side // 4, 2) for side, _ in sizes]
    own = network
    if kind == "openvino":  # rounded otherwise, which heads on so few images make much of
        own = OpenVinoNetwork(read_files(*converted), network.weights_sha256, "float32", 4)
    features = views.compute(own, batches)[layer]
    head = random_head(
        features, n_units=n_units, normalize=normalize, layer=layer,
        weights_sha256=network.weights_sha256,
    )  # fmt: skip
    expected = np.exp(head.log_probabilities(head.logits(features)))
    assert np.ptp(expected, axis=0).min() > 0.05

    path = tmp_path / f"classifier{formats.ENDINGS[kind]}"
    classify = write(kind, head, views, path)
    names = ["image_32", "image_48"] if views.sizes else ["image"]
    tolerance = 1e-4 if kind == "onnx" else 1e-5
    found = classify(dict(zip(names, batches, strict=True)))
    np.testing.assert_allclose(found, expected, atol=tolerance)
    one = classify({name: batch[:1] for name, batch in zip(names, batches, strict=True)})
    np.testing.assert_allclose(one, expected[:1], atol=tolerance)
    # Weights that several views share are there once.
    n_bytes = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    n_weights = network.model.count_params() + sum(each.size for each in head.weights.values())
    assert n_bytes < 1.5 * 4 * n_weights + (512 << 10)


@pytest.mark.parametrize("kind", formats.ENDINGS)
def test_what_a_classifier_says_of_itself(
    network: Network, write: Write, tmp_path: Path, kind: str
) -> None:
    features = network.compute(np.zeros((2, 224, 224, 3), np.uint8))["block1_pool"]
    head = random_head(features, layer="block1_pool", weights_sha256=network.weights_sha256)
    names = ('<script>"', "ä\n甲", "c" * 4000)
    head = replace(head, class_names=names)
    path = tmp_path / f"classifier{formats.ENDINGS[kind]}"
    write(kind, head, Views(), path)
    if kind == "keras":
        found = json.loads(zipfile.ZipFile(path).read(EXTRA_NAME))
    elif kind == "saved_model":
        found = json.loads((path / "assets.extra" / EXTRA_NAME).read_text())
    elif kind == "onnx":
        found = {each.key: each.value for each in onnx.load(path).metadata_props}
    else:
        found = core.read_model(path).get_rt_info("dtl").value
    if kind in ("onnx", "openvino"):
        found = {k: v if k in ("resize", "head_sha256", "dtl") else json.loads(v)
                 for k, v in found.items()}  # fmt: skip
    wanted = json.loads(describe(head, Views()).to_json())
    assert found == wanted
    assert tuple(found["class_names"]) == names


def test_other_weights_are_refused(network: Network) -> None:
    head = random_head(np.ones((2, 64), np.float32), layer="block1_pool", weights_sha256="0" * 64)
    with pytest.raises(
        DifferentSettingsError,
        match=r"(?s)The head was made with other weights.*Give `features\.weights`",
    ):
        keras_classifier.make(network, head, Views())


def test_a_network_too_large_for_onnx(tmp_path: Path) -> None:
    class Large:
        def count_params(self) -> int:
            return 1 << 30

    about = About(("a",), {"image": (8, 8)}, "stretch", 1.0, "", "", {})
    with pytest.raises(UserError, match=r"4\.0 GiB of weights, and an ONNX file holds less than 2"):
        onnx_classifier.write(Large(), tmp_path / "a.onnx", about)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a.h5", "", r"must end in \.keras, \.onnx, or \.xml .* add --format saved_model"),
        ("a", "", r"must end in \.keras"),
        ("a.onnx", "openvino", r"of the format openvino ends in \.xml\. Received: 'a\.onnx'"),
        ("a.keras", "saved_model", r"of the format saved_model is a folder, whose name has no"),
        ("a", "keras", r"of the format keras ends in \.keras"),
    ],
)
def test_a_name_that_is_of_no_format(name: str, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        formats.choose_format(name, kind)


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx needs onnx, onnxruntime, tf2onnx\. .*'\.\[onnx\]'"):
        formats.check_packages("onnx")
    formats.check_packages("keras")
