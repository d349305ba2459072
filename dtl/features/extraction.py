"""Features from image files, on a worker: read, decode, preprocess, compute."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.workers import (
    MORE_MEMORY,
    known_workers,
    run_on_each_worker,
    run_on_one_worker,
)
from dtl.config import FeaturesConfig, ImagesConfig
from dtl.config.errors import Fault, UserError, refuse
from dtl.config.provenance import check_same
from dtl.features import converted
from dtl.features.network.files import source
from dtl.features.network.files.source import NetworkSource
from dtl.features.store import FeatureStore
from dtl.features.values import (
    Description,
    ExtractionSpec,
    FileSpec,
    Network,
    NetworkSpec,
    check_weights,
    find_network,
)
from dtl.features.views import Views
from dtl.head.model import Head
from dtl.images.decoding.figures import FIGURES
from dtl.images.decoding.reading import open_images, pause_decoding
from dtl.images.values import ImageList
from dtl.storage import Extent

# Keras takes seconds and half a gigabyte to import, so only functions that workers run import what
# does: the driver, and a command that finds its work done, stay light.

_BATCHES_AT_ONCE = 4
"""Batches that are decoded together before a network on the same processors computes them.

Decoding beside it, batch by batch, took 8 % longer on two processors with AMX: each of its layers
ends with the slower thread.
"""

_TENSORFLOW_BYTES = 640 << 20
"""Memory of a process that has imported TensorFlow, and has decoded images."""


@dataclass(frozen=True)
class Extractor:
    """The way from image files to features: all that a task needs besides the files' URLs."""

    network: NetworkSpec | FileSpec
    weights_sha256: str
    """Hash of the network's weights, or of its files, which every worker must have."""
    images: ImagesConfig
    batch_images: int
    input_size: tuple[int, int]
    """The network's own height and width."""
    n_features: dict[str, int]
    """By layer, of all views."""
    found: dict[str, Any] = field(default_factory=dict)
    """Part of the features' fingerprint that the workers know."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """How far int8 is from float32, and why it is not used, if so."""
    views: Views = field(default_factory=Views)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the images that the network sees."""
        return self.views.sizes or (self.input_size,)


def prepare(
    client: Client,
    spec: ExtractionSpec,
    precision: str | None = None,
    images: ImageList | None = None,
    *,
    repair: bool = False,
) -> Extractor:
    """Check the network against the workers, and load it on all of them, before work starts.

    A precision, where given, replaces that of `spec`. `images` and `repair` are for OpenVINO
    (`converted.prepare`).

    Raises
    ------
    UserError
        For an unknown network or layer, weights that do not fit, workers with too little memory,
        with different weights, or without the precision.
    OSError
        If the weights cannot be had.
    """
    features = spec.features
    if features.engine == "openvino":
        return _prepare_openvino(client, spec, precision or features.precision, images, repair)
    probes = run_on_each_worker(client, _describe_network, spec.network, features)
    description = next(iter(probes.values()))[0]
    check_memory(client, features, _add_overhead(description, features.batch_images))
    available = [precisions for _, precisions in probes.values()]
    network = spec.make_network_spec(_choose_precision(precision or features.precision, available))
    views = Views.of(features)
    hashes = run_on_each_worker(client, _load_network, network, views.sizes)
    return Extractor(
        network, _check_hashes(hashes), spec.images, features.batch_images,
        description.input_size, views.widen(description.n_features),
        {"precision": network.precision}, views=views,
    )  # fmt: skip


def prepare_as_stored(
    client: Client, spec: ExtractionSpec, store: FeatureStore, most_images: int
) -> Extractor:
    """Load the network that a store's features are of, for a few more images; see `prepare`.

    Weights that are not the store's are a `DifferentSettingsError`.
    """
    extractor = prepare(client, spec, str(store.fingerprint["precision"]))
    check_weights(extractor.weights_sha256, store.attrs["weights_sha256"], store.url)
    if isinstance(extractor.network, NetworkSpec):  # a batch is filled up: a few take as long
        extractor = replace(extractor, batch_images=min(extractor.batch_images, most_images))
    return extractor


def _prepare_openvino(
    client: Client,
    spec: ExtractionSpec,
    precision: str,
    images: ImageList | None,
    repair: bool,
) -> Extractor:
    how, found, quantization = converted.prepare(client, spec, precision, images, repair=repair)
    views = Views.of(spec.features)
    needed = converted.estimate_memory(found, how.batch_images, views.sizes)
    check_memory(client, spec.features, needed)
    run_on_each_worker(client, _load_network, how, views.sizes or (found.input_size,))
    known = {"precision": how.precision, "source_sha256": found.source_sha256}
    return Extractor(
        how, how.sha256, spec.images, how.batch_images, found.input_size,
        views.widen(found.n_features), known, quantization, views,
    )  # fmt: skip


