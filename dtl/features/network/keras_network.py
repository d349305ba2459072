"""The pretrained network of a process, cut at the layers whose outputs are the features."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.cluster import processors
from dtl.config.errors import UserError
from dtl.features.network.architecture import changed, cut, describe, find_preprocessing, resize
from dtl.features.network.quiet_keras import GPUS, keras
from dtl.features.network.weights.loading import hash_weights, make_with_weights
from dtl.features.values import NetworkSpec


def list_precisions() -> list[str]:
    """List the precisions that this process computes at least as fast as float32, fastest first."""
    if GPUS:
        return ["float16", "float32"]
    return [name for name in processors.list_precisions() if name != "int8"]


class Network:
    """A network with its weights, cut at layers; hold `lock` while a chunk is computed."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.description = describe(spec.name, spec.layers, spec.pooling)
        self.lock, self.on_cpu = threading.Lock(), not GPUS
        with _dtype_policy(spec.precision):
            self.model = cut(make_with_weights(spec), spec.layers, spec.pooling)
        self._on_pixels: dict[tuple[int, ...], keras.Model] = {}
        self.prepare([self.description.input_size])
        self.weights_sha256 = hash_weights(self.model)

    def prepare(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Make ready for images of these sizes; a `UserError` if it takes none of one of them."""
        for size in sizes:
            if size in self._on_pixels:
                continue
            # Preprocessing is of the graph: a batch of bytes is a quarter of one of floats to fill.
            pixels = keras.Input((*size, 3), dtype="uint8")
            floats = keras.ops.cast(pixels, "float32")
            preprocess = find_preprocessing(self.spec.name, self.spec.preprocess)
            outputs = resize(self.model, size)(preprocess(floats))
            self._on_pixels[size] = _name_outputs(pixels, self.spec.layers, outputs)

    def compute(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Preprocess RGB images (n_images, height, width, 3), and compute features by layer."""
        size = pixels.shape[1:3]
        self.prepare([size])
        return _predict(self._on_pixels[size], pixels)

    def export_openvino(self, path: Path) -> None:
        """Write it as OpenVINO reads it, pixels in and features by layer out, to an .xml file."""
        on_pixels = self._on_pixels[self.description.input_size]
        on_pixels.export(str(path), format="openvino", verbose=False)

    def find_last_before(self, layers: tuple[str, ...], stored: Sequence[str]) -> str:
        """Find the last stored layer that all of `layers` follow from, or refuse them.

        It has no positions: pooling has lost them.
        """
        names = [layer.name for layer in self.model.layers]
        for layer in sorted(stored, key=names.index, reverse=True):
            if layer not in layers and len(self._output(layer).shape) == 2:
                with contextlib.suppress(ValueError):  # not all paths lead through it
                    self._cut_between(layer, layers)
                    return layer
        raise UserError(
            f"{', '.join(layers)} of {self.spec.name} cannot be computed from the stored "
            f"{', '.join(stored)}. It takes an earlier layer without positions, such as fc1."
        )

    def hash_up_to(self, layers: Sequence[str]) -> str:
        """Return the `weights_sha256` of the network that is cut at these of its layers."""
        return hash_weights(keras.Model(self.model.inputs, [*map(self._output, layers)]))

    def compute_from(
        self, layer: str, values: NDArray[np.float32], layers: tuple[str, ...], batch_images: int
    ) -> dict[str, NDArray[np.float32]]:
        """Compute features of layers from `values` (n_images, n_features) of an earlier one.

        Zeros fill up the last batch, as black images do where images are featurized: the bits
        depend on its size.
        """
        later, n_images = self._cut_between(layer, layers), len(values)
        filled = np.zeros((-(-n_images // batch_images) * batch_images, values.shape[1]), "f4")
        filled[:n_images] = values
        parts = [
            _predict(later, filled[start : start + batch_images])
            for start in range(0, len(filled), batch_images)
        ]
        return {name: np.concatenate([p[name] for p in parts])[:n_images] for name in layers}

    @functools.lru_cache(maxsize=1)  # noqa: B019  (one network per process)
    def _cut_between(self, layer: str, layers: tuple[str, ...]) -> keras.Model:
        with _dtype_policy(self.spec.precision):
            return _name_outputs(self._output(layer), layers, [*map(self._output, layers)])

    def _output(self, layer: str) -> Any:
        return self.model.get_layer(layer).output


_loading = threading.Lock()
_load = functools.lru_cache(maxsize=1)(Network)


def load(spec: NetworkSpec) -> Network:
    """Return the network of this process, made at the first call."""
    with _loading:
        return _load(spec)


def read_dense(
    spec: NetworkSpec, name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Read kernel (n_inputs, n_units) and bias (n_units,) of a Dense layer of a network.

    The layer may lie behind the network's cut; the third value hashes the weights up to the cut.
    """
    # Not by `load`, which would keep it: no task wants this cut again.
    network = Network(replace(spec, layers=tuple(dict.fromkeys((*spec.layers, name)))))
    kernel, bias = network.model.get_layer(name).get_weights()
    return kernel, bias, network.hash_up_to(spec.layers)


def _name_outputs(inputs: Any, layers: Sequence[str], outputs: Any) -> keras.Model:
    outputs = dict(zip(layers, keras.tree.flatten(outputs), strict=True))
    model = keras.Model(inputs, outputs)
    # XLA makes this several times slower on a CPU under TensorFlow; JAX has nothing else.
    model.jit_compile = keras.backend.backend() == "jax"
    return model


def _predict(model: keras.Model, batch: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    outputs = model.predict_on_batch(batch)
    return {layer: np.asarray(output, np.float32) for layer, output in outputs.items()}


def _dtype_policy(precision: str) -> contextlib.AbstractContextManager[None]:
    name = precision if precision == "float32" else f"mixed_{precision}"
    return changed(keras.config.dtype_policy, keras.config.set_dtype_policy, name)
