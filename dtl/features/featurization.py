"""The second stage: every image once through the network, into the feature store."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Callable, Mapping

import numpy as np
from distributed import Client
from numpy.typing import ArrayLike, NDArray

from dtl import storage
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible
from dtl.config.provenance import Claim, claim
from dtl.features import extraction
from dtl.features.extraction import Extractor
from dtl.features.store import FeatureStore
from dtl.features.values import PENDING, SKIPPED, ExtractionSpec, fingerprint_weights
from dtl.images.values import ImageList

log = logging.getLogger(__name__)

_MOST_LEFT_OUT = 1000
"""How many files that are no images, and folders without one, the store names."""

Chunk = tuple[Mapping[str, NDArray[np.float32]], NDArray[np.uint64], ArrayLike]
"""Features by layer, content hashes and errors of a chunk's rows."""


def featurize(
    url: str, listed: ImageList, spec: ExtractionSpec, client: Client, *, overwrite: bool = False
) -> FeatureStore:
    """Compute the features of all listed images, or of those that are still missing at `url`.

    With `overwrite`, a store of other settings or weights is replaced. All workers read the images,
    the weights and the store.

    Raises
    ------
    UserError
        For settings that the network, the workers or an existing store do not fit; if more than
        ``images.max_skipped`` of the images are unreadable.
    OSError
        If the storage fails for good; what is done stays done.
    """
    fingerprint = spec.fingerprint(listed)
    store = FeatureStore.reuse(url, fingerprint, overwrite=overwrite)
    check_shared(client, listed.root, url)
    check_visible(client, *filter(None, (listed.root, spec.weights_url)))
    extractor = extraction.prepare(client, spec, store.fingerprint["precision"] if store else None)
    if store is not None:
        # The same fingerprint may stand for other weights: Keras may offer new ones as "imagenet".
        wanted = fingerprint_weights(extractor.weights_sha256)
        stored = fingerprint_weights(store.attrs["weights_sha256"])
        if claim(wanted, stored, url, overwrite=overwrite) is Claim.REPLACE:
            store = None
    if store is None:
        attrs = {
            "settings": fingerprint | {"precision": extractor.network.precision},
            "weights": spec.features.weights,
            "weights_sha256": extractor.weights_sha256,
            "seed": spec.seed,
            "root": listed.root,
            "n_left_out": len(listed.left_out),
            "left_out": [list(pair) for pair in listed.left_out[:_MOST_LEFT_OUT]],
            "versions": list_versions(),
        }
        if listed.empty_folders:
            attrs["empty_folders"] = [list(pair) for pair in listed.empty_folders[:_MOST_LEFT_OUT]]
        store = FeatureStore.create(
            url, listed, extractor.n_features, dtype=spec.features.dtype,
            chunk_images=spec.features.chunk_images, attrs=attrs,
        )  # fmt: skip
    else:
        store.write_places(listed)
    compute = functools.partial(_extract_chunk, root=listed.root, extractor=extractor)
    fill(store, compute, client, max_skipped=spec.images.max_skipped)
    return store


def fill(
    store: FeatureStore,
    compute: Callable[[FeatureStore, int], Chunk],
    client: Client,
    *,
    max_skipped: float = 1.0,
) -> None:
    """Compute and store the chunks that are pending; `compute` runs on workers.

    As soon as more than the fraction `max_skipped` of all images is unreadable, stop and refuse.
    """
    storage.remove_partials(store.url)  # half-written files of a killed process
    check_visible(client, store.url)
    status = store.read("status")
    n_images, n_pending = len(status), int((status == PENDING).sum())
    n_skipped = int((status == SKIPPED).sum())
    if n_pending < n_images:
        log.info("%d of %d images are done; going on", n_images - n_pending, n_images)
    results = map_chunks(client, _fill_chunk, store.pending_chunks(), store=store, compute=compute)
    with track("features", n_pending, "images") as advance:
        for n_rows, n_unread in results:
            n_skipped += n_unread
            advance(n_rows, f"{n_skipped} skipped" if n_skipped else "")
            if n_skipped > int(max_skipped * n_images):
                break
    store.check_skipped(max_skipped)


def list_versions() -> dict[str, str]:
    """List the versions of the packages that the features depend on."""
    names = ("dtl", "keras", "tensorflow", "numpy", "pillow", "zarr")
    return {name: importlib.metadata.version(name) for name in names}


def _fill_chunk(
    chunk: int, *, store: FeatureStore, compute: Callable[[FeatureStore, int], Chunk]
) -> tuple[int, int]:
    """Compute and store one chunk, on a worker; return its number of rows, and of skipped ones."""
    status = store.read("status", chunk)
    # Dask runs a task again when its worker is lost before its result was fetched.
    if (status == PENDING).any():
        store.write_chunk(chunk, *compute(store, chunk))
        status = store.read("status", chunk)
    return len(status), int((status == SKIPPED).sum())


def _extract_chunk(store: FeatureStore, chunk: int, *, root: str, extractor: Extractor) -> Chunk:
    return extraction.extract(store.files(root, chunk), extractor)
