"""Features of later layers from stored ones of an earlier layer: another way to the second stage.

The convolutions, which are nearly all of the work, are not computed again: fc1 becomes fc2 and
predictions with what lies between them in the network.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl import storage
from dtl.cluster.workers import check_shared, check_visible, run_on_each_worker
from dtl.config import FeaturesConfig
from dtl.config.errors import UserError
from dtl.config.provenance import check_same
from dtl.features import extraction, splitting
from dtl.features.extraction import Extractor
from dtl.features.featurization import Computed, fill, list_versions
from dtl.features.repair import begin_repair
from dtl.features.store import FeatureStore
from dtl.features.values import (
    DONE,
    PENDING,
    ExtractionSpec,
    NetworkSpec,
    check_weights,
    find_network,
    fingerprint_network,
)

log = logging.getLogger(__name__)

_AS_BEFORE = ("pooling", "preprocess", "batch_images", "chunk_images")
_INHERITED = (
    "weights", "seed", "root", "n_left_out", "left_out", "left_out_counts", "empty_folders",
)  # fmt: skip


def derive(
    url: str,
    source: FeatureStore,
    spec: ExtractionSpec,
    client: Client,
    *,
    overwrite: bool = False,
    repair: bool = False,
) -> FeatureStore:
    """Compute features of later layers for the rows of a store.

    Parameters
    ----------
    url : str
        Where the new store is, or is to be. It has the same rows in the same chunks.
    source : FeatureStore
        Finished, with a layer that the new ones follow from and that has no positions, such as fc1.
    spec : ExtractionSpec
        As the source's features were made, except for ``features.layers``, the new ones.
    overwrite : bool
        Replace a store of other settings instead of refusing it.
    repair : bool
        Read all files of the new store, and make again what is missing or damaged.

    Raises
    ------
    UserError
        If no stored layer leads to the new ones, the weights are others, or a store of other
        settings is there.
    """
    check_shared(client, source.url, url)
    check_visible(client, source.url)
    features, fingerprint = spec.features, fingerprint_derived(source, spec.features)
    layers, stored = features.layers, tuple(source.fingerprint["layers"])
    all_layers = replace(features, layers=tuple(dict.fromkeys(stored + layers)))
    extractor = extraction.prepare(
        client, replace(spec, features=all_layers), str(fingerprint["precision"])
    )
    traced = run_on_each_worker(client, _trace_layers, extractor.network, stored, layers)
    layer, source_sha256, weights_sha256 = next(iter(traced.values()))
    check_weights(source_sha256, source.attrs["weights_sha256"], source.url)
    store = reuse(url, source, features, overwrite=overwrite)
    images, split = source.images(), None
    n_features = {name: extractor.n_features[name] for name in layers}
    if store is None:
        attrs = {name: source.attrs[name] for name in _INHERITED if name in source.attrs} | {
            "settings": fingerprint,
            "weights_sha256": weights_sha256,
            "versions": list_versions(spec.engine, extractor.network.precision),
            "derived_from": {"layer": layer, "dtype": str(source.dtype(layer))},
        }
        if overwrite:
            FeatureStore.remove_other(url, attrs)
        store = FeatureStore.create(
            url, images, n_features, dtype=features.dtype,
            chunk_images=source.chunk_images, attrs=attrs,
        )  # fmt: skip
    elif repair:
        split = begin_repair(store, images, n_features, client)
    store.write_places(images)
    log.info("%s from %s of %s", ", ".join(layers), layer, source.url)
    compute = functools.partial(_derive_chunk, source=source, layer=layer, extractor=extractor)
    fill(store, compute, client)
    splitting.repeat_split(store, split)
    return store


def reuse(
    url: str, source: FeatureStore, features: FeaturesConfig, *, overwrite: bool = False
) -> FeatureStore | None:
    """Open the derived store as `FeatureStore.reuse` does, but never the source itself."""
    if storage.absolute(url) == storage.absolute(source.url):
        raise UserError(f"{url} is the store to derive from. Choose another `out`.")
    return FeatureStore.reuse(url, fingerprint_derived(source, features), overwrite=overwrite)


def list_outdated(store: FeatureStore, source: FeatureStore) -> list[int]:
    """List the chunks of which the source could read other images when they were derived."""
    status = store.read("status")
    others = (status != PENDING) & (status != source.read("status"))
    return [int(c) for c in np.unique(np.flatnonzero(others) // store.chunk_images)]


def fingerprint_derived(source: FeatureStore, features: FeaturesConfig) -> dict[str, Any]:
    """Return all that derived features follow from.

    It is the fingerprint of features that are computed from the images, and so are the bits, unless
    the source has lost precision. Options that the source fixes must be as they were.
    """
    made = source.fingerprint
    if made.get("engine") == "openvino":
        raise UserError(
            f"The features of {source.url} were computed by OpenVINO, whose network ends at the "
            "stored layers. Featurize the images again, with all layers in `features.layers`."
        )
    if "views" in made:
        raise UserError(
            f"The features of {source.url} are of several views ({made['views']}), combined after "
            "the network: no later layer follows from them. Featurize the images again, with all "
            "layers in `features.layers`."
        )
    network = fingerprint_network(find_network(features.network))
    check_same(
        {**network, **{name: getattr(features, name) for name in _AS_BEFORE}},
        {name: made.get(name) for name in (*network, *_AS_BEFORE)},
        f"The features of {source.url} were made otherwise",
        "Give these options as they were.",
    )  # fmt: skip
    lost = {} if made["dtype"] == "float32" else {"derived_from": made["dtype"]}
    return made | {"layers": list(features.layers), "dtype": features.dtype} | lost


def _trace_layers(
    spec: NetworkSpec, stored: tuple[str, ...], layers: tuple[str, ...]
) -> tuple[str, str, str]:
    """Find the layer to start from, and hash the weights up to the stored and to the new layers."""
    from dtl.features.network import keras_network

    network = keras_network.load(spec)
    start = network.find_last_before(layers, stored)
    return start, network.hash_up_to(stored), network.hash_up_to(layers)


def _derive_chunk(
    store: FeatureStore,
    chunk: int,
    rows: NDArray[np.intp],
    *,
    source: FeatureStore,
    layer: str,
    extractor: Extractor,
) -> Computed:
    from dtl.features.network import keras_network

    assert isinstance(extractor.network, NetworkSpec)
    network, layers = keras_network.load(extractor.network), tuple(store.fingerprint["layers"])
    values = source.read(layer, chunk)[rows].astype(np.float32)
    with network.lock:
        computed = network.compute_from(layer, values, layers, extractor.batch_images)
    unread = source.read("status", chunk)[rows] != DONE
    for array in computed.values():
        array[unread] = 0
    others = {name: source.read(name, chunk)[rows] for name in ("content_hash", "error", "figures")}
    return {**computed, **others}
