"""A store that has grown, written anew in the order of a fresh one, without the network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible
from dtl.config.errors import UserError
from dtl.features.columns import COMPUTED_COLUMNS
from dtl.features.splitting import fingerprint_grown, without_growth
from dtl.features.store import FeatureStore
from dtl.features.values import REMOVED
from dtl.images import split
from dtl.images.values import ImageList

_TASK_BYTES = 256 << 20
"""Features that a task gathers: rows lie anywhere, so that each task reads all of the source."""

_OF_GROWTH = ("generations", "earlier", "dtl", "format", "class_names", "shards")


class _Task(NamedTuple):
    """Chunks to write, and the rows of the source that they get."""

    chunks: list[int]
    rows: NDArray[np.int64]


def compact(
    url: str, source: FeatureStore, client: Client, *, overwrite: bool = False
) -> FeatureStore:
    """Write the images of a store that are there in the order that a fresh listing has.

    Features, hashes and reasons are those stored. So is the split: a fresh one would hold out
    images that a head has been trained on.

    Raises
    ------
    UserError
        If a store of other settings is there, or the source was not listed as listings are now.
    """
    check_shared(client, source.url, url)
    check_visible(client, source.url)
    images, rows = order_rows(source)
    settings = without_growth(source.fingerprint)
    attrs = {name: value for name, value in source.attrs.items() if name not in _OF_GROWTH}
    attrs["settings"] = settings
    store = FeatureStore.reuse(url, settings, overwrite=overwrite)
    if store is None:
        if overwrite:
            FeatureStore.remove_other(url, attrs)
        layers = {name: source.n_features(name) for name in settings["layers"]}
        store = FeatureStore.create(
            url, images, layers, dtype=settings["dtype"], chunk_images=source.chunk_images,
            attrs=attrs,
        )  # fmt: skip
    check_visible(client, store.url)
    tasks = _plan(store, rows)
    done = map_chunks(client, _gather, tasks, store=store, source=source)
    with track("compact", sum(len(task.rows) for task in tasks), "images") as advance:
        for n_rows in done:
            advance(n_rows)
    if (fingerprint := source.split_fingerprint) is not None:
        kept = source.read("split")[rows]
        store.write_split(kept, fingerprint_grown(fingerprint, kept))
    return store


def order_rows(source: FeatureStore) -> tuple[ImageList, NDArray[np.int64]]:
    """Return the images of a store in the order of a fresh listing, and their rows."""
    images = source.images()
    there = np.flatnonzero(images.label != REMOVED)
    orders = [split.shuffle(images.path[there], int(source.attrs["seed"]))]
    if images.tar_names:  # then images may have the order that they lie in
        orders.append(np.lexsort((images.offset[there], images.tar[there])))
    for order in orders:
        fresh = images.take(there[order])
        if fresh.description == source.fingerprint["images"]:
            return fresh, there[order].astype(np.int64)
    raise UserError(
        f"{source.url} is of a list in another order than listings have now. Compute its features "
        "again, into another `out`."
    )


def _plan(store: FeatureStore, rows: NDArray[np.int64]) -> list[_Task]:
    row_bytes = sum(4 * store.n_features(name) for name in store.fingerprint["layers"])
    n_chunks = max(1, _TASK_BYTES // (row_bytes * store.chunk_images))
    pending = store.pending_chunks()
    tasks = []
    for first in range(0, len(pending), n_chunks):
        chunks = pending[first : first + n_chunks]
        tasks.append(_Task(chunks, np.concatenate([rows[store.rows(chunk)] for chunk in chunks])))
    return tasks


def _gather(task: _Task, *, store: FeatureStore, source: FeatureStore) -> int:
    """Write some chunks, on a worker; return their number of rows."""
    layers = store.fingerprint["layers"]
    names = (*layers, *COMPUTED_COLUMNS)
    found: dict[str, NDArray[Any]] = {}
    chunk_of = task.rows // source.chunk_images
    for chunk in np.unique(chunk_of).tolist():
        here = np.flatnonzero(chunk_of == chunk)
        rows = task.rows[here] - source.rows(chunk).start
        for name in names:
            values = source.read(name, chunk)
            if name not in found:
                found[name] = np.empty((len(task.rows), *values.shape[1:]), values.dtype)
            found[name][here] = values[rows]
    start = 0
    for chunk in task.chunks:
        rows_of = store.rows(chunk)
        part = slice(start, start := start + rows_of.stop - rows_of.start)
        store.write_chunk(
            chunk, {name: found[name][part] for name in layers},
            *(found[name][part] for name in COMPUTED_COLUMNS),
        )  # fmt: skip
    return len(task.rows)
