"""Floating-point operations of Keras' layers, counted from the shapes of kernels and outputs.

Only products count: of convolutions, dense layers and attention, which are nearly all that a
network computes. A multiply-add is two operations, as processors are rated. VGG16 up to fc2 is 15.5
billion multiply-adds, which papers often call FLOPs, and so 30.9 GFLOP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dtl.features.network.quiet_keras import keras
from dtl.features.values import add_up

Calls = dict[str, list[Any]]
"""Keras' nodes by the name of their layer; a node has ``input_tensors`` and ``output_tensors``."""

_KERNELS = (
    keras.layers.Dense,
    keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D, keras.layers.SeparableConv2D,
)  # fmt: skip
"""Layers that apply all of their kernels at each position of their output."""

_TRANSPOSED = (
    keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose,
)  # fmt: skip
"""Layers that apply theirs at each position of their input."""

_NO_PRODUCTS = (keras.layers.Embedding, keras.layers.LayerNormalization, keras.layers.PReLU)
"""Layers whose weights may be matrices that multiply value by value, or not at all."""

_NOT_COUNTED = {
    "AdditiveAttention", "Conv", "ConvTranspose", "DepthwiseConv", "Dot", "DotProductAttention",
    "Einsum", "Inner", "Outer", "SeparableConv", "Tensordot", "Vdot",
}  # fmt: skip
"""Products without a kernel that we do not count."""


def find_calls(model: keras.Model) -> Calls:
    """Find where a model calls its layers, and bare operations such as a sum."""
    calls: Calls = {}
    waiting = [*keras.tree.flatten(model.outputs)]
    while waiting:
        operation, k, _ = waiting.pop()._keras_history
        node = operation._inbound_nodes[k]
        if node not in (known := calls.setdefault(operation.name, [])):
            known.append(node)
            waiting += node.input_tensors
    return calls


def count_flop(layer: Any, calls: Sequence[Any]) -> int | None:
    """Count the floating-point operations of a layer in its calls, for one image; None: unknown."""
    counts = [_count_products(layer, call.input_tensors, call.output_tensors) for call in calls]
    return add_up(None if count is None else 2 * count for count in counts)


def _count_products(layer: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> int | None:
    if any(None in tensor.shape[1:] for tensor in (*inputs, *outputs)):
        return None
    if isinstance(layer, keras.Model):
        return _count_model(layer, inputs)
    weights = layer.weights if isinstance(layer, keras.Layer) else []
    n_kernel: int = sum(math.prod(w.shape) for w in weights if sum(n > 1 for n in w.shape) > 1)
    if isinstance(layer, (*_KERNELS, *_TRANSPOSED)):
        n_kernel = sum(math.prod(w.shape) for w in weights if len(w.shape) > 1)
        (image,) = inputs if isinstance(layer, _TRANSPOSED) else outputs
        first = getattr(layer, "data_format", None) == "channels_first"
        return int(n_kernel * math.prod(image.shape[1:]) // image.shape[1 if first else -1])
    if isinstance(layer, keras.layers.EinsumDense):
        taken, result = layer.equation.split("->")
        sizes = dict(zip(taken.split(",")[1], layer.kernel.shape, strict=True))
        n_units = math.prod(sizes.get(letter, 1) for letter in result)
        return int(n_kernel * math.prod(outputs[0].shape[1:]) // n_units)
    if isinstance(layer, keras.layers.MultiHeadAttention):
        return _count_attention(layer, inputs)
    if type(layer) is keras.layers.Attention:
        if len(inputs) not in (2, 3) or any(len(tensor.shape) != 3 for tensor in inputs):
            return None  # masks, or several dimensions of positions
        query, value, *rest = (tensor.shape for tensor in inputs)
        key = rest[0] if rest else value
        return int(query[1] * value[1] * (key[2] + value[2]))
    if type(layer).__name__ == "Matmul":
        if len(inputs) != 2:
            return None  # one is a constant
        return int(math.prod(outputs[0].shape[1:]) * inputs[0].shape[-1])
    is_known = not n_kernel or isinstance(layer, _NO_PRODUCTS)
    return 0 if is_known and type(layer).__name__ not in _NOT_COUNTED else None


def _count_model(model: keras.Model, inputs: Sequence[Any]) -> int | None:
    """Count a network inside a network, if it is one of known layers, made for images of a size."""
    if [t.shape for t in model.inputs or ()] != [t.shape for t in inputs]:
        return None
    inner = keras.Model(model.inputs, model.outputs)
    calls = find_calls(inner)
    twice = add_up(count_flop(layer, calls.get(layer.name, [])) for layer in inner.operations)
    return None if twice is None else twice // 2


def _count_attention(layer: Any, inputs: Sequence[Any]) -> int | None:
    """Count four projections, and for each head scores and weighted means of all pairs."""
    query, value = inputs[0].shape, inputs[min(1, len(inputs) - 1)].shape
    if len(inputs) > 2 or len(query) != 3 or len(value) != 3:
        return None
    n_queries, n_values = query[1], value[1]
    projections = sum(
        n * math.prod(dense.kernel.shape)
        for n, dense in (
            (n_queries, layer.query_dense), (n_values, layer.key_dense),
            (n_values, layer.value_dense), (n_queries, layer.output_dense),
        )
    )  # fmt: skip
    pairs = layer.num_heads * n_queries * n_values * (layer.key_dim + layer.value_dim)
    return int(projections + pairs)
