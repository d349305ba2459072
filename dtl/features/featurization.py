"""The second stage: every image once through the network, into the feature store."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl import storage
from dtl.cluster import live, processors
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible, run_on_each_worker
from dtl.config.provenance import Claim, claim
from dtl.features import converted, extraction, growth, splitting
from dtl.features.columns import COMPUTED_COLUMNS
from dtl.features.extraction import Extractor
from dtl.features.repair import begin_repair, check_same_images
from dtl.features.store import FeatureStore
from dtl.features.values import PENDING, REMOVED, SKIPPED, ExtractionSpec, fingerprint_weights
from dtl.images.decoding.reading import describe_costliest
from dtl.images.values import ImageList

log = logging.getLogger(__name__)

_SHOWN = 10
"""Skipped images of a chunk that the live page may name."""

Computed = dict[str, NDArray[Any]]
"""Features by layer, ``content_hash``, ``error`` and ``figures`` of some of a chunk's rows."""


def featurize(
    url: str,
    listed: ImageList,
    spec: ExtractionSpec,
    client: Client,
    *,
    overwrite: bool = False,
    repair: bool = False,
) -> FeatureStore:
    """Compute the features of all listed images, or of those that are still missing at `url`.

    With `overwrite`, a store of other settings or weights is replaced. With `repair`, all files of
    a store are read, and what is missing or damaged is made again. All workers read the images, the
    weights and the store.

    Raises
    ------
    UserError
        For settings that the network, the workers or an existing store do not fit; if more than
        ``images.max_skipped`` of the images are unreadable.
    OSError
        If the storage fails for good; what is done stays done.
    """
    fingerprint = spec.fingerprint(listed)
    store, split = FeatureStore.reuse(url, fingerprint, overwrite=overwrite), None
    check_shared(client, listed.root, url)
    check_visible(client, *filter(None, (listed.root, spec.file_url)))
    precision = store.fingerprint["precision"] if store else None
    needed: ImageList | None = listed
    if store is not None and not repair:
        # It was calibrated on the first list, of which the store may have grown since.
        needed = None if converted.is_there(spec, store.attrs["weights_sha256"]) else listed
    extractor = extraction.prepare(client, spec, precision, needed, repair=repair)
    if store is not None:
        # The same fingerprint may stand for other weights: Keras may offer new ones as "imagenet".
        wanted = fingerprint_weights(extractor.weights_sha256)
        stored = fingerprint_weights(store.attrs["weights_sha256"])
        if claim(wanted, stored, url, overwrite=overwrite) is Claim.REPLACE:
            store = None
    if store is None:
        attrs = {
            "settings": fingerprint | extractor.found,
            "weights": spec.features.weights,
            "weights_sha256": extractor.weights_sha256,
            "seed": spec.seed,
            "root": listed.root,
            **growth.describe_left_out(listed),
            "versions": list_versions(spec.engine, extractor.network.precision),
        }
        if extractor.quantization:
            attrs["quantization"] = extractor.quantization
        if overwrite:
            FeatureStore.remove_other(url, attrs)
        store = FeatureStore.create(
            url, listed, extractor.n_features, dtype=spec.features.dtype,
            chunk_images=spec.features.chunk_images, attrs=attrs,
        )  # fmt: skip
    listed = growth.arrange(store, listed)
    if repair:
        check = functools.partial(check_same_images, root=listed.root, images=spec.images)
        split = begin_repair(store, listed, extractor.n_features, client, check)
    store.write_places(listed)
    _warn_of_space(store, extractor)
    compute = functools.partial(_extract_chunk, root=listed.root, extractor=extractor)
    fill(
        store, compute, client, max_skipped=spec.images.max_skipped,
        describe=lambda chunk: describe_costliest(store.files(listed.root, chunk)),
    )  # fmt: skip
    splitting.repeat_split(store, split)
    return store


def _warn_of_space(store: FeatureStore, extractor: Extractor) -> None:
    n_rows = int((store.read("status") == PENDING).sum())
    row_bytes = sum(n * store.dtype(layer).itemsize for layer, n in extractor.n_features.items())
    free = storage.find_free_bytes(store.url, ask_hdfs=False)
    if free is not None and free < n_rows * row_bytes:
        log.warning(
            "%s has %s of free space, and features of %d images take up to %s, before they are "
            "compressed. `dtl doctor` with the same options measures how much it will be.",
            store.url, storage.format_bytes(free), n_rows,
            storage.format_bytes(n_rows * row_bytes),
        )  # fmt: skip


