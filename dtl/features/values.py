"""The options that features follow from, and the description of a network without weights."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtl import storage
from dtl.config import FeaturesConfig, ImagesConfig
from dtl.config.provenance import check_same
from dtl.config.sections import is_network_file
from dtl.features.network.files import source
from dtl.features.network.files.source import NetworkSource
from dtl.features.views import Views
from dtl.images.values import ImageList

PENDING, DONE, SKIPPED = range(3)
"""The `status` of a row of the feature store."""

REMOVED = -2
"""The `label` of a row whose image is gone, or has changed: then another row has it anew."""

NAMED_WEIGHTS = ("imagenet", "random")
"""Values of ``features.weights`` that name no file."""


@dataclass(frozen=True)
class NetworkSpec:
    """A network and all that its outputs depend on.

    Parameters
    ----------
    name : str or NetworkSource
        A model function of `keras.applications`, or a network's file.
    layers : tuple of str
        Layers whose outputs are the features.
    pooling : {"avg", "max", "flatten", "avg,max"}
        For outputs with positions, (height, width, channels).
    weights, seed : str, int
        ``imagenet``, ``random`` (with a seed), or an absolute URL.
    preprocess : {"network", "dl4j"}
    precision : {"float32", "bfloat16", "float16"}
        Of the computation; the weights stay float32.
    """

    name: str | NetworkSource = "VGG16"
    layers: tuple[str, ...] = ("fc2",)
    pooling: str = "avg"
    weights: str = "imagenet"
    seed: int = 0
    preprocess: str = "network"
    precision: str = "float32"


@dataclass(frozen=True)
class FileSpec:
    """A converted network, and how OpenVINO computes with it.

    Parameters
    ----------
    url, sha256 : str
        Of the network's files (`dtl.features.network.network_file`).
    precision : {"float32", "bfloat16", "float16", "int8"}
        int8 lies in the files; the others are those of the computation.
    batch_images : int
        Images of one pass: the last bits may depend on it.
    """

    url: str
    sha256: str
    precision: str
    batch_images: int


class Network(Protocol):
    """A network in the memory of a process, on any engine; hold `lock` while a chunk is computed.

    `weights_sha256` is of its weights, or of the files that it was converted to; `on_cpu` says
    whether it computes on the processors that decode images, too.
    """

    weights_sha256: str
    on_cpu: bool
    lock: threading.Lock

    def compute(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Compute features (n_images, n_features) by layer of RGB images (n_images, h, w, 3)."""
        ...

    def prepare(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Make ready for images of these sizes; a `UserError` if it takes none of one of them."""
        ...


@dataclass(frozen=True)
class ExtractionSpec:
    """The options that features follow from.

    `images.url` does not matter here; `seed` is that of random weights. `network_url` is the folder
    where a converted network is, or is to be, which features do not follow from.
    """

    features: FeaturesConfig
    images: ImagesConfig
    seed: int = 0
    network_url: str = ""

    def make_network_spec(self, precision: str) -> NetworkSpec:
        """Return the network that computes the features, at a precision."""
        f = self.features
        return NetworkSpec(
            self.network, f.layers, f.pooling, preprocess=f.preprocess,
            weights=locate_weights(f.weights), seed=self.seed, precision=precision,
        )  # fmt: skip

    @cached_property
    def network(self) -> str | NetworkSource:
        """The network's name, or its file, which is read once to hash it."""
        return find_network(self.features.network)

    @property
    def file_url(self) -> str:
        """Absolute URL of the network's file, or of that of its weights; empty for named ones."""
        if is_network_file(self.features.network):
            return storage.absolute(self.features.network)
        weights = self.features.weights
        return "" if weights in NAMED_WEIGHTS else locate_weights(weights)

    @cached_property
    def weights(self) -> str:
        """The weights' fingerprint: a file is read once to hash it."""
        if is_network_file(self.features.network):
            return "in the network's file"
        return describe_weights(self.features.weights, self.seed)

    @property
    def meaning(self) -> dict[str, Any]:
        """The options, except for the weights, that features of other images must share."""
        f = self.features
        # Stores from before there were engines do not name theirs.
        engine = {} if self.engine == "tensorflow" else {"engine": self.engine}
        return (
            engine
            | fingerprint_network(self.network)
            | {
                "layers": list(f.layers),
                "pooling": f.pooling,
                "preprocess": f.preprocess,
                "resize": self.images.resize,
            }
            | Views.of(f).fingerprint
        )

    @property
    def engine(self) -> str:
        """The library that computes: OpenVINO, or the one that Keras is told to use."""
        if self.features.engine == "openvino":
            return "openvino"
        return os.environ.get("KERAS_BACKEND", "tensorflow")

    @property
    def options(self) -> dict[str, Any]:
        """All options, except for the weights, that the stored bits depend on.

        An automatic ``precision`` is left out, because it is not known before the workers are.
        """
        names = ["dtype", "batch_images", "chunk_images"]
        if self.features.precision != "auto":
            names.append("precision")
        stored = {name: getattr(self.features, name) for name in names}
        return self.meaning | {"max_pixels": self.images.max_pixels} | stored

    def fingerprint(self, images: ImageList) -> dict[str, Any]:
        """Return all that the features of these images follow from."""
        return self.options | {"weights": self.weights, "images": images.description}


def find_network(network: str) -> str | NetworkSource:
    """Return ``features.network``: a name, or a file with its hash and its declaration."""
    return source.find(storage.absolute(network)) if is_network_file(network) else network


def fingerprint_network(network: str | NetworkSource) -> dict[str, Any]:
    """Return what features follow from of a network.

    Examples
    --------
    >>> fingerprint_network("VGG16")
    {'network': 'VGG16'}
    """
    return {"network": network} if isinstance(network, str) else network.fingerprint


def locate_weights(weights: str) -> str:
    """Return ``features.weights`` as all processes take it: a file by its absolute URL."""
    return weights if weights in NAMED_WEIGHTS else storage.absolute(weights)


def describe_weights(weights: str, seed: int) -> str:
    """Return the fingerprint of ``features.weights``, the same wherever their file lies.

    Examples
    --------
    >>> describe_weights("random", seed=3)
    'random, seed 3'
    """
    if weights == "random":
        return f"random, seed {seed}"
    return weights if weights == "imagenet" else f"file, SHA-256 {storage.sha256(weights)}"


def fingerprint_weights(sha256: str) -> dict[str, str]:
    """Return the part of a fingerprint that the numbers of the weights are."""
    return {"SHA-256 of the weights": sha256}


def find_source_sha256(provenance: Mapping[str, Any]) -> str:
    """Return the SHA-256 of Keras' weights, of features whose network may have been converted.

    `provenance` has the fingerprint of the features and their ``weights_sha256``.
    """
    converted_from = provenance.get("features", {}).get("source_sha256")
    return str(converted_from or provenance["weights_sha256"])


def check_weights(sha256: str, stored_sha256: str, stored: str) -> None:
    """Refuse a network with other weights than the one that made a stored result."""
    check_same(
        fingerprint_weights(sha256), fingerprint_weights(stored_sha256),
        f"{stored} was made with other weights",
        "Give `features.weights` and `seed` as they were.",
    )  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One row of a network's summary."""

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    n_parameters: int
    flop: int | None = 0
    """Floating-point operations for one image, two for a multiply-add; None if not known."""
    inputs: tuple[int, ...] = ()
    """The layers whose outputs it takes, by their number in the network's order."""

    @property
    def output_bytes(self) -> int | None:
        """Memory of its output for one image, in float32; None if not known."""
        sizes = [n for n in self.output_shape if n is not None]
        return 4 * math.prod(sizes) if len(sizes) == len(self.output_shape) else None


def add_up(counts: Iterable[int | None]) -> int | None:
    """Add counts up, which is not known if one of them is not.

    Examples
    --------
    >>> add_up([1, 2]), add_up([1, None])
    (3, None)
    """
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


@dataclass(frozen=True)
class Description:
    """A cut network without its weights."""

    input_size: tuple[int, int]
    """Height and width."""
    n_features: dict[str, int]
    layers: tuple[Layer, ...]
    """The whole network's, in its order."""
    used: frozenset[str]
    """The names of the layers that the features need."""
    weights_bytes: int
    """Memory of the used layers' float32 weights."""
    activation_bytes: int = 0
    """Memory of the used layer with most inputs and outputs, for one image, in float32."""

    @property
    def flop(self) -> int | None:
        """Floating-point operations of the used layers for one image; None if not known."""
        return add_up(layer.flop for layer in self.layers if layer.name in self.used)
