"""Keras' own untrained networks, to compare with."""

from __future__ import annotations

import numpy as np

from dtl.features.network.quiet_keras import keras
from dtl.features.values import NetworkSpec

FIRST = NetworkSpec(layers=("block1_pool",), weights="random", seed=5)
"""VGG16 after its first block: real, and quick to compute."""


def draw_images() -> np.ndarray:
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
