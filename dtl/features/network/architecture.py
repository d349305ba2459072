"""Keras' networks by name: made, cut at layers, and described without their weights."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dtl.config.errors import UserError
from dtl.features.network.files import keras_file
from dtl.features.network.files.source import NetworkSource
from dtl.features.network.flop import count_flop, find_calls
from dtl.features.network.quiet_keras import keras
from dtl.features.values import Description, Layer


def describe(
    name: str | NetworkSource,
    layers: tuple[str, ...],
    pooling: str,
    sizes: Sequence[tuple[int, int]] = (),
) -> Description:
    """Describe a network and its cut without making its weights.

    An unknown network or layer is a `UserError` that lists the known ones, and so is one of
    `sizes`, (height, width), that the network does not take. `activation_bytes` is of the largest.
    A network in a file is read whole.
    """
    skeleton = make_skeleton(name)
    used = cut(skeleton, layers, pooling)
    for size in sizes:
        resize(used, size)
    widths = (int(output.shape[-1]) for output in used.outputs)
    own_pixels = math.prod(skeleton.input_shape[1:3])
    area = max((height * width / own_pixels for height, width in sizes), default=1.0)
    most = max(_count_values(layer.input) + _count_values(layer.output) for layer in used.layers)
    return Description(
        input_size=skeleton.input_shape[1:3],
        n_features=dict(zip(layers, widths, strict=True)),
        layers=_describe_layers(skeleton),
        used=frozenset(operation.name for operation in used.operations),
        weights_bytes=4 * used.count_params(),
        activation_bytes=int(4 * area * most),
    )


def _describe_layers(model: keras.Model) -> tuple[Layer, ...]:
    """Describe layers, and the bare operations between them, such as a sum."""
    model = keras.Model(model.inputs, model.outputs)  # a sequence of layers tells no operations
    calls = find_calls(model)
    numbers = {operation.name: k for k, operation in enumerate(model.operations)}
    return tuple(
        Layer(
            operation.name,
            type(operation).__name__,
            tuple(calls[operation.name][0].output_tensors[0].shape[1:]),
            operation.count_params() if isinstance(operation, keras.Layer) else 0,
            count_flop(operation, calls[operation.name]),
            tuple(
                dict.fromkeys(
                    number
                    for call in calls[operation.name]
                    for taken in call.input_tensors
                    if (number := numbers[taken._keras_history.operation.name]) < k
                )
            ),
        )
        for k, operation in enumerate(model.operations)
    )


def find_hidden_layer(name: str | NetworkSource, layer: str) -> tuple[str, int]:
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


def find_preprocessing(name: str | NetworkSource, preprocess: str) -> Callable[[Any], Any]:
    """Return the function from RGB images of 0 to 255 to a network's input."""
    if isinstance(name, NetworkSource):
        return keras_file.make_preprocessing(name)
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
def make_skeleton(name: str | NetworkSource) -> keras.Model:
    """Make a whole network with variables that have shapes but no memory, or read one's file."""
    if isinstance(name, NetworkSource):
        return keras_file.load(name)
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
    outputs = []
    with keras.StatelessScope(initialize_variables=False):  # pooling has no weights to make
        for layer in layers:
            output = model.get_layer(layer).output
            if len(output.shape) == 3:  # tokens are positions
                n_tokens, n_features = output.shape[1:]
                tokens = keras.layers.Reshape((n_tokens, 1, n_features), name=f"{layer}_tokens")
                output = tokens(output)
            # Named, so that the network can have a layer that Keras would name alike.
            name = f"{layer}_pooled"
            outputs.append(_pool(output, pooling, name) if len(output.shape) == 4 else output)
    return keras.Model(model.inputs, outputs if len(outputs) > 1 else outputs[0])


def _pool(output: Any, pooling: str, name: str) -> Any:
    """Pool an output (n_images, height, width, channels) to one row per image."""
    pools = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }
    if pooling in pools:
        return pools[pooling](name=name)(output)
    # Each of unit length: a map's maxima are many times its means, and would drown them.
    pooled = [
        keras.layers.UnitNormalization(name=f"{name}_{way}_unit", dtype="float32")(
            pools[way](name=f"{name}_{way}")(output)
        )
        for way in pooling.split(",")
    ]
    return keras.layers.Concatenate(name=name, dtype="float32")(pooled)


def resize(model: keras.Model, size: tuple[int | None, int | None]) -> keras.Model:
    """Return the same layers, and weights, for images of another size; of any, for None.

    A size that a layer does not take is a `UserError`.
    """
    own_size, layer = model.inputs[0].shape[1:3], model.layers[0]
    if size == own_size:
        return model

    def call(called: Any, *args: Any, **options: Any) -> Any:
        nonlocal layer
        layer = called
        outputs = called(*args, **options)
        if any(0 in output.shape for output in keras.tree.flatten(outputs)):
            raise ValueError("Nothing is left of the image.")
        return outputs

    try:
        with keras.StatelessScope(initialize_variables=False):
            return keras.models.clone_model(
                model, [keras.Input((*size, 3))], clone_function=lambda same: same,
                call_function=call,
            )  # fmt: skip
    except ValueError as error:
        height, width = own_size
        advice = "Give larger ones."
        if len(keras.tree.flatten(layer.input)[0].shape) != 4:  # after all positions
            advice = (
                f"It takes {height} x {width} only: cut the network before it (`features.layers`), "
                "or leave sizes out of `features.views`."
            )
        raise UserError(
            f"{layer.name} ({type(layer).__name__}) takes no images of "
            f"{size[0]} x {size[1]}. {advice}"
        ) from error


def _count_values(tensors: Any) -> int:
    """Count the values of one image in a layer's input or output."""
    return sum(math.prod(tensor.shape[1:]) for tensor in keras.tree.flatten(tensors))


def _find_application(name: str) -> Callable[..., keras.Model]:
    known: dict[str, Callable[..., keras.Model]] = {
        n: f for n, f in vars(keras.applications).items() if n[0].isupper() and callable(f)
    }
    if name not in known:
        raise UserError(f"Unknown network {name!r}. Known: {', '.join(sorted(known))}.")
    return known[name]
