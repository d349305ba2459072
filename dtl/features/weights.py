"""Weights of a network from files: Keras' own formats and .npz."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np


def assign(
    model: keras.Model, needed: keras.Model, whole: keras.Model, path: str, url: str
) -> None:
    """Set a model's weights from a file of all, or of the first, layers of the whole network."""
    expected = [(layer.name, v) for layer in whole.layers for v in layer.weights]
    variables = [v for layer in model.layers for v in layer.weights]
    last_needed = max(i for i, v in enumerate(variables) if any(v is n for n in needed.weights))
    n_read = 0
    for n_read, (name, array) in enumerate(_file_arrays(path, url, whole), 1):
        if n_read > len(expected):
            raise ValueError(
                f"{url} does not fit {whole.name}: it has more weights than the network, from "
                f"{name} on."
            )
        layer, variable = expected[n_read - 1]
        if tuple(array.shape) != tuple(variable.shape):
            raise ValueError(
                f"{url} does not fit {whole.name}: first difference at layer {layer}, which has "
                f"{variable.name} of shape {tuple(variable.shape)}; the file has {name} of shape "
                f"{tuple(array.shape)}."
            )
        if n_read <= len(variables):
            variables[n_read - 1].assign(np.asarray(array, dtype=np.float32))
    if n_read <= last_needed:
        raise ValueError(
            f"{url} ends before layer {expected[n_read][0]} of {whole.name}, which the layers "
            "asked for need. Give a file with those weights, or cut at an earlier layer."
        )


def _file_arrays(path: str, url: str, whole: keras.Model) -> Iterator[tuple[str, Any]]:
    """A file's weights in the order of the network's layers."""
    import h5py

    if url.endswith(".npz"):
        try:
            # NumPy leaves what it opens itself open where it is no .npz file.
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                yield from ((name, arrays[name]) for name in sorted(arrays.files))
        except (ValueError, OSError, EOFError, TypeError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{url} is no .npz file of weights: {error}.") from error
        return
    if not url.endswith(".h5"):
        raise ValueError(
            f"{url}: weights are imagenet, random, or a .h5, .weights.h5 or .npz file."
        )
    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"{url} is no HDF5 file of weights: {error}.") from error
    with file:
        legacy = file.get("model_weights", file)  # beside the configuration in a whole model
        if "layer_names" in legacy.attrs:  # the layout of Keras 1 and 2, and of keras.applications
            for layer in _texts(legacy.attrs["layer_names"]):
                for weight in _texts(legacy[layer].attrs["weight_names"]):
                    yield weight, legacy[layer][weight]
            return
        if "layers" in file:
            yield from _numbered(file["layers"], whole.layers)


def _numbered(group: Any, layers: list[keras.Layer]) -> Iterator[tuple[str, Any]]:
    """Keras 3's .weights.h5 names layers by class and number, in the network's order."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = keras.src.saving.saving_lib.naming.to_snake_case(type(layer).__name__)
        number = counts[kind] = counts.get(kind, -1) + 1
        name = f"{kind}_{number}" if number else kind
        if layer.weights and name in group:
            if "layers" in group[name]:  # a model within the model
                yield from _numbered(group[name]["layers"], layer.layers)
            variables = group[name].get("vars", {})
            for key in sorted(variables, key=int):
                yield variables[key].name.strip("/"), variables[key]


def _texts(values: Any) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
