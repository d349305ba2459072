"""Weights of a network: random, ImageNet's, or from files in Keras' own formats and .npz."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import lzma
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config.errors import UserError
from dtl.features.network.architecture import changed, cut, make, make_skeleton
from dtl.features.network.files.source import NetworkSource
from dtl.features.network.quiet_keras import keras
from dtl.features.network.weights import hdf5
from dtl.features.network.weights.hdf5 import Weight
from dtl.features.values import NetworkSpec
from dtl.head.npz import Header, read_array, read_headers

_DOWNLOAD_TIMEOUT_S = 30


def make_with_weights(spec: NetworkSpec) -> keras.Model:
    """Make a network up to the last of its layers, or to its top, with its weights.

    A file that does not fit is a `UserError`; weights that cannot be had are an `OSError`.
    """
    if isinstance(spec.name, NetworkSource):
        return make_skeleton(spec.name)
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
    with contextlib.closing(_open_weights(url, skeleton)) as weights:
        for n_read, weight in enumerate(weights, 1):
            if n_read > len(expected):
                raise UserError(
                    f"{url} does not fit {skeleton.name}: it has more weights than the network, "
                    f"from {weight.name} on."
                )
            layer, variable = expected[n_read - 1]
            if weight.shape != tuple(variable.shape):
                raise UserError(
                    f"{url} does not fit {skeleton.name}: first difference at layer {layer}, which "
                    f"has {variable.name} of shape {tuple(variable.shape)}; the file has "
                    f"{weight.name} of shape {weight.shape}."
                )
            if n_read <= len(variables):  # it is read now that its size is known to be right
                variables[n_read - 1].assign(weight.read())
    if n_read <= last_needed:
        raise UserError(
            f"{url} ends before layer {expected[n_read][0]} of {skeleton.name}, which the wanted "
            "layers need. Give a file with those weights, or cut at an earlier layer."
        )


def _read_numbers(url: str, weight: Weight) -> NDArray[np.float32]:
    with _name_damage(url):
        numbers = weight.read()
    if not np.isfinite(numbers).all():
        raise UserError(
            f"{url} is damaged: {weight.name} holds NaN or an infinite number. Copy or download it "
            "again."
        )
    return numbers


def _open_weights(url: str, skeleton: keras.Model) -> Generator[Weight, None, None]:
    """Yield a file's weights in the order of the network's layers."""
    if not url.endswith((".npz", ".h5")):
        raise UserError(f"{url}: weights are imagenet, random, or a .h5, .weights.h5 or .npz file.")
    with storage.local_copy(url) as path, _name_damage(url):
        is_npz = url.endswith(".npz")
        found = _open_npz(path) if is_npz else hdf5.read(path, _name_layers(skeleton.layers))
        with contextlib.closing(found):
            for weight in found:
                yield weight._replace(read=functools.partial(_read_numbers, url, weight))


@contextlib.contextmanager
def _name_damage(url: str) -> Iterator[None]:
    kind = ".npz" if url.endswith(".npz") else "HDF5"
    try:
        yield
    except UserError:
        raise
    except (
        ValueError, OSError, EOFError, RuntimeError, OverflowError, TypeError, struct.error,
        zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the storage's, not the file's; a wrong offset in a zip is an EINVAL
        raise UserError(
            f"{url} is no {kind} file of weights: {error}. Copy it again, or give another."
        ) from error


def _open_npz(path: str) -> Generator[Weight, None, None]:
    with zipfile.ZipFile(path) as archive:
        for name, header in sorted(read_headers(archive).items()):
            if header.dtype.kind not in "fiu":
                raise ValueError(f"{name} holds {header.dtype}, not numbers")
            yield Weight(name, header.shape, functools.partial(_read_member, archive, header))


def _read_member(archive: zipfile.ZipFile, header: Header) -> NDArray[np.float32]:
    return read_array(archive, header).astype(np.float32, copy=False)


def _name_layers(layers: Iterable[keras.Layer]) -> hdf5.LayerNames:
    """Return the layers with weights by the names that Keras 3 gives them in a .weights.h5."""
    counts: dict[str, int] = {}
    names: hdf5.LayerNames = []
    for layer in layers:
        kind = keras.src.saving.saving_lib.naming.to_snake_case(type(layer).__name__)
        number = counts[kind] = counts.get(kind, -1) + 1
        if layer.weights:
            inner = _name_layers(getattr(layer, "layers", ()))
            names.append((f"{kind}_{number}" if number else kind, inner))
    return names
