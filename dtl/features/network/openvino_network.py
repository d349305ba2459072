"""Networks on OpenVINO: written, read, and run; see `network_file` for their one form."""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.cluster import processors
from dtl.config.errors import UserError
from dtl.features.network.network_file import NetworkFile, hash_files, local_files
from dtl.features.network.quiet_openvino import core, openvino
from dtl.features.values import FileSpec

_RUNTIME = re.compile(r"\n\t<rt_info>\n.*\n\t</rt_info>(?=\n</net>)", re.DOTALL)
"""The last part of a graph: which versions wrote it, and how."""

_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}
"""OpenVINO's name of the precision of all that is not quantized."""


class OpenVinoNetwork:
    """A network that OpenVINO compiles for batches of one length, and images of some sizes.

    Hold `lock` while a chunk is computed.
    """

    def __init__(
        self, model: openvino.Model, weights_sha256: str, precision: str, batch_images: int
    ) -> None:
        self.weights_sha256, self.on_cpu = weights_sha256, True
        self.lock = threading.Lock()
        self._model, self._precision, self._batch_images = model, precision, batch_images
        self._requests: dict[tuple[int, ...], openvino.InferRequest] = {}
        self._layers = [output.get_any_name() for output in model.outputs]

    def prepare(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Make ready for images of these sizes; a `UserError` if it takes none of one of them."""
        for size in sizes:
            if size in self._requests:
                continue
            own = "x".join(str(n) for n in list(self._model.input().get_partial_shape())[1:3])
            try:
                self._model.reshape(openvino.PartialShape([self._batch_images, *size, 3]))
            except RuntimeError as error:
                raise UserError(
                    f"The network takes no images of {size[0]} x {size[1]}, as {own} are. Cut it "
                    "before its dense layers, or leave sizes out of `features.views`."
                ) from error
            compiled = core.compile_model(self._model, "CPU", _configure(self._precision))
            self._requests[size] = compiled.create_infer_request()

    def compute(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Compute features by layer of RGB images (n_images, height, width, 3), at most a batch."""
        n_images, size = len(pixels), pixels.shape[1:3]
        self.prepare([size])
        if n_images < self._batch_images:
            pixels, given = np.zeros((self._batch_images, *size, 3), np.uint8), pixels
            pixels[:n_images] = given
        # The results lie in memory that the next call writes to.
        found = self._requests[size].infer([np.ascontiguousarray(pixels)], share_inputs=True)
        outputs = (found[k][:n_images].copy() for k in range(len(self._layers)))
        return dict(zip(self._layers, outputs, strict=True))


def _configure(precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": processors.count_threads(),
        # Several workers of a machine would all be pinned to its first processors.
        "ENABLE_CPU_PINNING": False,
    }


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _load(spec: FileSpec) -> OpenVinoNetwork:
    with local_files(spec.url, spec.sha256) as (xml, weights):
        model = read_files(xml, weights)
        return OpenVinoNetwork(model, spec.sha256, spec.precision, spec.batch_images)


def load(spec: FileSpec) -> OpenVinoNetwork:
    """Return the network of this process, compiled at the first call.

    Files that are gone, or have another SHA-256 than `spec` says, are a `UserError`.
    """
    with _loading:
        return _load(spec)


def read_model(url: str, sha256: str) -> openvino.Model:
    """Read a network of this SHA-256; files that are gone, or others, are a `UserError`."""
    with local_files(url, sha256) as (xml, weights):
        return read_files(xml, weights)


def read_files(xml: Path, weights: Path) -> openvino.Model:
    """Read a network from files of this machine."""
    return core.read_model(xml, weights)


def find_input_size(model: openvino.Model) -> tuple[int, int]:
    """Return height and width of the images of a network in the form of `network_file`."""
    pixels = model.input().get_partial_shape()
    return pixels[1].get_length(), pixels[2].get_length()


def write_model(
    model: openvino.Model, path: Path, source_sha256: str, made_from: Mapping[str, Any]
) -> NetworkFile:
    """Write a network to files of this machine, `path` with .xml and .bin, and describe it.

    The same network has the same bytes: what tells only of its making is left out of them. One of
    another form than `network_file` says is a `ValueError`.
    """
    pixels = model.input().get_partial_shape()
    outputs = {output.get_any_name(): output.get_partial_shape() for output in model.outputs}
    if (
        model.input().get_element_type() != openvino.Type.u8
        or len(pixels) != 4
        or any(pixels[k].is_dynamic for k in (1, 2))
        or any(len(shape) != 2 or shape[1].is_dynamic for shape in outputs.values())
    ):
        raise ValueError(f"It has not the form of `network_file`: {model}")
    _rename(model, [*outputs])
    xml, weights = path.with_suffix(".xml"), path.with_suffix(".bin")
    openvino.serialize(model, xml, weights)
    graph = _RUNTIME.sub("", xml.read_text())
    xml.write_text(re.sub(r'<net name="[^"]*"', '<net name="network"', graph, count=1))
    constants = (op for op in model.get_ops() if op.get_type_name() == "Constant")
    most = max(map(count_values, model.get_ops()))
    return NetworkFile(
        sha256=hash_files(xml, weights),
        source_sha256=source_sha256,
        input_size=find_input_size(model),
        n_features={layer: shape[1].get_length() for layer, shape in outputs.items()},
        weights_bytes=4 * sum(math.prod(op.get_output_shape(0)) for op in constants),
        made_from=dict(made_from),
        activation_bytes=4 * most,
        is_quantized=is_quantized(model),
    )


def is_quantized(model: openvino.Model) -> bool:
    """Return whether a network computes in int8."""
    return any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())


def count_values(op: openvino.Node) -> int:
    """Count the values of one image in an operation's inputs and outputs."""
    shapes = [port.get_partial_shape() for port in (*op.inputs(), *op.outputs())]
    of_images = [list(s)[1:] for s in shapes if s.rank.is_static and len(s) and s[0].is_dynamic]
    return sum(
        math.prod(n.get_length() for n in dims)
        for dims in of_images
        if not any(n.is_dynamic for n in dims)
    )


def _rename(model: openvino.Model, layers: list[str]) -> None:
    """Name operations by their order: some have numbers that count all of a process."""
    for k, op in enumerate(model.get_ordered_ops()):
        op.set_friendly_name(f"{op.get_type_name()}_{k}")
        for output in op.outputs():
            output.get_tensor().set_names(set())
    model.input().get_tensor().set_names({"pixels"})
    for layer, output in zip(layers, model.outputs, strict=True):
        output.get_tensor().set_names({layer})
