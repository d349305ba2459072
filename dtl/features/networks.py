"""The pretrained network, cut at its layers of interest."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.features.values import Description, Layer, NetworkSpec
from dtl.features.weights import assign
from dtl.head.model import Head


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow greets every process with lines about absent GPUs, past all its own settings."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is first imported
with _quiet():
    import keras

    _GPUS = keras.distribution.list_devices("gpu")

_DOWNLOAD_TIMEOUT_S = 30


def list_precisions() -> list[str]:
    """List the precisions that this process computes at least as fast as float32, fastest first."""
    if _GPUS:
        return ["float16", "float32"]
    flags = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    return (
        ["bfloat16", "float32"] if {"avx512_bf16", "amx_bf16"} & {*flags.split()} else ["float32"]
    )


def describe(network: str, layers: tuple[str, ...], pooling: str) -> Description:
    """Look at a network without making its weights.

    Raises
    ------
    ValueError
        For an unknown network or layer; the known ones are listed.
    """
    whole = _skeleton(network)
    cut = _cut(whole, layers, pooling)
    height, width = whole.input_shape[1:3]
    return Description(
        input_size=(height or 224, width or 224),
        n_features={
            name: int(output.shape[-1]) for name, output in zip(layers, cut.outputs, strict=True)
        },
        layers=tuple(
            Layer(
                layer.name,
                type(layer).__name__,
                tuple(layer.output.shape[1:]),
                sum(int(np.prod(v.shape)) for v in layer.weights),
            )
            for layer in whole.layers
        ),
        used=frozenset(layer.name for layer in cut.layers),
        weights_bytes=sum(4 * int(np.prod(v.shape)) for v in cut.weights),
    )


class Network:
    """A network with its weights, cut at layers.

    One chunk of work at a time should hold `lock` while it calls `features`.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.description = describe(spec.name, spec.layers, spec.pooling)
        self.lock = threading.Lock()
        with _dtype_policy(spec.precision):
            self.model = _cut(_with_weights(spec, self.description), spec.layers, spec.pooling)
        # Preprocessing is of the graph: a batch of bytes is a quarter of one of floats to fill.
        pixels = keras.Input((*self.description.input_size, 3), dtype="uint8")
        floats = keras.ops.cast(pixels, "float32")
        self._of_pixels = keras.Model(
            pixels, self.model(_preprocess(spec.name, spec.preprocess)(floats))
        )
        # XLA makes this several times slower on a CPU under TensorFlow; JAX has nothing else.
        self._of_pixels.jit_compile = keras.backend.backend() == "jax"
        self.weights_sha256 = _sha256(self.model)

    def compute(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Preprocess images and compute their features.

        Parameters
        ----------
        pixels : (n_images, height, width, 3) uint8
            RGB.

        Returns
        -------
        dict of layer name to (n_images, n_features) float32
        """
        return _by_layer(self.spec.layers, self._of_pixels.predict_on_batch(pixels))

    def find_last_before(self, layers: tuple[str, ...], stored: Sequence[str]) -> str:
        """Which of the stored layers is the last that all of `layers` follow from.

        Raises
        ------
        ValueError
            If none is, or those that are have positions, which pooling has lost.
        """
        names = [layer.name for layer in self.model.layers]
        for layer in sorted(stored, key=names.index, reverse=True):
            if layer not in layers and len(self._output(layer).shape) == 2:
                with contextlib.suppress(ValueError):  # there are ways past it
                    self._tail(layer, layers)
                    return layer
        raise ValueError(
            f"{', '.join(layers)} of {self.spec.name} cannot be computed from the stored "
            f"{', '.join(stored)}. It takes an earlier layer without positions, such as fc1."
        )

    def hash_up_to(self, layers: Sequence[str]) -> str:
        """`weights_sha256` of the network that is cut at these of its layers."""
        return _sha256(keras.Model(self.model.inputs, [self._output(layer) for layer in layers]))

    def compute_from(
        self,
        layer: str,
        values: NDArray[np.float32],
        layers: tuple[str, ...],
        batch_images: int,
    ) -> dict[str, NDArray[np.float32]]:
        """Compute features of layers from those of an earlier one.

        Parameters
        ----------
        values : (n_images, n_features) float32
        batch_images : int
            In one pass; the last batch is filled up with zeros, as that of `features` is with
            black images.

        Returns
        -------
        dict of layer name to (n_images, n_features) float32
        """
        tail, n_images = self._tail(layer, layers), len(values)
        filled = np.zeros((-(-n_images // batch_images) * batch_images, values.shape[1]), "f4")
        filled[:n_images] = values
        parts = [
            _by_layer(layers, tail.predict_on_batch(filled[start : start + batch_images]))
            for start in range(0, len(filled), batch_images)
        ]
        return {name: np.concatenate([p[name] for p in parts])[:n_images] for name in layers}

    @functools.lru_cache(maxsize=1)  # noqa: B019  (one network per process)
    def _tail(self, layer: str, layers: tuple[str, ...]) -> keras.Model:
        outputs = [self._output(name) for name in layers]
        with _dtype_policy(self.spec.precision):
            tail = keras.Model(self._output(layer), outputs if len(outputs) > 1 else outputs[0])
        tail.jit_compile = self._of_pixels.jit_compile
        return tail

    def _output(self, layer: str) -> Any:
        return self.model.get_layer(layer).output


def _by_layer(layers: Sequence[str], outputs: Any) -> dict[str, NDArray[np.float32]]:
    if len(layers) == 1:
        outputs = [outputs]
    return {
        layer: np.asarray(output, dtype=np.float32)
        for layer, output in zip(layers, outputs, strict=True)
    }


_loading = threading.Lock()


def load(spec: NetworkSpec) -> Network:
    """Return the network of this process, made at the first call."""
    with _loading:
        return _load(spec)


@functools.lru_cache(maxsize=1)
def _load(spec: NetworkSpec) -> Network:
    return Network(spec)


def find_hidden_layer(network: str, layer: str) -> tuple[str, int]:
    """Name and units of the Dense layer with ReLU that a network puts after a layer.

    Raises
    ------
    ValueError
        If it puts something else there.
    """
    whole = _skeleton(network)
    before = whole.get_layer(layer)
    after = [
        other
        for other in whole.layers
        if any(taken is before.output for taken in keras.tree.flatten(other.input))
    ]
    if [type(other) for other in after] == [keras.layers.Dense]:
        (dense,) = after
        if dense.activation is keras.activations.relu and dense.use_bias:
            return str(dense.name), int(dense.units)
    raise ValueError(
        f"A hidden layer starts from a Dense layer with ReLU. After {layer} {network} has: "
        + (", ".join(f"{other.name} ({type(other).__name__})" for other in after) or "nothing")
        + ". Train on an earlier layer, such as VGG16's flatten or fc1, or set train.hidden_start "
        "= random."
    )


def read_dense(
    spec: NetworkSpec, name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Kernel and bias of a network's Dense layer, and `weights_sha256` of the network to its cut.

    Parameters
    ----------
    spec : NetworkSpec
        Which says where the network is cut; the layer may be behind that.

    Returns
    -------
    kernel : (n_inputs, n_units) float32
    bias : (n_units,) float32
    weights_sha256 : str
    """
    # Not by `load`, which would keep it: no task wants this cut again.
    network = Network(replace(spec, layers=tuple(dict.fromkeys((*spec.layers, name)))))
    kernel, bias = network.model.get_layer(name).get_weights()
    return kernel, bias, network.hash_up_to(spec.layers)


def export(spec: NetworkSpec, head: Head) -> bytes:
    """The whole classifier as the bytes of a .keras file.

    RGB images (n, height, width, 3) of 0 to 255 in, probabilities (n, n_classes) out.

    Raises
    ------
    ValueError
        If the network has other weights than the one of the head's features.
    """
    network = Network(spec)
    if network.weights_sha256 != head.provenance["weights_sha256"]:
        raise ValueError(
            f"The head was trained on features of weights {head.provenance['weights_sha256']}, the "
            f"network has {network.weights_sha256}. Give --features.weights as it was."
        )
    images = keras.Input((*network.description.input_size, 3), name="image")
    features = network.model(_preprocess(spec.name, spec.preprocess)(images))
    if len(spec.layers) > 1:
        features = features[spec.layers.index(head.provenance["layer"])]
    names = ["hidden", "class"] if head.n_units else ["class"]
    layers = [
        keras.layers.Dense(
            len(bias), activation="softmax" if name == "class" else "relu", name=name,
            dtype="float32",
        )
        for name, (_, bias) in zip(names, head.folded(), strict=True)
    ]  # fmt: skip
    outputs = features
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(images, outputs, name="classifier")
    for layer, weights in zip(layers, head.folded(), strict=True):
        layer.set_weights(weights)
    with tempfile.TemporaryDirectory(prefix="dtl-") as folder:
        path = Path(folder) / "classifier.keras"
        model.save(path)
        return path.read_bytes()


def _network(name: str) -> tuple[Callable[..., keras.Model], Any]:
    """The function that makes a model, and the module of its preprocessing."""
    known = {
        n: make for n, make in vars(keras.applications).items() if n[0].isupper() and callable(make)
    }
    if name not in known:
        raise ValueError(f"Unknown network {name!r}. Known: {', '.join(sorted(known))}.")
    module = known[name].__module__.rsplit(".", 1)[1]
    return known[name], getattr(keras.applications, module)


def _preprocess(network: str, how: str) -> Callable[[Any], Any]:
    if how == "dl4j":
        # Deeplearning4j's NativeImageLoader reads BGR; the original left the means in.
        return lambda images: images[..., ::-1]
    preprocess: Callable[[Any], Any] = _network(network)[1].preprocess_input
    return preprocess


@functools.lru_cache(maxsize=4)
def _skeleton(network: str) -> keras.Model:
    """The whole network with variables that have shapes but no memory."""
    with keras.StatelessScope(initialize_variables=False):
        model = _make(network, weights=None)
        if model.input_shape[1] is None:  # some fix no size: theirs is the usual one
            model = _make(network, weights=None, input_shape=(224, 224, 3))
    return model


def _make(network: str, **options: Any) -> keras.Model:
    """Keras counts the layers that it names itself over all models of a thread: begin anew, so
    that a layer's name is the same in every process.
    """
    state = keras.src.backend.common.global_state
    before = state.get_global_attribute("object_name_uids")
    keras.src.utils.naming.reset_uids()
    try:
        return _network(network)[0](**options)
    finally:
        state.set_global_attribute("object_name_uids", before)


def _cut(model: keras.Model, layers: tuple[str, ...], pooling: str) -> keras.Model:
    names = [layer.name for layer in model.layers]
    for layer in layers:
        if layer not in names:
            raise ValueError(f"{model.name} has no layer {layer!r}. It has: {', '.join(names)}.")
    pools = {
        "avg": keras.layers.GlobalAveragePooling2D,
        "max": keras.layers.GlobalMaxPooling2D,
        "flatten": keras.layers.Flatten,
    }
    outputs = []
    with keras.StatelessScope(initialize_variables=False):  # pooling has no weights to make
        for layer in layers:
            output = model.get_layer(layer).output
            # Named, so that the network can have a layer that Keras would name alike.
            pool = pools[pooling](name=f"{layer}_pooled")
            outputs.append(pool(output) if len(output.shape) == 4 else output)
    return keras.Model(model.inputs, outputs if len(outputs) > 1 else outputs[0])


def _with_weights(spec: NetworkSpec, description: Description) -> keras.Model:
    # Without the dense layers where the cut does not need them: VGG16's are nine tenths of it.
    options = {"include_top": False, "input_shape": (*description.input_size, 3)}
    bare = _make(spec.name, weights=None, **options)
    if not set(spec.layers) <= {layer.name for layer in bare.layers}:
        options = {}
    del bare
    if spec.weights == "imagenet":
        with _timeout():
            try:
                return _make(spec.name, weights="imagenet", **options)
            except Exception as error:
                raise OSError(
                    f"The ImageNet weights of {spec.name} are not in Keras' cache "
                    f"(~/.keras/models) on {socket.gethostname()} and could not be downloaded: "
                    f"{error}. Give a file that every worker can read with --features.weights "
                    "URL, or use --features.weights random."
                ) from error
    with _initializer_seeds(spec.seed):
        model = _make(spec.name, weights=None, **options)
    if spec.weights != "random":
        needed = _cut(model, spec.layers, spec.pooling)
        with storage.local_copy(spec.weights) as path:
            assign(model, needed, _skeleton(spec.name), path, spec.weights)
    return model


def _sha256(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(variable.numpy(), dtype="<f4")
        digest.update(repr(array.shape).encode())
        digest.update(array.data)
    return digest.hexdigest()


@contextlib.contextmanager
def _dtype_policy(precision: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _initializer_seeds(seed: int) -> Iterator[None]:
    """Initializers draw their seeds as after `keras.utils.set_random_seed`, but from a generator
    of their own: Dask's threads draw from Python's global one at the same time.
    """
    module = keras.src.random.seed_generator
    before = module.python_random
    module.python_random = random.Random(seed)
    try:
        yield
    finally:
        module.python_random = before


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """Without a network some firewalls drop packets in silence: give up after a while."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
