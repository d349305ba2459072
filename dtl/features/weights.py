"""Weights of a network: random, ImageNet's, or from files in Keras' own formats and .npz."""

from __future__ import annotations

import functools
import hashlib
import random
import socket
import zlib
from collections.abc import Iterator
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dtl import storage
from dtl.config.errors import UserError
from dtl.features.architecture import changed, cut, make, make_skeleton
from dtl.features.quiet_keras import keras
from dtl.features.values import NetworkSpec

_DOWNLOAD_TIMEOUT_S = 30


def make_with_weights(spec: NetworkSpec) -> keras.Model:
    """Make a network up to the last of its layers, or to its top, with its weights.

    A file that does not fit is a `UserError`; weights that cannot be had are an `OSError`.
    """
    skeleton = make_skeleton(spec.name)
    # Without the dense layers where the cut does not need them: VGG16's are nine tenths of it.
    options = {"include_top": False, "input_shape": skeleton.input_shape[1:]}
    with keras.StatelessScope(initialize_variables=False):
        bare = make(spec.name, weights=None, **options)
    if not set(spec.layers) <= {layer.name for layer in bare.layers}:
        options = {}
    if spec.weights == "imagenet":
        try:  # some firewalls drop packets in silence
            with changed(socket.getdefaulttimeout, socket.setdefaulttimeout, _DOWNLOAD_TIMEOUT_S):
                return make(spec.name, weights="imagenet", **options)
        except Exception as error:
            raise OSError(
                f"The ImageNet weights of {spec.name} are not in Keras' cache (~/.keras/models) on "
                f"{socket.gethostname()} and could not be downloaded: {error}. Set "
                "`features.weights` to the URL of a file that every worker can read, or to random."
            ) from error
    # Initializers draw their seeds as after `keras.utils.set_random_seed`, but from a generator of
    # their own: Dask's threads draw from Python's global one at the same time.
    module, name = keras.src.random.seed_generator, "python_random"
    read, write = functools.partial(getattr, module, name), functools.partial(setattr, module, name)
    with changed(read, write, random.Random(spec.seed)):
        model = make(spec.name, weights=None, **options)
    if spec.weights != "random":
        _assign(model, spec)
    return model


def hash_weights(model: keras.Model) -> str:
    """Return the SHA-256 of a model's weights, as float32."""
    digest = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(variable.numpy(), dtype="<f4")
        digest.update(repr(array.shape).encode())
        digest.update(array.data)
    return digest.hexdigest()


def _assign(model: keras.Model, spec: NetworkSpec) -> None:
    """Set a model's weights from a file of all layers of the network, or of the first ones."""
    url, skeleton = spec.weights, make_skeleton(spec.name)
    expected = [(layer.name, v) for layer in skeleton.layers for v in layer.weights]
    variables = [v for layer in model.layers for v in layer.weights]
    needed = cut(model, spec.layers, spec.pooling).weights
    last_needed = max(i for i, v in enumerate(variables) if any(v is n for n in needed))
    n_read = 0
    for n_read, (name, array) in enumerate(_read_arrays(url, skeleton), 1):
        if n_read > len(expected):
            raise UserError(
                f"{url} does not fit {skeleton.name}: it has more weights than the network, from "
                f"{name} on."
            )
        layer, variable = expected[n_read - 1]
        if tuple(array.shape) != tuple(variable.shape):
            raise UserError(
                f"{url} does not fit {skeleton.name}: first difference at layer {layer}, which has "
                f"{variable.name} of shape {tuple(variable.shape)}; the file has {name} of shape "
                f"{tuple(array.shape)}."
            )
        if n_read <= len(variables):
            variables[n_read - 1].assign(np.asarray(array, dtype=np.float32))
    if n_read <= last_needed:
        raise UserError(
            f"{url} ends before layer {expected[n_read][0]} of {skeleton.name}, which the wanted "
            "layers need. Give a file with those weights, or cut at an earlier layer."
        )


def _read_arrays(url: str, skeleton: keras.Model) -> Iterator[tuple[str, Any]]:
    """Read a file's weights in the order of the network's layers."""
    if not url.endswith((".npz", ".h5")):
        raise UserError(f"{url}: weights are imagenet, random, or a .h5, .weights.h5 or .npz file.")
    kind, read = (".npz", _read_npz) if url.endswith(".npz") else ("HDF5", _read_hdf5)
    with storage.local_copy(url) as path:
        try:
            yield from read(path, skeleton)
        except (ValueError, OSError, EOFError, TypeError, BadZipFile, zlib.error) as error:
            raise UserError(f"{url} is no {kind} file of weights: {error}.") from error


def _read_npz(path: str, _: keras.Model) -> Iterator[tuple[str, Any]]:
    # NumPy does not close a file that it opens itself and that is no .npz.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        yield from ((name, arrays[name]) for name in sorted(arrays.files))


def _read_hdf5(path: str, skeleton: keras.Model) -> Iterator[tuple[str, Any]]:
    import h5py

    with h5py.File(path) as file:
        legacy = file.get("model_weights", file)  # beside the configuration in a whole model
        if "layer_names" in legacy.attrs:  # the layout of Keras 1 and 2, and of keras.applications
            for layer in _decode(legacy.attrs["layer_names"]):
                for weight in _decode(legacy[layer].attrs["weight_names"]):
                    yield weight, legacy[layer][weight]
        elif "layers" in file:
            yield from _read_numbered(file["layers"], skeleton.layers)


def _read_numbered(group: Any, layers: list[keras.Layer]) -> Iterator[tuple[str, Any]]:
    """Read Keras 3's .weights.h5, which names layers by class and number."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = keras.src.saving.saving_lib.naming.to_snake_case(type(layer).__name__)
        number = counts[kind] = counts.get(kind, -1) + 1
        name = f"{kind}_{number}" if number else kind
        if layer.weights and name in group:
            if "layers" in group[name]:  # a model within the model
                yield from _read_numbered(group[name]["layers"], layer.layers)
            variables = group[name].get("vars", {})
            for key in sorted(variables, key=int):
                yield variables[key].name.strip("/"), variables[key]


def _decode(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
