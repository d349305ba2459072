"""Keras' networks by name: made, cut at layers, and described without their weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dtl.config.errors import UserError
from dtl.features.quiet_keras import keras
from dtl.features.values import Description, Layer


def describe(name: str, layers: tuple[str, ...], pooling: str) -> Description:
    """Describe a network and its cut without making its weights.

    Raises
    ------
    UserError
        For an unknown network or layer; the known ones are listed.
    """
    skeleton = make_skeleton(name)
    used = cut(skeleton, layers, pooling)
    height, width = skeleton.input_shape[1:3]
    return Description(
        input_size=(height or 224, width or 224),
        n_features={
            layer: int(output.shape[-1]) for layer, output in zip(layers, used.outputs, strict=True)
        },
        layers=tuple(
            Layer(
                layer.name,
                type(layer).__name__,
                tuple(layer.output.shape[1:]),
                sum(int(np.prod(v.shape)) for v in layer.weights),
            )
            for layer in skeleton.layers
        ),
        used=frozenset(layer.name for layer in used.layers),
        weights_bytes=sum(4 * int(np.prod(v.shape)) for v in used.weights),
    )


def find_hidden_layer(name: str, layer: str) -> tuple[str, int]:
    """Return name and units of the Dense layer with ReLU that follows a layer.

    Raises
    ------
    UserError
        If something else follows.
    """
    skeleton = make_skeleton(name)
    output = skeleton.get_layer(layer).output
    after = [
        other
        for other in skeleton.layers
        if any(taken is output for taken in keras.tree.flatten(other.input))
    ]
    if [type(other) for other in after] == [keras.layers.Dense]:
        (dense,) = after
        if dense.activation is keras.activations.relu and dense.use_bias:
            return str(dense.name), int(dense.units)
    raise UserError(
        f"A hidden layer starts from a Dense layer with ReLU. After {layer} {name} has: "
        + (", ".join(f"{other.name} ({type(other).__name__})" for other in after) or "nothing")
        + ". Train on an earlier layer, such as VGG16's flatten or fc1, or set "
        "`train.hidden_start` = random."
    )


def find_preprocessing(name: str, preprocess: str) -> Callable[[Any], Any]:
    """Return the function from RGB images of 0 to 255 to a network's input."""
    if preprocess == "dl4j":
        # Deeplearning4j's NativeImageLoader reads BGR; the original left the means in.
        return lambda images: images[..., ::-1]
    module = _find_application(name).__module__.rsplit(".", 1)[1]
    function: Callable[[Any], Any] = getattr(keras.applications, module).preprocess_input
    return function


def make(name: str, **options: Any) -> keras.Model:
    """Make a network whose layers have the same names in every process.

    Keras numbers the layers that it names itself over all models of a thread, so begin anew.
    """
    state = keras.src.backend.common.global_state
    before = state.get_global_attribute("object_name_uids")
    keras.src.utils.naming.reset_uids()
    try:
        return _find_application(name)(**options)
    finally:
        state.set_global_attribute("object_name_uids", before)


@functools.lru_cache(maxsize=4)
def make_skeleton(name: str) -> keras.Model:
    """Make a whole network with variables that have shapes but no memory."""
    with keras.StatelessScope(initialize_variables=False):
        model = make(name, weights=None)
        if model.input_shape[1] is None:  # a network that takes any size gets the usual one
            model = make(name, weights=None, input_shape=(224, 224, 3))
    return model


def cut(model: keras.Model, layers: tuple[str, ...], pooling: str) -> keras.Model:
    """Cut a network at layers, and pool the outputs that have positions.

    Raises
    ------
    UserError
        For an unknown layer.
    """
    names = [layer.name for layer in model.layers]
    for layer in layers:
        if layer not in names:
            raise UserError(f"{model.name} has no layer {layer!r}. It has: {', '.join(names)}.")
    pools = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }
    outputs = []
    with keras.StatelessScope(initialize_variables=False):  # pooling has no weights to make
        for layer in layers:
            output = model.get_layer(layer).output
            # Named, so that the network can have a layer that Keras would name alike.
            pool = pools[pooling](name=f"{layer}_pooled")
            outputs.append(pool(output) if len(output.shape) == 4 else output)
    return keras.Model(model.inputs, outputs if len(outputs) > 1 else outputs[0])


def _find_application(name: str) -> Callable[..., keras.Model]:
    known = {
        n: make for n, make in vars(keras.applications).items() if n[0].isupper() and callable(make)
    }
    if name not in known:
        raise UserError(f"Unknown network {name!r}. Known: {', '.join(sorted(known))}.")
    function: Callable[..., keras.Model] = known[name]
    return function
