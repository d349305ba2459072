"""Classifiers on OpenVINO give what the network and then the head give, each by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import random_head
from keras_models import FIRST

from dtl.features.network import conversion, openvino_classifier
from dtl.features.network.openvino_network import OpenVinoNetwork, read_files
from dtl.features.network.quiet_openvino import core
from dtl.features.views import Views

TWO = ((32, 32), (48, 48))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("network") / "float32"
    conversion.convert(replace(FIRST, layers=("block1_conv1", "block1_pool")), {}, path)
    return path.with_suffix(".xml"), path.with_suffix(".bin")


@pytest.mark.parametrize(
    ("views", "layer", "n_units", "normalize"),
    [
        (Views(), "block1_pool", 0, "standardise"),
        (Views(), "block1_conv1", 200, "sqrt-l2"),
        (Views(mirror=True), "block1_pool", 0, "l2"),
        (Views(TWO, mirror=True, stack=True), "block1_pool", 200, "standardise"),
        (Views(TWO), "block1_pool", 0, "sqrt-l2"),
    ],
    ids=["plain", "hidden", "mirror", "stack", "average"],
)
def test_a_classifier_is_the_network_and_the_head(
    network: tuple[Path, Path],
    tmp_path: Path,
    views: Views,
    layer: str,
    n_units: int,
    normalize: str,
) -> None:
    rng = np.random.default_rng(1)
    sizes = views.sizes or ((224, 224),)
    coarse = rng.integers(0, 256, (4, 4, 4, 3), np.uint8)
    batches = [coarse.repeat(side // 4, 1).repeat(side // 4, 2) for side, _ in sizes]
    features = views.compute(OpenVinoNetwork(read_files(*network), "", "float32", 4), batches)
    head = random_head(features[layer], n_units=n_units, normalize=normalize, layer=layer)
    expected = np.exp(head.log_probabilities(head.logits(features[layer])))
    assert np.ptp(expected, axis=0).min() > 0.05

    openvino_classifier.write(network, head, views, tmp_path / "classifier")
    classifier = core.compile_model(
        tmp_path / "classifier.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    names = ["image_32", "image_48"] if views.sizes else ["image"]
    found = classifier(dict(zip(names, batches, strict=True)))["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    one = classifier({name: batch[:1] for name, batch in zip(names, batches, strict=True)})
    np.testing.assert_allclose(one["probabilities"], expected[:1], atol=1e-5)
    # Weights that several views share are there once.
    assert (tmp_path / "classifier.bin").stat().st_size < 1.5 * network[1].stat().st_size + 1e5
