"""ONNX files and OpenVINO's own, cut and brought into the form that `network_file` says.

OpenVINO's reader of ONNX is C++: call these functions by `source.read_apart`.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtl.config.errors import UserError
from dtl.features.network.files.flop import count_flop
from dtl.features.network.files.layouts import find_channel_axis
from dtl.features.network.files.source import NetworkSource, local_files
from dtl.features.network.network_file import NetworkFile
from dtl.features.network.openvino_network import count_values, write_model
from dtl.features.network.quiet_openvino import core, openvino
from dtl.features.values import Description, Layer, NetworkSpec, add_up

_N_NAMED = 20
"""Operations that a message lists."""

_NO_LAYER = {"Constant", "Parameter", "Result"}
"""Operations that a summary leaves out."""


def read(source: NetworkSource, layers: tuple[str, ...], pooling: str) -> openvino.Model:
    """Read a network, cut it at outputs, and put in front what its declaration says.

    Parameters
    ----------
    layers : tuple of str
        Names of tensors or of operations in the file.
    pooling : str
        As `features.pooling`. Tokens, (n_images, n_tokens, n_features), are pooled like positions.

    Raises
    ------
    UserError
        For a file that is no network, unknown outputs, an input or an output of another form, a
        declaration that does not fit, or operations that OpenVINO lacks.
    """
    whole = _read(source)
    outputs = [_find_output(whole, layer, source.url) for layer in layers]
    model = openvino.Model([*map(_end, outputs)], [_find_input(whole, outputs, source.url)])
    layout = _fix_input(model, source)
    pooled = [
        _pool(result.input_value(0), layer, pooling, layout, source.url)
        for result, layer in zip(model.get_results(), layers, strict=True)
    ]
    model = openvino.Model([*map(_end, pooled)], model.get_parameters())
    model = _preprocess(model, source, layout)
    for output, layer in zip(model.outputs, layers, strict=True):
        output.get_tensor().set_names({layer})
    for op in model.get_ops():
        if "fused_names_0" in (found := op.get_rt_info()):
            del found["fused_names_0"]  # with numbers that count all of a process
    _try(model, source.url)
    return model


def convert(
    source: NetworkSource, spec: NetworkSpec, made_from: Mapping[str, Any], path: Path
) -> NetworkFile:
    """Read a network, and write it to files of this machine, `path` with suffixes."""
    model = read(source, spec.layers, spec.pooling)
    return write_model(model, path, source.sha256, made_from)


def describe(source: NetworkSource, layers: tuple[str, ...], pooling: str) -> Description:
    """Describe a network and its cut, refusing what `read` does."""
    model = read(source, layers, pooling)
    size = model.input().get_partial_shape()
    whole = _read(source)
    outputs = [_find_output(whole, layer, source.url) for layer in layers]
    used = {op.get_name() for op in _trace(outputs)}
    _size_for_one_image(whole, outputs, source)
    # The same name for an output as in the options, which may call it by its tensor.
    names = {o.get_node().get_name(): n for o, n in zip(outputs, layers, strict=True)}
    n_parameters = _share(whole.get_ordered_ops(), _count_parameters)
    flop = _share(whole.get_ordered_ops(), count_flop)
    operations = _list_named(whole)
    numbers = {op.get_name(): k for k, op in enumerate(operations)}

    def name(op: Any) -> str:
        return str(names.get(op.get_name(), op.get_friendly_name()))

    return Description(
        input_size=(size[1].get_length(), size[2].get_length()),
        n_features={
            layer: output.get_partial_shape()[1].get_length()
            for layer, output in zip(layers, model.outputs, strict=True)
        },
        layers=tuple(
            Layer(
                name(op),
                op.get_type_name(),
                _list_sizes(op),
                n_parameters[op.get_name()] or 0,
                flop[op.get_name()],
                _list_inputs(op, numbers),
            )
            for op in operations
        ),
        used=frozenset(name(op) for op in operations if op.get_name() in used),
        weights_bytes=4 * sum(map(_count_numbers, _trace(outputs))),
        activation_bytes=4 * max(map(count_values, model.get_ops())),
    )


def _size_for_one_image(
    model: openvino.Model, outputs: Sequence[Any], source: NetworkSource
) -> None:
    """Give operations the shapes that they have for one image."""
    cut = openvino.Model([*map(_end, outputs)], [_find_input(model, outputs, source.url)])
    _fix_input(cut, source)
    size = [n.get_length() for n in list(cut.input().get_partial_shape())[1:]]
    _reshape(cut, [1, *size], source.url)
    with contextlib.suppress(RuntimeError):  # what no feature needs may take other sizes only
        model.validate_nodes_and_infer_types()


def _list_inputs(op: Any, numbers: Mapping[str, int]) -> tuple[int, ...]:
    """List the numbers of the operations that one takes, past those without a number."""
    found: dict[int, None] = {}
    waiting, seen = [value.get_node() for value in op.input_values()], set()
    while waiting:
        taken = waiting.pop(0)
        if taken.get_name() in numbers:
            found[numbers[taken.get_name()]] = None
        elif taken.get_name() not in seen:
            seen.add(taken.get_name())
            waiting += [value.get_node() for value in taken.input_values()]
    return tuple(found)


def _read(source: NetworkSource) -> openvino.Model:
    try:
        with local_files(source) as path:
            return core.read_model(path)
    except RuntimeError as error:
        raise UserError(
            f"{source.url} is no network that OpenVINO reads: {_shorten(error)}. Copy it again, or "
            "export it again. Weights in a file of their own must lie beside it, named "
            "NAME.onnx.data or NAME.onnx_data, or NAME.bin for NAME.xml."
        ) from error


def _find_output(model: openvino.Model, layer: str, url: str) -> Any:
    operations = _list_named(model)
    for op in operations:
        for output in op.outputs():
            if layer in output.get_names():
                return output
    for op in operations:
        if layer == op.get_friendly_name() and op.get_output_size() == 1:
            return op.output(0)
    names = list(dict.fromkeys(op.get_friendly_name() for op in operations))
    tensors = [name for op in operations for output in op.outputs() for name in output.get_names()]
    close = difflib.get_close_matches(layer, [*names, *tensors], 3, 0.5)
    hint = f"Did you mean {', '.join(dict.fromkeys(close))}? " if close else ""
    raise UserError(
        f"{url} has no output {layer!r}. {hint}Of its {len(names)} operations the last are: "
        f"{', '.join(names[-_N_NAMED:])}. Name those to store as `features.layers`."
    )


def _list_named(model: openvino.Model) -> list[Any]:
    """List the operations that can be named: OpenVINO numbers those that it makes of others."""
    operations = [op for op in model.get_ordered_ops() if op.get_type_name() not in _NO_LAYER]
    named = [op for op in operations if any(output.get_names() for output in op.outputs())]
    return named or operations  # in files of its own all have names that stay


def _trace(outputs: Sequence[Any]) -> list[Any]:
    """List the operations that outputs follow from."""
    found: dict[str, Any] = {}
    waiting = [output.get_node() for output in outputs]
    while waiting:
        op = waiting.pop()
        if op.get_name() not in found:
            found[op.get_name()] = op
            waiting += [value.get_node() for value in op.input_values()]
    return list(found.values())


def _find_input(model: openvino.Model, outputs: Sequence[Any], url: str) -> Any:
    used = {op.get_name() for op in _trace(outputs)}
    inputs = [p for p in model.get_parameters() if p.get_name() in used]
    if len(inputs) != 1:
        names = ", ".join(p.get_friendly_name() for p in inputs) or "none"
        raise UserError(
            f"The outputs in `features.layers` take one input, the image. In {url} they take: "
            f"{names}. Cut at other outputs, or export the network with one input."
        )
    return inputs[0]


def _fix_input(model: openvino.Model, source: NetworkSource) -> str:
    """Give the input its size, and any number of images; return its layout."""
    declared, shape, toml = (
        source.declared,
        model.input().get_partial_shape(),
        source.declaration_url,
    )
    if shape.rank.is_dynamic or len(shape) != 4:
        raise UserError(
            f"The input of {source.url} has the shape {shape}, and is no image of (batch, "
            "channels, height, width) or (batch, height, width, channels)."
        )
    at = {"nchw": 1, "nhwc": 3}
    layouts = [name for name, axis in at.items() if shape[axis] == openvino.Dimension(3)]
    if declared.layout != "auto":
        axis = at[declared.layout]
        layouts = [declared.layout] if shape[axis].compatible(openvino.Dimension(3)) else []
    elif not layouts and any(shape[axis].is_dynamic for axis in at.values()):
        layouts = [*at]
    if not layouts:
        raise UserError(
            f"The input of {source.url} has the shape {shape}, without 3 channels"
            f"{'' if declared.layout == 'auto' else f' where layout = {declared.layout} has them'}."
            f" It takes colour images. If they are elsewhere, mend layout in {toml}."
        )
    if len(layouts) > 1:
        raise UserError(
            f"The input of {source.url} has the shape {shape}, which does not tell where its "
            f'channels are. Add to {toml}: layout = "nchw" (channels first, as PyTorch has them) '
            'or layout = "nhwc".'
        )
    (layout,) = layouts
    axes = [layout.index("h"), layout.index("w")]
    fixed = [shape[axis].get_length() if shape[axis].is_static else None for axis in axes]
    size = list(declared.size) or fixed
    if None in size:
        raise UserError(
            f"{source.url} takes images of any size ({shape}). Add the one to use to {toml}, such "
            "as: size = [224, 224]"
        )
    if not all(
        shape[axis].compatible(openvino.Dimension(n)) for axis, n in zip(axes, size, strict=True)
    ):
        raise UserError(
            f"{toml} declares size = {size}, but the input of {source.url} has the shape {shape}. "
            "Mend the size, or leave it out."
        )
    whole = [-1, 3, *size] if layout == "nchw" else [-1, *size, 3]
    _reshape(model, whole, source.url)
    return layout


def _reshape(model: openvino.Model, shape: Sequence[int], url: str) -> None:
    try:
        model.reshape(openvino.PartialShape(list(shape)))
    except RuntimeError as error:
        raise UserError(
            f"{url} does not take images of the shape {[*shape]} (-1: any number): "
            f"{_shorten(error)}. If it was exported for a batch of one size, export it for any: "
            "with dynamic_axes or dynamic_shapes in PyTorch. Otherwise give another size."
        ) from error


def _pool(output: Any, layer: str, pooling: str, layout: str, url: str) -> Any:
    """Return one row per image, float32 (n_images, n_features)."""
    ops, shape = openvino.opset13, output.get_partial_shape()
    if (
        shape.rank.is_dynamic
        or not 2 <= len(shape) <= 4
        or any(d.is_dynamic for d in list(shape)[1:])
    ):
        raise UserError(
            f"The output {layer} of {url} has the shape {shape}. It must be (images, features), "
            "(images, tokens, features) or have a height and width, each of fixed size. Cut at "
            "another output."
        )
    rows = ops.convert(output, np.float32)
    positions = [1] if len(shape) == 3 else []
    if len(shape) == 4 and pooling != "flatten":
        channels = find_channel_axis(output, layout)
        if channels is None:
            raise UserError(
                f"The output {layer} of {url} has the shape {shape}, and its operations do not "
                "tell which of these are channels. Cut at an earlier or a later output, or set "
                "`features.pooling` = flatten."
            )
        positions = [axis for axis in (1, 2, 3) if axis != channels]
    reductions = {"avg": ops.reduce_mean, "max": ops.reduce_max}
    kinds = pooling.split(",") if positions and pooling != "flatten" else []
    parts = [reductions[kind](rows, np.array(positions), False) for kind in kinds] or [rows]
    flat = [ops.reshape(part, np.array([0, -1]), True) for part in parts]
    return flat[0] if len(flat) == 1 else ops.concat(flat, 1)


def _preprocess(model: openvino.Model, source: NetworkSource, layout: str) -> openvino.Model:
    """Put in front what makes of RGB pixels, uint8 (n_images, height, width, 3), its input."""
    declared, kind = source.declared, model.input().get_element_type()
    plain = not declared.offset.any() and (declared.divisor == 1).all()
    if not kind.is_real() and not plain:
        raise UserError(
            f"The input of {source.url} takes whole numbers ({kind.get_type_name()}), so pixels "
            f"stay as they are. Leave scale, mean and deviation out of {source.declaration_url}."
        )
    steps = openvino.preprocess.PrePostProcessor(model)
    pixels = steps.input()
    pixels.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    pixels.model().set_layout(openvino.Layout(layout.upper()))
    if declared.order == "bgr":
        pixels.preprocess().reverse_channels()
    if not plain:
        made = pixels.preprocess().convert_element_type(openvino.Type.f32)
        made.mean(declared.offset.tolist()).scale(declared.divisor.tolist())
    return steps.build()


def _try(model: openvino.Model, url: str) -> None:
    """Compute features of two images, together and alone; refuse what does not give them."""
    size = [n.get_length() for n in list(model.input().get_partial_shape())[1:]]
    images = np.random.default_rng(0).integers(0, 256, (2, *size), np.uint8)
    computed = []
    for batch in (images, images[1:]):
        trial = model.clone()
        _reshape(trial, batch.shape, url)
        if any(
            len(s := list(o.get_partial_shape())) != 2 or s[0] != len(batch) for o in trial.outputs
        ):
            raise UserError(_FIXED.format(url=url))
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        try:
            found = core.compile_model(trial, "CPU", hints)(batch)
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot run {url}: {_shorten(error)}. Export it with other operations "
                "(an opset of ONNX that it has), or cut before them."
            ) from error
        computed.append([found[k] for k in range(len(trial.outputs))])
    for two, one in zip(*computed, strict=True):
        if not np.isfinite(two).all():
            raise UserError(
                f"The features of {url} are not finite, for random pixels. Its file, or its "
                "declaration, is wrong."
            )
        if not np.allclose(two[1:], one, rtol=1e-2, atol=1e-3 * float(np.abs(one).max())):
            raise UserError(_FIXED.format(url=url))


_FIXED = (
    "The features of an image from {url} depend on how many are computed together, or on the "
    "others. Export it for any number of images: in PyTorch with dynamic_axes or dynamic_shapes."
)


def _end(output: Any) -> Any:
    return openvino.opset13.result(output)


def _list_sizes(op: Any) -> tuple[int | None, ...]:
    shape = op.output(0).get_partial_shape() if op.get_output_size() else openvino.PartialShape([])
    if shape.rank.is_dynamic:
        return ()
    return tuple(n.get_length() if n.is_static else None for n in list(shape)[1:])


def _count_parameters(op: Any) -> int:
    """Count the numbers of the constants that an operation takes."""
    if op.get_type_name() == "ShapeOf":
        return 0
    return sum(_count_numbers(value.get_node()) for value in op.input_values())


def _count_numbers(op: Any) -> int:
    is_weight = op.get_type_name() == "Constant" and op.get_element_type().is_real()
    return math.prod(op.get_output_shape(0)) if is_weight else 0


def _share(operations: Sequence[Any], count: Callable[[Any], int | None]) -> dict[str, int | None]:
    """Count by operation; what one without a name counts goes to the next that has one."""
    counts: dict[str, int | None] = {}
    waiting: list[int | None] = []
    for op in operations:
        waiting.append(count(op))
        if any(output.get_names() for output in op.outputs()) and op.get_type_name() != "Constant":
            counts[op.get_name()], waiting = add_up(waiting), []
        else:
            counts[op.get_name()] = waiting[-1]
    return counts


def _shorten(error: Exception) -> str:
    """Return the last line of an error that says what it is: others say where it arose."""
    lines = [line.strip(" .") for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [""])[-1][:300]
