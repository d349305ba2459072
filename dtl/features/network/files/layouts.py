"""Which axis of an output is that of channels: OpenVINO's convolutions have it first."""

from __future__ import annotations

from typing import Any

_CHANNELS_FIRST = {
    "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
    "MaxPool", "AvgPool", "BatchNormInference", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
"""Operations whose output is (images, channels, height, width)."""


def find_channel_axis(output: Any, layout: str) -> int | None:
    """Find the axis of channels of an output with four; None if its operations do not tell.

    They are followed back to one that has channels first, or to the image, whose `layout` is nchw
    or nhwc. Between may lie transpositions, and operations that keep the shape.
    """
    sizes = [d.get_length() for d in list(output.get_partial_shape())[1:]]
    if sum(n > 1 for n in sizes) == 1:
        return 1 + max(range(3), key=sizes.__getitem__)
    axes = [0, 1, 2, 3]  # of the output, by axis of the value that is looked at
    while True:
        op = output.get_node()
        kind = op.get_type_name()
        if kind in _CHANNELS_FIRST:
            return axes[1]
        if kind == "Parameter":
            return axes[layout.index("c")]
        if kind == "Transpose":
            order = op.input_value(1).get_node()
            if order.get_type_name() != "Constant":
                return None
            given = [int(axis) for axis in order.get_data()]
            axes = [axes[given.index(axis)] for axis in range(4)]
            output = op.input_value(0)
            continue
        alike = [v for v in op.input_values() if _is_kept(v, output, kind)]
        if not alike:
            return None
        output = alike[0]


def _is_kept(value: Any, output: Any, kind: str) -> bool:
    """Return whether a value has the output's axes: the same shape, or parts that are joined."""
    if value.get_node().get_type_name() == "Constant" or kind == "Reshape":
        return False
    shape = value.get_partial_shape()
    return len(shape) == 4 and (kind == "Concat" or shape == output.get_partial_shape())
