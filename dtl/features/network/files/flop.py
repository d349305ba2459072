"""Floating-point operations of OpenVINO's operations; see `dtl.features.network.flop`."""

from __future__ import annotations

import math
from typing import Any

_AT_OUTPUTS = {"Convolution", "GroupConvolution"}
_AT_INPUTS = {"ConvolutionBackpropData", "GroupConvolutionBackpropData"}
_NOT_COUNTED = {
    "AUGRUCell", "AUGRUSequence", "BinaryConvolution", "DeformableConvolution", "GRUCell",
    "GRUSequence", "If", "LSTMCell", "LSTMSequence", "Loop", "RNNCell", "RNNSequence",
    "TensorIterator",
}  # fmt: skip
"""Operations with products that we do not count."""


def count_flop(op: Any) -> int | None:
    """Count the floating-point operations of an operation; None if not known.

    Its shapes must be those for one image: any that is open leaves the count open, too.
    """
    kind = op.get_type_name()
    ports = [*op.inputs(), *op.outputs()]
    if kind in _NOT_COUNTED:
        return None
    if kind not in {*_AT_OUTPUTS, *_AT_INPUTS, "MatMul", "Einsum", "ScaledDotProductAttention"}:
        return 0
    if any(port.get_partial_shape().is_dynamic for port in ports):
        return None
    shapes: list[tuple[int, ...]] = [tuple(port.get_shape()) for port in ports]
    if len(shapes) < 3:
        return None  # an Einsum of one operand
    first, second, *_, result = shapes
    if kind == "MatMul":
        is_transposed = op.get_attributes()["transpose_a"] and len(first) > 1
        return 2 * math.prod(result) * first[-2 if is_transposed else -1]
    if kind == "Einsum":
        terms = op.get_attributes()["equation"].split("->")[0].split(",")
        if "..." in str(terms) or len(terms) != 2:
            return None
        sizes = dict(zip("".join(terms), first + second, strict=True))
        return 2 * math.prod(sizes.values())
    if kind == "ScaledDotProductAttention":  # of queries, keys and values
        return 2 * math.prod(first[:-1]) * second[-2] * (first[-1] + shapes[2][-1])
    positions = (result if kind in _AT_OUTPUTS else first)[2:]
    return 2 * math.prod(second) * math.prod(positions)