def _check_hashes(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 that all workers have, or refuse those that have not most workers'."""
    counts = Counter(hashes.values())
    usual = max(counts, key=lambda sha256: (counts[sha256], sha256))
    refuse([
        Fault(
            "weights", f"Its weights have the SHA-256 {found[:16]}…, and others' {usual[:16]}….",
            "Set `features.weights` to one file that all workers read.", worker,
        )
        for worker, found in sorted(hashes.items()) if found != usual
    ])  # fmt: skip
    return usual


def count_needed_bytes(client: Client, spec: ExtractionSpec) -> int:
    """Return the bytes that a worker with the network needs on Keras; a worker finds it out."""
    description, _ = run_on_one_worker(client, _describe_network, spec.network, spec.features)
    return _add_overhead(description, spec.features.batch_images)


def check_memory(client: Client, features: FeaturesConfig, needed: int) -> None:
    """Refuse workers that may use less memory than they need, with the check ``memory``."""
    refuse([
        Fault(
            "memory",
            f"It may use {limit / 2**30:.1f} GiB; {features.network} up to "
            f"{', '.join(features.layers)} needs {needed / 2**30:.1f} GiB.", MORE_MEMORY, address,
        )
        for address, worker in known_workers(client).items()
        if (limit := worker["memory_limit"]) and limit < needed
    ])  # fmt: skip


def estimate_memory(features: FeaturesConfig) -> int:
    """Return the bytes that a worker with the network needs; Keras runs in another process."""
    network = find_network(features.network)
    if isinstance(network, NetworkSource):
        found = source.describe(network, features.layers, features.pooling)
        return _add_overhead(found, features.batch_images)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        description, _ = pool.submit(_describe_network, network, features).result()
    return _add_overhead(description, features.batch_images)


def _add_overhead(description: Description, batch_images: int) -> int:
    # The weights, the copy that they are loaded from, and room for TensorFlow and a batch.
    room = max(1 << 30, _TENSORFLOW_BYTES + batch_images * description.activation_bytes)
    return 3 * description.weights_bytes + room


def check_head(head: Head, spec: ExtractionSpec) -> None:
    """Refuse to make features of new images otherwise than those that a head was trained on."""
    # What is left out where it is the default is compared all the same.
    defaults = {"engine": "tensorflow", "views": None, "combine": None}
    wanted = defaults | spec.meaning
    made = defaults | head.provenance["features"]
    check_same(
        wanted, {name: made.get(name) for name in wanted},
        "The head was trained on features that were made otherwise",
        "Give these options as they were.",
    )  # fmt: skip


class Extracted(NamedTuple):
    """Features of image files, and what else was found of them."""

    features: dict[str, NDArray[np.float32]]
    """(n_images, n_features) by layer; zeros where an image could not be read."""
    content_hash: NDArray[np.uint64]
    """(n_images,): 64 bits of the bytes' BLAKE2b; 0 where there are none."""
    errors: list[str]
    """Why an image cannot be used; empty if it can."""
    figures: NDArray[np.float32]
    """(n_images, 5): `FIGURES`; NaN where an image could not be read."""


def extract(files: Sequence[str | Extent], extractor: Extractor) -> Extracted:
    """Compute the features of image files, on a worker; calls in one process take turns.

    Raises
    ------
    OSError
        If the storage failed; a file that is gone or forbidden is one of `errors` instead.
    """
    network = load_network(extractor.network)
    if network.weights_sha256 != extractor.weights_sha256:
        raise UserError(
            f"A worker that joined late has weights of SHA-256 {network.weights_sha256} instead of "
            f"{extractor.weights_sha256}. Give all workers one file."
        )
    n_images, batch_images = len(files), extractor.batch_images
    content_hash = np.zeros(n_images, np.uint64)
    errors = [""] * n_images
    figures = np.full((n_images, len(FIGURES)), np.nan, np.float32)
    features = {
        layer: np.zeros((n_images, n), np.float32) for layer, n in extractor.n_features.items()
    }
    # Reading begins before the network is free.
    n_taken = batch_images * (_BATCHES_AT_ONCE if network.on_cpu else 1)
    n_ahead = batch_images * _BATCHES_AT_ONCE
    opened = open_images(files, extractor.sizes, extractor.images, n_ahead=n_ahead)
    with opened as images, network.lock:
        for first in range(0, n_images, n_taken):
            taken = [*itertools.islice(images, n_taken)]
            with pause_decoding() if network.on_cpu else contextlib.nullcontext():
                for start in range(first, first + len(taken), batch_images):
                    # Always of one shape, so that Keras traces it once; the rest stays black.
                    batches = [np.zeros((batch_images, *s, 3), np.uint8) for s in extractor.sizes]
                    rows = range(start, min(start + batch_images, n_images))
                    for row in rows:
                        image = taken[row - first]
                        content_hash[row], errors[row], pixels, figures[row] = image
                        for batch, resized in zip(batches, pixels, strict=False):  # or unreadable
                            batch[row - start] = resized
                    for layer, values in extractor.views.compute(network, batches).items():
                        features[layer][rows.start : rows.stop] = values[: len(rows)]
    unread = [row for row, error in enumerate(errors) if error]
    for values in features.values():
        values[unread] = 0
    return Extracted(features, content_hash, errors, figures)


def _choose_precision(wanted: str, available: Sequence[Sequence[str]]) -> str:
    common = [p for p in ("float16", "bfloat16", "float32") if all(p in a for a in available)]
    if wanted == "auto":
        return common[0]
    if wanted not in common:
        raise UserError(
            f"features.precision = {wanted}: not every worker's processor computes it at speed. "
            f"They have: {available}. Use auto or float32."
        )
    return wanted


def _describe_network(
    network: str | NetworkSource, f: FeaturesConfig
) -> tuple[Description, list[str]]:
    if isinstance(network, NetworkSource):
        # Its layers have the number format that they were saved with.
        return source.describe(network, f.layers, f.pooling), ["float32"]
    from dtl.features.network import architecture, keras_network

    description = architecture.describe(f.network, f.layers, f.pooling, Views.of(f).sizes)
    return description, keras_network.list_precisions()


def load_network(spec: NetworkSpec | FileSpec) -> Network:
    """Return the network of this process, on its engine."""
    if isinstance(spec, FileSpec):
        from dtl.features.network import openvino_network

        return openvino_network.load(spec)
    from dtl.features.network import keras_network

    return keras_network.load(spec)


def _load_network(spec: NetworkSpec | FileSpec, sizes: Sequence[tuple[int, int]]) -> str:
    network = load_network(spec)
    network.prepare(sizes)
    return network.weights_sha256
