"""A classifier as TensorFlow's SavedModel, which takes pixels, or the bytes of JPEG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.features.network.classifiers.formats import EXTRA_NAME, About
from dtl.features.network.classifiers.jpeg_pixels import read_jpeg
from dtl.features.network.classifiers.keras_classifier import name_outputs, pack
from dtl.features.network.classifiers.quiet_tensorflow import tf
from dtl.features.network.quiet_keras import keras

JPEG = "classify_jpeg"
"""The signature that takes ``jpeg``, (n,) bytes of files; ``serving_default`` takes pixels."""


def write(model: keras.Model, path: Path, about: About) -> None:
    """Write Keras' model as a folder, with what it says of itself in ``assets.extra``."""
    named, sizes = name_outputs(model), [*about.inputs.values()]

    def classify(jpeg: Any) -> Any:
        pixels = tf.map_fn(
            lambda data: read_jpeg(data, sizes, about.resize), jpeg,
            fn_output_signature=[tf.TensorSpec((*size, 3), tf.float32) for size in sizes],
        )  # fmt: skip
        return named(pack(pixels))

    archive = keras.export.ExportArchive()
    archive.track(named)
    images = [tf.TensorSpec((None, *size, 3), tf.float32, n) for n, size in about.inputs.items()]
    archive.add_endpoint("serving_default", named.call, [pack(images)])
    archive.add_endpoint(JPEG, classify, [tf.TensorSpec((None,), tf.string, "jpeg")])
    archive.write_out(path, verbose=False)
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / EXTRA_NAME).write_text(about.to_json())


class SavedModel:
    """A classifier that was read: it is called with images, `classify_jpeg` with a file."""

    def __init__(self, path: Path) -> None:
        self._loaded = tf.saved_model.load(path)  # it lives as long as its signatures

    def __call__(self, images: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return probabilities (n, n_classes) of images (n, height, width, 3) by input."""
        floats = {name: tf.constant(each, tf.float32) for name, each in images.items()}
        return _take(self._loaded.signatures["serving_default"](**floats))

    def classify_jpeg(self, data: bytes) -> NDArray[np.float32]:
        """Return probabilities (n_classes,) of a JPEG's bytes.

        What it cannot read is a `ValueError`.
        """
        try:
            (found,) = _take(self._loaded.signatures[JPEG](jpeg=tf.constant([data])))
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(str(error)) from error
        one: NDArray[np.float32] = found
        return one


def load(path: Path) -> SavedModel:
    """Read a classifier."""
    return SavedModel(path)


def _take(outputs: Mapping[str, Any]) -> NDArray[np.float32]:
    probabilities: NDArray[np.float32] = outputs["probabilities"].numpy()
    return probabilities
