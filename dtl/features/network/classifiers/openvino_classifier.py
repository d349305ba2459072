"""A network and a head as one classifier that OpenVINO runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtl.features.network.classifiers.formats import About
from dtl.features.network.openvino_network import read_files
from dtl.features.network.quiet_openvino import core, openvino
from dtl.features.views import Views
from dtl.head.model import Head

ops = openvino.opset13


def write(network: tuple[Path, Path], head: Head, views: Views, path: Path, about: About) -> None:
    """Write a classifier to files of this machine, `path` and the same with .bin.

    RGB images (n, height, width, 3) uint8 in, ``probabilities`` (n, n_classes) float32 out. What it
    says of itself lies in the ``rt_info`` of the model, below ``dtl``.

    Parameters
    ----------
    network : (path, path)
        The network's .xml and .bin, of the form that `network_file` says.
    """
    model = read_files(*network)
    images = [
        ops.parameter(openvino.PartialShape([-1, *size, 3]), np.uint8, name=name)
        for name, size in about.inputs.items()
    ]
    layer = head.provenance["layer"]
    of_sizes = [_compute_view(model, image.output(0), layer, views.mirror) for image in images]
    features = ops.concat(of_sizes, 1).output(0) if views.stack else _average(of_sizes)
    probabilities = ops.softmax(_score(features, head), 1)
    classifier = openvino.Model([ops.result(probabilities)], images, "classifier")
    classifier.output().get_tensor().set_names({"probabilities"})
    for image, name in zip(classifier.inputs, about.inputs, strict=True):
        image.get_tensor().set_names({name})
    for name, text in about.to_texts().items():
        classifier.set_rt_info(text, ["dtl", name])
    openvino.serialize(classifier, path, path.with_suffix(".bin"))


def load(path: Path) -> Callable[[Mapping[str, NDArray[np.uint8]]], NDArray[np.float32]]:
    """Return a function from images (n, height, width, 3) by input to probabilities."""
    # Without the hint, it computes in bfloat16 where the processor has that.
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = compiled(dict(images))["probabilities"].copy()
        return found

    return run


def _compute_view(
    model: openvino.Model, image: openvino.Output, layer: str, mirror: bool
) -> openvino.Output:
    """Return a layer's features of images of one size, with their mirrored ones if need be."""
    images = [image]
    if mirror:
        backwards = [np.array(k) for k in ([-1], [np.iinfo(np.int64).min], [-1], [2])]
        images.append(ops.slice(image, *backwards).output(0))
    return _average([_compute(model, each, layer) for each in images])


def _compute(model: openvino.Model, image: openvino.Output, layer: str) -> openvino.Output:
    copy = model.clone()
    for taker in copy.inputs[0].get_target_inputs():
        taker.replace_source_output(image)
    return copy.output(layer).get_node().input_value(0)


def _average(features: list[openvino.Output]) -> openvino.Output:
    total = features[0]
    for each in features[1:]:
        total = ops.add(total, each).output(0)
    return total if len(features) == 1 else ops.divide(total, np.float32(len(features))).output(0)


def _score(features: openvino.Output, head: Head) -> openvino.Output:
    """Return the head's logits, as `Head.logits` does."""
    rows = features
    if head.normalize == "sqrt-l2":
        rows = ops.multiply(ops.sign(rows), ops.sqrt(ops.abs(rows))).output(0)
    if head.normalize != "standardise":
        rows = ops.normalize_l2(rows, np.array([1]), 1e-30, "max").output(0)
    folded = head.folded()
    for kernel, bias in folded[:-1]:
        rows = ops.relu(_apply(rows, kernel, bias)).output(0)
    return _apply(rows, *folded[-1])


def _apply(rows: openvino.Output, kernel: np.ndarray, bias: np.ndarray) -> openvino.Output:
    return ops.add(ops.matmul(rows, kernel, False, False), bias[None]).output(0)
