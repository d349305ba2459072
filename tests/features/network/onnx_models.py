"""ONNX files made by hand, so that they share no code with what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Weights = Sequence[tuple[str, np.ndarray, np.ndarray]]
"""Name, kernel (height, width, n_in, n_out) and bias (n_out,) of convolutions."""


def draw_weights(seed: int = 0, n_out: int = 5) -> Weights:
    """One convolution of 3 x 3."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 0.2, (3, 3, 3, n_out)).astype(np.float32)
    return [("conv", kernel, rng.normal(0, 0.1, n_out).astype(np.float32))]


def write_convolutions(
    path: Path,
    weights: Weights,
    *,
    shape: Sequence[Any] = ("n", 3, 32, 32),
    pool_after: Sequence[str] = (),
    last: Sequence[Any] = (),
    initializers: Sequence[Any] = (),
) -> None:
    """Write convolutions with ReLU, some with 2 x 2 max pooling after them, then `last` nodes."""
    nodes, tensors, value = [], list(initializers), "image"
    if shape[1] != 3:
        nodes.append(helper.make_node("Transpose", [value], ["first"], perm=[0, 3, 1, 2]))
        value = "first"
    for name, kernel, bias in weights:
        kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        tensors += [
            numpy_helper.from_array(kernel, f"{name}_kernel"),
            numpy_helper.from_array(bias, f"{name}_bias"),
        ]
        nodes += [
            helper.make_node(
                "Conv", [value, f"{name}_kernel", f"{name}_bias"], [f"{name}_sum"],
                name=f"{name}_sum", pads=[1, 1, 1, 1],
            ),
            helper.make_node("Relu", [f"{name}_sum"], [name], name=name),
        ]  # fmt: skip
        value = name
        if name in pool_after:
            pooled = f"{name}_pool"
            nodes.append(
                helper.make_node(
                    "MaxPool", [value], [pooled], name=pooled,
                    kernel_shape=[2, 2], strides=[2, 2],
                )
            )  # fmt: skip
            value = pooled
    nodes += last
    end = nodes[-1].output[0]
    write(path, nodes, tensors, shape, end)


def write(
    path: Path, nodes: Sequence[Any], tensors: Sequence[Any], shape: Sequence[Any], end: str
) -> None:
    """Write a graph from ``image`` to `end`."""
    graph = helper.make_graph(
        list(nodes), "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
        list(tensors),
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests"
    )
    onnx.save(model, str(path))