def fill(
    store: FeatureStore,
    compute: Callable[[FeatureStore, int, NDArray[np.intp]], Computed],
    client: Client,
    *,
    max_skipped: float = 1.0,
    describe: Callable[[int], str] = "It computed chunk {}.".format,
) -> None:
    """Compute and store the chunks that are pending.

    ``compute(store, chunk, rows)`` runs on workers, and gets the rows of one list. As soon as more
    than the fraction `max_skipped` of all images is unreadable, stop and refuse. `describe` says of
    a chunk what may have cost its workers their memory.
    """
    storage.remove_partials(store.url)  # half-written files of a killed process
    check_visible(client, store.url)
    status = store.read("status")
    is_there = store.read("label") != REMOVED
    n_images, n_pending = len(status), int((status == PENDING).sum())
    chunk_of = np.arange(n_images) // store.chunk_images
    n_skipped_of, n_pending_of = (
        np.bincount(chunk_of[rows], minlength=store.n_chunks)
        for rows in ((status == SKIPPED) & is_there, status == PENDING)
    )
    if n_pending < n_images:
        log.info("%d of %d images are done; going on", n_images - n_pending, n_images)
    if n_pending:
        found = run_on_each_worker(client, processors.find_instruction_set).values()
        names = {processors.INSTRUCTION_SETS[i] for i in found} | {*store.list_instruction_sets()}
        if warning := processors.describe_mixture(names):
            log.warning("%s: %s", store.url, warning)
    results = map_chunks(
        client, _fill_chunk, store.pending_chunks(), store=store, compute=compute, describe=describe
    )
    live.tell("chunks", n=store.n_chunks, pending=_list_runs(np.flatnonzero(n_pending_of)))
    with track("features", n_pending, "images") as advance:
        for chunk, n_skipped_of[chunk], unread in results:
            n_skipped = int(n_skipped_of.sum())
            live.tell("chunk", chunk=chunk, n_skipped=n_skipped)
            for path, reason in unread:
                live.tell("skipped", path=path, reason=reason)
            advance(int(n_pending_of[chunk]), f"{n_skipped} skipped" if n_skipped else "")
            if n_skipped > int(max_skipped * is_there.sum()):
                break
    if n_pending:
        storage.remove_partials(store.url)  # those of workers that were killed meanwhile
    store.check_skipped(max_skipped)


def list_versions(engine: str, precision: str) -> dict[str, str]:
    """List the versions of the packages that the features depend on."""
    quantizer = ["nncf"] if precision == "int8" else []
    names = ("dtl", "keras", engine, *quantizer, "numpy", "pillow", "zarr")
    return {name: importlib.metadata.version(name) for name in names}


def _fill_chunk(
    chunk: int,
    *,
    store: FeatureStore,
    compute: Callable[[FeatureStore, int, NDArray[np.intp]], Computed],
) -> tuple[int, int, list[tuple[str, str]]]:
    """Compute and store what is pending of a chunk, on a worker.

    Returns
    -------
    chunk, n_skipped : int
    unread : list of (path, reason)
        The first images that could not be read.
    """
    status = store.read("status", chunk)
    # Dask runs a task again when its worker is lost before its result was fetched.
    if (status == PENDING).any():
        parts = []
        for rows in growth.list_runs(store, chunk):
            if (status[rows] == PENDING).any():
                parts.append(compute(store, chunk, rows))
                found = np.full(len(rows), processors.find_instruction_set(), np.int8)
                parts[-1].setdefault("instruction_set", found)
            else:
                names = (*store.fingerprint["layers"], *COMPUTED_COLUMNS)
                parts.append({name: store.read(name, chunk)[rows] for name in names})
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[-1]}
        columns = [whole.pop(name) for name in COMPUTED_COLUMNS]
        store.write_chunk(chunk, whole, *columns)
        status = store.read("status", chunk)
    rows = np.flatnonzero((status == SKIPPED) & (store.read("label", chunk) != REMOVED))
    unread = []
    if len(rows):
        named = (store.read(name, chunk)[rows[:_SHOWN]].tolist() for name in ("path", "error"))
        unread = [*zip(*named, strict=True)]
    return chunk, len(rows), unread


def _list_runs(numbers: NDArray[np.intp]) -> list[list[int]]:
    """Return [first, end) of each run of neighbouring numbers, which rise."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [[int(run[0]), int(run[-1]) + 1] for run in runs if len(run)]


def _extract_chunk(
    store: FeatureStore, chunk: int, rows: NDArray[np.intp], *, root: str, extractor: Extractor
) -> Computed:
    files = store.files(root, chunk)
    found = extraction.extract([files[row] for row in rows], extractor)
    error = np.array(found.errors, np.dtypes.StringDType())
    return {
        **found.features, "content_hash": found.content_hash, "error": error,
        "figures": found.figures,
    }  # fmt: skip
