"""A network and a head as one model of Keras', and its file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.features.network.architecture import find_preprocessing, resize
from dtl.features.network.classifiers.formats import EXTRA_NAME, About, name_inputs
from dtl.features.network.keras_network import Network
from dtl.features.network.quiet_keras import keras
from dtl.features.values import check_weights, find_source_sha256
from dtl.features.views import Views
from dtl.head.model import Head


def make(network: Network, head: Head, views: Views) -> keras.Model:
    """Make one model of a network in float32 and a head.

    RGB images (n, height, width, 3) of 0 to 255 in, probabilities (n, n_classes) out. The inputs
    are `formats.name_inputs`. Other weights than those of the head's features are a
    `DifferentSettingsError`.
    """
    check_weights(network.weights_sha256, find_source_sha256(head.provenance), "The head")
    images, outputs = _combine_views(network, head.provenance["layer"], views)
    outputs = _scale_rows(outputs, head.normalize)
    names = ["hidden", "class"] if head.n_units else ["class"]
    for name, weights in zip(names, head.folded(), strict=True):
        activation = "softmax" if name == "class" else "relu"
        layer = keras.layers.Dense(len(weights[1]), activation, name=name, dtype="float32")
        outputs = layer(outputs)
        layer.set_weights(weights)
    return keras.Model(pack(images), outputs, name="classifier")


def write(model: keras.Model, path: Path, about: About) -> None:
    """Write a .keras file, in which Keras does not mind another member."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo(EXTRA_NAME), about.to_json())


def load(path: Path) -> Callable[[Mapping[str, NDArray[np.uint8]]], NDArray[np.float32]]:
    """Return a function from images (n, height, width, 3) by input to probabilities."""
    model = keras.models.load_model(path)

    def run(images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        floats = [each.astype(np.float32) for each in images.values()]
        found: NDArray[np.float32] = model.predict_on_batch(pack(floats))
        return found

    return run


def name_outputs(model: keras.Model) -> keras.Model:
    """Return the model as Keras exports it to others: it was called, and its output has a name."""
    named = keras.Model(pack(model.inputs), {"probabilities": model.output})
    named(pack([keras.ops.zeros((1, *each.shape[1:])) for each in model.inputs]))
    return named


def pack(inputs: Sequence[Any]) -> Any:
    """Return inputs as Keras takes them: one alone in no list."""
    return [*inputs] if len(inputs) > 1 else inputs[0]


def _combine_views(network: Network, layer: str, views: Views) -> tuple[list[Any], Any]:
    """Return inputs of images, and a layer's features as `Views.compute` combines them."""
    spec, own_size = network.spec, network.description.input_size
    inputs = name_inputs(views, own_size)
    images = [keras.Input((*size, 3), name=name) for name, size in inputs.items()]
    # One model for all sizes: a file would hold the weights of each once more.
    one_size = [*inputs.values()] == [own_size]
    used = keras.Model(network.model.inputs, network.model.outputs[spec.layers.index(layer)])
    model = used if one_size else resize(used, (None, None))

    def compute(image: Any) -> Any:
        return model(find_preprocessing(spec.name, spec.preprocess)(image))

    of_sizes = [
        _average([compute(image), compute(image[:, :, ::-1])] if views.mirror else [compute(image)])
        for image in images
    ]
    if views.stack:
        return images, keras.layers.Concatenate(name="sizes", dtype="float32")(of_sizes)
    return images, _average(of_sizes)


def _average(features: list[Any]) -> Any:
    if len(features) == 1:
        return features[0]
    return keras.layers.Average(dtype="float32")(features)


def _scale_rows(features: Any, normalize: str) -> Any:
    """Scale rows as `dtl.head.scaling.scale_rows` does, by layers that Keras itself has."""
    if normalize == "sqrt-l2":
        ops = keras.ops
        features = ops.sign(features) * ops.sqrt(ops.abs(features))
    if normalize != "standardise":
        features = keras.layers.UnitNormalization(name="unit_length", dtype="float32")(features)
    return features
