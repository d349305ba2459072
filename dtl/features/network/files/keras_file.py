"""Keras' own files, as networks that are cut like those of keras.applications."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dtl.config.errors import UserError
from dtl.features.network.files.source import NetworkSource, local_files
from dtl.features.network.quiet_keras import keras


@functools.lru_cache(maxsize=1)
def load(source: NetworkSource) -> keras.Model:
    """Read a whole network with its weights.

    What is no network of named layers from one colour image, or brings code of its own, is a
    `UserError`.
    """
    with local_files(source) as path:
        try:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises anything on other bytes
            raise UserError(
                f"{source.url} is no network that Keras reads: {_shorten(error)}. Copy it again, "
                "or save it again. One with lambda layers or classes of its own is not read, "
                "because it would run code: export it as .onnx."
            ) from error
    inputs = getattr(model, "inputs", None)
    if not isinstance(model, keras.Model) or not inputs or not getattr(model, "outputs", None):
        raise UserError(
            f"{source.url} has no layers with known inputs and outputs, so it cannot be cut. Save "
            "a network of Keras' functional interface, or export it as .onnx."
        )
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[3] != 3:
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        raise UserError(
            f"The input of {source.url} must be one colour image, (batch, height, width, 3). It "
            f"is: {shapes}."
        )
    return _fix_size(model, source)


def make_preprocessing(source: NetworkSource) -> Callable[[Any], Any]:
    """Return the function from RGB images of 0 to 255 to a network's input."""
    declared = source.declared
    offset, divisor = (each.astype(np.float32) for each in (declared.offset, declared.divisor))

    def preprocess(images: Any) -> Any:
        images = images[..., ::-1] if declared.order == "bgr" else images
        if offset.any() or (divisor != 1).any():
            images = (images - offset) / divisor
        return images

    return preprocess


def _fix_size(model: keras.Model, source: NetworkSource) -> keras.Model:
    declared, toml = source.declared, source.declaration_url
    if declared.layout == "nchw":
        raise UserError(
            f"{toml} declares layout = nchw, but {source.url} takes {model.inputs[0].shape}. Leave "
            "layout out."
        )
    fixed = tuple(model.inputs[0].shape[1:3])
    if None not in fixed and declared.size in ((), fixed):
        return model
    if not declared.size:
        raise UserError(
            f"{source.url} takes images of any size. Add the one to use to {toml}, such as: "
            "size = [224, 224]"
        )
    if any(n not in (None, size) for n, size in zip(fixed, declared.size, strict=True)):
        raise UserError(
            f"{toml} declares size = {[*declared.size]}, but {source.url} takes images of "
            f"{[*fixed]}. Mend the size, or leave it out."
        )
    sized = keras.models.clone_model(model, keras.Input((*declared.size, 3)))
    sized.set_weights(model.get_weights())
    return sized


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
