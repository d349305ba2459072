"""The second stage: every image once through the network, into the feature store."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import ArrayLike, NDArray

from dtl import storage
from dtl.cluster import processors
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible, run_on_each_worker
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.config.provenance import Claim, claim
from dtl.features import extraction, splitting
from dtl.features.arrays import DamagedError
from dtl.features.extraction import Extractor
from dtl.features.store import FeatureStore
from dtl.features.values import PENDING, SKIPPED, ExtractionSpec, fingerprint_weights
from dtl.images.reading import describe_costliest, open_images
from dtl.images.values import ImageList

log = logging.getLogger(__name__)

_MOST_LEFT_OUT = 20
"""How many files that are no images the store names for each reason."""
_MOST_EMPTY = 1000
"""How many folders without an image the store names."""

_TRIED_SIZE = (224, 224)
"""To which images are decoded to see whether they can be read: a usual size."""

Chunk = tuple[Mapping[str, NDArray[np.float32]], NDArray[np.uint64], ArrayLike]
"""Features by layer, content hashes and errors of a chunk's rows."""


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
    extractor = extraction.prepare(client, spec, precision, listed, repair=repair)
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
            **describe_left_out(listed),
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
    elif repair:
        check = functools.partial(_check_same_images, root=listed.root, images=spec.images)
        split = begin_repair(store, listed, extractor.n_features, client, check)
    store.write_places(listed)
    compute = functools.partial(_extract_chunk, root=listed.root, extractor=extractor)
    fill(
        store, compute, client, max_skipped=spec.images.max_skipped,
        describe=lambda chunk: describe_costliest(store.files(listed.root, chunk)),
    )  # fmt: skip
    splitting.repeat_split(store, split)
    return store


def begin_repair(
    store: FeatureStore,
    images: ImageList,
    n_features: Mapping[str, int],
    client: Client,
    check: Callable[..., object] | None = None,
) -> dict[str, Any] | None:
    """Mend what follows from the list, and make each chunk pending of which a file is no good.

    Workers read all files. `check` of a chunk may refuse, before anything is changed, to compute it
    again. Returns the options of the split if that has to be made again once the chunks are.
    """
    split = None
    with contextlib.suppress(DamagedError):  # then it goes, and the next training splits
        split = store.split_fingerprint
    damaged = store.mend_columns(images, n_features)
    chunks = []
    layers = tuple(n_features)
    with track("check", store.n_chunks, "chunks") as advance:
        begun = store.list_begun()
        for chunk, of_chunk in map_chunks(client, _list_damaged, begun, store=store, layers=layers):
            advance(1)
            damaged += of_chunk
            chunks += [chunk] if of_chunk else []
    if check is not None:
        list(map_chunks(client, check, chunks, store=store))
    for chunk in chunks:
        store.forget_chunk(chunk)
    for message in damaged:
        log.info("mending: %s", message)
    if not damaged:
        log.info("repair: nothing is missing or damaged")
    return split


def find_readable(
    store: FeatureStore, root: str, images: ImagesConfig, client: Client
) -> list[int]:
    """Find the chunks of which a skipped image can be read now; workers try."""
    check_visible(client, root, store.url)
    skipped = np.flatnonzero(store.read("status") == SKIPPED)
    chunks = np.unique(skipped // store.chunk_images).tolist()
    tried = map_chunks(client, _check_images, chunks, store=store, root=root, images=images)
    return sorted(chunk for chunk, n_readable in tried if n_readable)


def fill(
    store: FeatureStore,
    compute: Callable[[FeatureStore, int], Chunk],
    client: Client,
    *,
    max_skipped: float = 1.0,
    describe: Callable[[int], str] = "It computed chunk {}.".format,
) -> None:
    """Compute and store the chunks that are pending; `compute` runs on workers.

    As soon as more than the fraction `max_skipped` of all images is unreadable, stop and refuse.
    `describe` says of a chunk what may have cost its workers their memory.
    """
    storage.remove_partials(store.url)  # half-written files of a killed process
    check_visible(client, store.url)
    status = store.read("status")
    n_images, n_pending = len(status), int((status == PENDING).sum())
    n_skipped = int((status == SKIPPED).sum())
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
    with track("features", n_pending, "images") as advance:
        for n_rows, n_unread in results:
            n_skipped += n_unread
            advance(n_rows, f"{n_skipped} skipped" if n_skipped else "")
            if n_skipped > int(max_skipped * n_images):
                break
    if n_pending:
        storage.remove_partials(store.url)  # those of workers that were killed meanwhile
    store.check_skipped(max_skipped)


def describe_left_out(listed: ImageList) -> dict[str, Any]:
    """Return the attributes of a store for what is no image of a class: some names, all counts."""
    counts: Counter[str] = Counter()
    named = []
    for path, reason in listed.left_out:
        counts[reason] += 1
        if counts[reason] <= _MOST_LEFT_OUT:
            named.append([path, reason])
    attrs: dict[str, Any] = {"n_left_out": len(listed.left_out), "left_out": named}
    if len(named) < len(listed.left_out):
        attrs["left_out_counts"] = dict(counts)
    if listed.empty_folders:
        attrs["empty_folders"] = [list(pair) for pair in listed.empty_folders[:_MOST_EMPTY]]
    return attrs


def list_versions(engine: str, precision: str) -> dict[str, str]:
    """List the versions of the packages that the features depend on."""
    quantizer = ["nncf"] if precision == "int8" else []
    names = ("dtl", "keras", engine, *quantizer, "numpy", "pillow", "zarr")
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


def _list_damaged(
    chunk: int, *, store: FeatureStore, layers: tuple[str, ...]
) -> tuple[int, list[str]]:
    return chunk, store.list_damaged(chunk, layers)


def _check_images(
    chunk: int, *, store: FeatureStore, root: str, images: ImagesConfig
) -> tuple[int, int]:
    """Refuse to compute a chunk again if an image is not as it was; count those readable now."""
    stored = {}
    for name in ("content_hash", "error", "status"):
        with contextlib.suppress(DamagedError):
            stored[name] = store.read(name, chunk)
    path, n_readable = store.read("path", chunk), 0
    was_skipped = np.zeros(len(path), bool)
    if "status" in stored:
        was_skipped = stored["status"] == SKIPPED
    elif "error" in stored:
        was_skipped = stored["error"] != ""
    with open_images(store.files(root, chunk), [_TRIED_SIZE], images, n_ahead=16) as opened:
        for row, (content_hash, error, _) in enumerate(opened):
            if was_skipped[row]:
                n_readable += not error
            elif "content_hash" in stored and content_hash != stored["content_hash"][row]:
                raise UserError(
                    f"{storage.join(root, str(path[row]))} is not the file that features were made "
                    f"of ({error or 'its bytes are others'}), so its chunk of {store.url} cannot "
                    "be made again. Put it back, or choose another `out`."
                )
    return chunk, n_readable


def _check_same_images(chunk: int, *, store: FeatureStore, root: str, images: ImagesConfig) -> None:
    """Refuse to compute a chunk again if other images of it can be read than could before."""
    _, n_readable = _check_images(chunk, store=store, root=root, images=images)
    if n_readable:
        raise UserError(
            f"{n_readable} images of chunk {chunk} of {store.url} were skipped, and can be read "
            "now, so a repair would not make it as it was. Run the featurize stage with "
            "`retry_skipped` and without `repair`: that takes them in, and makes anew what "
            "follows. Or choose another `out`."
        )


def _extract_chunk(store: FeatureStore, chunk: int, *, root: str, extractor: Extractor) -> Chunk:
    return extraction.extract(store.files(root, chunk), extractor)
