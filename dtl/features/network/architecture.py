"""Keras' networks by name: made, cut at layers, and described without their weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from dtl.config.errors import UserError
from dtl.features.network.quiet_keras import keras
from dtl.features.values import Description, Layer


def describe(name: str, layers: tuple[str, ...], pooling: str) -> Description:
    """Describe a network and its cut without making its weights.

    An unknown network or layer is a `UserError` that lists the known ones.
    """
    skeleton = make_skeleton(name)
    used = cut(skeleton, layers, pooling)
    widths = (int(output.shape[-1]) for output in used.outputs)
    return Description(
        input_size=skeleton.input_shape[1:3],
        n_features=dict(zip(layers, widths, strict=True)),
        layers=tuple(
            Layer(each.name, type(each).__name__, tuple(each.output.shape[1:]), each.count_params())
            for each in skeleton.layers
        ),
        used=frozenset(layer.name for layer in used.layers),
        weights_bytes=4 * used.count_params(),
    )


def find_hidden_layer(name: str, layer: str) -> tuple[str, int]:
    """Return name and units of the Dense layer with ReLU that follows a layer, or refuse it."""
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
    state, uids = keras.src.backend.common.global_state, "object_name_uids"
    read = functools.partial(state.get_global_attribute, uids)
    with changed(read, functools.partial(state.set_global_attribute, uids), None):
        return _find_application(name)(**options)


@contextlib.contextmanager
def changed(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    """Set a global setting while a block runs."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


@functools.lru_cache(maxsize=4)
def make_skeleton(name: str) -> keras.Model:
    """Make a whole network with variables that have shapes but no memory."""
    with keras.StatelessScope(initialize_variables=False):
        model = make(name, weights=None)
        if model.input_shape[1] is None:  # a network that takes any size gets the usual one
            model = make(name, weights=None, input_shape=(224, 224, 3))
    return model


def cut(model: keras.Model, layers: tuple[str, ...], pooling: str) -> keras.Model:
    """Cut a network at layers, and pool the outputs that have positions."""
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
    known: dict[str, Callable[..., keras.Model]] = {
        n: f for n, f in vars(keras.applications).items() if n[0].isupper() and callable(f)
    }
    if name not in known:
        raise UserError(f"Unknown network {name!r}. Known: {', '.join(sorted(known))}.")
    return known[name]
