"""The second stage: every image once through the network, into the feature store."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from distributed import Client

from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible
from dtl.config.provenance import check_same
from dtl.features import extraction
from dtl.features.extraction import Extractor
from dtl.features.store import FeatureStore
from dtl.features.values import PENDING, SKIPPED, ExtractionSpec
from dtl.images.values import ImageList

log = logging.getLogger(__name__)

_MOST_LEFT_OUT = 1000
"""Of the files that are no images, how many the store names."""


def check_options(store: FeatureStore, spec: ExtractionSpec) -> None:
    """Refuse options that a store was not made with, where they would change nothing of it.

    Raises
    ------
    ValueError
        Naming each difference.
    """
    stored = store.fingerprint
    asked = {name: v for name, v in spec.options.items() if name in stored}
    check_same(
        asked, {name: stored[name] for name in asked},
        f"{store.url} holds features that were made with other options",
        "Give these options as they were, or run the featurize stage with them.",
    )  # fmt: skip


def open_matching(url: str, asked: Mapping[str, Any]) -> FeatureStore | None:
    """The store of exactly these settings, finished or not; None where there is none.

    Raises
    ------
    ValueError
        If a store has other settings; each difference is named.
    """
    try:
        store = FeatureStore.open(url)
    except FileNotFoundError:
        return None
    stored = store.fingerprint
    if "precision" not in asked:  # auto: what was begun goes on as it was begun
        stored.pop("precision")
    check_same(
        asked, stored, f"{url} holds features of other settings",
        "Use the same settings, choose another --out, or replace them with --overwrite.",
    )  # fmt: skip
    return store


def finished(url: str, asked: Mapping[str, Any]) -> FeatureStore | None:
    """The store of these settings, if it is there and nothing is left to do.

    Raises
    ------
    ValueError
        If a store has other settings.
    """
    store = open_matching(url, asked)
    return None if store is None or store.pending_chunks() else store


def featurize(
    url: str,
    listed: ImageList,
    spec: ExtractionSpec,
    client: Client,
    *,
    overwrite: bool = False,
) -> FeatureStore:
    """Compute the features of all listed images, or of those that are still missing.

    Parameters
    ----------
    url : str
        Where the store is, or is to be.
    client : distributed.Client
        Whose workers all read the images, the weights and the store.
    overwrite : bool
        Replace a store of other settings or weights instead of refusing it.

    Raises
    ------
    ValueError
        For settings that the network, the workers or an existing store do not fit; if more than
        ``images.max_skipped`` of the images are unreadable.
    OSError
        If the storage fails for good; what is done stays done.
    """
    asked, max_skipped = spec.fingerprint(listed), spec.images.max_skipped
    try:
        store = open_matching(url, asked)
    except ValueError:
        if not overwrite:
            raise
        store = None
    check_shared(client, listed.root, url)
    check_visible(client, *filter(None, (listed.root, spec.weights_url)))
    precision = store.fingerprint["precision"] if store else None
    extractor = extraction.prepare(client, spec, precision)
    if store and store.attrs["weights_sha256"] != extractor.weights_sha256:
        if not overwrite:
            raise ValueError(
                f"{url} was begun with weights of SHA-256 {store.attrs['weights_sha256']}, the "
                f"workers have {extractor.weights_sha256}. Use the same weights, or start anew "
                "with --overwrite."
            )
        store = None
    if store is None:
        store = FeatureStore.create(
            url,
            listed,
            extractor.n_features,
            dtype=spec.features.dtype,
            chunk_images=spec.features.chunk_images,
            attrs={
                "settings": asked | {"precision": extractor.network.precision},
                "weights": spec.features.weights,
                "weights_sha256": extractor.weights_sha256,
                "seed": spec.seed,
                "root": listed.root,
                "n_left_out": len(listed.left_out),
                "left_out": [list(pair) for pair in listed.left_out[:_MOST_LEFT_OUT]],
                "versions": versions(),
            },
        )
    else:
        store.clean()
        store.write_places(listed)
    check_visible(client, url)
    status = store.read("status")
    n_pending = int((status == PENDING).sum())
    if n_pending < len(listed):
        log.info("%d of %d images are done; going on", len(listed) - n_pending, len(listed))
    most_skipped = int(max_skipped * len(listed))
    n_skipped = int((status == SKIPPED).sum())
    results = map_chunks(
        client,
        _featurize_chunk,
        store.pending_chunks(),
        store=store,
        root=listed.root,
        extractor=extractor,
    )
    with track("features", n_pending, "images") as advance:
        for n_images, skipped in results:
            n_skipped += skipped
            advance(n_images, f"{n_skipped} skipped" if n_skipped else "")
            if n_skipped > most_skipped:
                break
    check_skipped(store, max_skipped)
    return store


def check_skipped(store: FeatureStore, max_skipped: float) -> None:
    """Refuse a store in which too many images could not be read.

    Raises
    ------
    ValueError
        With the first of them and the reasons.
    """
    skipped = skipped_images(store)
    if len(skipped) > int(max_skipped * store.n_images):
        shown = "\n  ".join(f"{path}: {reason}" for path, reason in skipped[:5])
        raise ValueError(
            f"{len(skipped)} of {store.n_images} images could not be read, more than "
            f"images.max_skipped = {max_skipped:g} allows:\n  {shown}\n"
            "Mend or remove them, or raise --images.max-skipped; what is done stays done."
        )


def skipped_images(store: FeatureStore) -> list[tuple[str, str]]:
    """Path and reason of every skipped image, sorted."""
    rows = np.flatnonzero(store.read("status") == SKIPPED)
    if not len(rows):
        return []
    return sorted(
        (str(path), str(error))
        for path, error in zip(store.read("path")[rows], store.read("error")[rows], strict=True)
    )


def versions() -> dict[str, str]:
    """Of the packages that the features depend on."""
    names = ("dtl", "keras", "tensorflow", "numpy", "pillow", "zarr")
    return {name: importlib.metadata.version(name) for name in names}


def _featurize_chunk(
    chunk: int, *, store: FeatureStore, root: str, extractor: Extractor
) -> tuple[int, int]:
    """Compute and store one chunk, on a worker; returns how many images, and how many skipped."""
    status = store.read("status", chunk)
    if (status != PENDING).all():
        # Dask runs a task again when its worker is lost before its result was fetched.
        return len(status), int((status == SKIPPED).sum())
    computed, content_hash, errors = extraction.extract(store.files(root, chunk), extractor)
    store.write_chunk(chunk, computed, content_hash, errors)
    return len(errors), sum(error != "" for error in errors)
