"""Another way to the second stage: features of later layers from stored ones of an earlier layer.

The convolutions, which are nearly all of the work, are not computed again: fc1 becomes fc2 and
predictions with what lies between them in the network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client

from dtl import storage
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible, run_on_each_worker
from dtl.config import FeaturesConfig
from dtl.config.provenance import check_same
from dtl.features import extraction, featurization
from dtl.features.extraction import Extractor
from dtl.features.store import FeatureStore
from dtl.features.values import DONE, PENDING, ExtractionSpec, NetworkSpec

log = logging.getLogger(__name__)

_AS_BEFORE = ("network", "pooling", "preprocess", "batch_images", "chunk_images")


def derive(
    url: str,
    source: FeatureStore,
    spec: ExtractionSpec,
    client: Client,
    *,
    overwrite: bool = False,
) -> FeatureStore:
    """Compute features of later layers for the rows of a store.

    Parameters
    ----------
    url : str
        Where the new store is, or is to be. It has the same rows in the same chunks.
    source : FeatureStore
        Finished, with a layer that the new ones follow from and that has no positions, such as fc1.
    spec : ExtractionSpec
        As the source's features were made, but for ``features.layers``, the new ones.
    client : distributed.Client
        Whose workers read both stores and the weights.

    Raises
    ------
    ValueError
        If no stored layer leads to the new ones, the weights are others, or a store of other
        settings is there.
    """
    check_shared(client, source.url, url)
    check_visible(client, source.url)
    features = spec.features
    asked = settings(source, features)
    layers, stored = features.layers, tuple(source.fingerprint["layers"])
    both = replace(features, layers=tuple(dict.fromkeys(stored + layers)))
    extractor = extraction.prepare(client, replace(spec, features=both), str(asked["precision"]))
    found = run_on_each_worker(client, _follow, extractor.network, stored, layers)
    layer, source_sha256, weights_sha256 = next(iter(found.values()))
    if source_sha256 != source.attrs["weights_sha256"]:
        raise ValueError(
            f"{source.url} was made with weights of SHA-256 {source.attrs['weights_sha256']}, the "
            f"same layers of the workers' network have {source_sha256}. Give --features.weights "
            "and --seed as they were."
        )
    try:
        store = featurization.open_matching(url, asked)
    except ValueError:
        if not overwrite:
            raise
        store = None
    if store is None:
        store = FeatureStore.create(
            url,
            source.images(),
            {name: extractor.n_features[name] for name in layers},
            dtype=features.dtype,
            chunk_images=source.chunk_images,
            attrs={
                **_inherited(source),
                "settings": asked,
                "weights_sha256": weights_sha256,
                "versions": featurization.versions(),
                "derived_from": {"layer": layer, "dtype": str(source.dtype(layer))},
            },
        )
    else:
        store.clean()
    check_visible(client, url)
    n_pending = int((store.read("status") == PENDING).sum())
    log.info("%s from %s of %s", ", ".join(layers), layer, source.url)
    with track("features", n_pending, "images") as advance:
        for n_images in map_chunks(
            client,
            _derive_chunk,
            store.pending_chunks(),
            store=store,
            source=source,
            layer=layer,
            extractor=extractor,
        ):
            advance(n_images)
    return store


def settings(source: FeatureStore, asked: FeaturesConfig) -> dict[str, Any]:
    """All that derived features depend on: what they are from, and which layers.

    The same as of features that were computed from the images, where the source has lost nothing,
    for then the bits are the same.

    Raises
    ------
    ValueError
        If an option that the source fixes is another.
    """
    made_with = {name: source.fingerprint[name] for name in _AS_BEFORE}
    check_same(
        {name: getattr(asked, name) for name in _AS_BEFORE}, made_with,
        f"The features of {source.url} were made otherwise",
    )  # fmt: skip
    new: dict[str, Any] = source.fingerprint | {"layers": list(asked.layers), "dtype": asked.dtype}
    if source.fingerprint["dtype"] != "float32":
        new["derived_from"] = source.fingerprint["dtype"]
    return new


def _inherited(source: FeatureStore) -> Mapping[str, Any]:
    return {k: source.attrs[k] for k in ("weights", "seed", "root", "n_left_out", "left_out")}


def _follow(
    spec: NetworkSpec, stored: tuple[str, ...], layers: tuple[str, ...]
) -> tuple[str, str, str]:
    from dtl.features import networks

    network = networks.load(spec)
    last = network.last_before(layers, stored)
    return last, network.sha256_up_to(stored), network.sha256_up_to(layers)


def _derive_chunk(
    chunk: int,
    *,
    store: FeatureStore,
    source: FeatureStore,
    layer: str,
    extractor: Extractor,
) -> int:
    """Compute and store one chunk, on a worker."""
    from dtl.features import networks

    if (store.read("status", chunk) != PENDING).all():
        return len(store.read("status", chunk))  # run again, as a featurized chunk is
    network, layers = networks.load(extractor.network), tuple(store.fingerprint["layers"])
    values = source.read(layer, chunk).astype(np.float32)
    with network.lock:
        computed = network.features_from(layer, values, layers, extractor.batch_images)
    unread = source.read("status", chunk) != DONE
    for array in computed.values():
        array[unread] = 0
    store.write_chunk(
        chunk, computed, source.read("content_hash", chunk), source.read("error", chunk)
    )
    return len(values)


def finished(url: str, source: FeatureStore, asked: FeaturesConfig) -> FeatureStore | None:
    """The derived store, if it is there and nothing is left to do.

    Raises
    ------
    ValueError
        If a store has other settings.
    """
    return featurization.finished(url, settings(source, asked))


def check_not_same(url: str, source: FeatureStore) -> None:
    """Refuse to derive a store from itself.

    Raises
    ------
    ValueError
    """
    if storage.absolute(url) == storage.absolute(source.url):
        raise ValueError(f"--out is the run of --model. Choose another --out for {url}.")
