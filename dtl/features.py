"""The second stage: every image once through the network, into the feature store."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.bag as db
import numpy as np
from distributed import Client, as_completed
from numpy.typing import NDArray

from dtl import images, storage
from dtl.config import FeaturesConfig, ImagesConfig
from dtl.progress import track
from dtl.storage import FeatureStore
from dtl.types import PENDING, SKIPPED, BackboneSpec, Description, ImageList

# Keras takes seconds and half a gigabyte to import, so only the functions that workers run import
# `dtl.backbone`: the driver and a command that finds its work done stay light.

log = logging.getLogger(__name__)

_READERS = 8
"""Threads of a task that read and decode; reading waits for the storage, decoding drops the GIL."""

_CHUNKS_A_WORKER = 2
"""One in the network, one that reads ahead or writes: more would only hold memory."""

_RETRIES = 3
"""Of a chunk whose storage failed."""


def settings(
    listed: ImageList,
    features: FeaturesConfig,
    image: ImagesConfig,
    seed: int,
    precision: str | None = None,
) -> dict[str, Any]:
    """All that the features depend on; a store with other settings is refused.

    `precision` is left out where it is not resolved yet.
    """
    weights = features.weights
    if weights == "random":
        weights = f"random, seed {seed}"
    elif weights != "imagenet":
        weights = f"file, SHA-256 {storage.sha256(weights)}"
    asked: dict[str, Any] = {
        "network": features.network,
        "layers": list(features.layers),
        "pooling": features.pooling,
        "weights": weights,
        "preprocess": features.preprocess,
        "resize": image.resize,
        "max_pixels": image.max_pixels,
        "dtype": features.dtype,
        "batch_images": features.batch_images,
        "chunk_images": features.chunk_images,
        "images": f"{len(listed)} of {len(listed.class_names)} classes, SHA-256 "
        f"{listed.fingerprint}",
    }
    if precision or features.precision != "auto":
        asked["precision"] = precision or features.precision
    return asked


def backbone_spec(features: FeaturesConfig, seed: int, precision: str) -> BackboneSpec:
    """The network that the configuration asks for, at a precision."""
    named = features.weights in ("imagenet", "random")
    return BackboneSpec(
        network=features.network,
        layers=features.layers,
        pooling=features.pooling,
        weights=features.weights if named else storage.absolute(features.weights),
        seed=seed,
        preprocess=features.preprocess,
        precision=precision,
    )


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
    stored = store.settings
    if "precision" not in asked:  # auto: what was begun goes on as it was begun
        stored.pop("precision")
    if found := storage.differences(asked, stored):
        raise ValueError(
            f"{url} holds features of other settings:\n  "
            + "\n  ".join(found)
            + "\nUse the same settings, choose another --out, or replace them with --overwrite."
        )
    return store


def finished(
    url: str, listed: ImageList, features: FeaturesConfig, image: ImagesConfig, seed: int
) -> FeatureStore | None:
    """The store, if it is there and nothing is left to do.

    Raises
    ------
    ValueError
        If it has other settings, or too many skipped images.
    """
    store = open_matching(url, settings(listed, features, image, seed))
    if store is None or store.pending_chunks():
        return None
    check_skipped(store, image.max_skipped)
    return store


def featurize(
    url: str,
    listed: ImageList,
    features: FeaturesConfig,
    image: ImagesConfig,
    seed: int,
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
        Replace a store of other settings instead of refusing it.

    Raises
    ------
    ValueError
        For settings that the network, the workers or an existing store do not fit; if more than
        ``image.max_skipped`` of the images are unreadable.
    OSError
        If the storage fails for good; what is done stays done.
    """
    check_shared(client, listed.root, url)
    asked = settings(listed, features, image, seed)
    try:
        store = open_matching(url, asked)
    except ValueError:
        if not overwrite:
            raise
        store = None
    description, available = _probe(client, features)
    precision = store.settings["precision"] if store else asked.get("precision")
    precision = _precision(precision, available)
    spec = backbone_spec(features, seed, precision)
    weights_sha256 = _load(client, spec)
    if store is None:
        store = FeatureStore.create(
            url,
            listed,
            description.n_features,
            dtype=features.dtype,
            chunk_images=features.chunk_images,
            attrs={
                "settings": asked | {"precision": precision},
                "weights": features.weights,
                "weights_sha256": weights_sha256,
                "seed": seed,
                "versions": versions(),
            },
        )
    elif store.attrs["weights_sha256"] != weights_sha256:
        raise ValueError(
            f"{url} was begun with weights of SHA-256 {store.attrs['weights_sha256']}, the workers "
            f"have {weights_sha256}. Use the same weights, or start anew with --overwrite."
        )
    else:
        store.clean()
    status = store.read("status")
    pending = store.pending_chunks()
    n_pending = int((status == PENDING).sum())
    if n_pending < len(listed):
        log.info("%d of %d images are done; going on", len(listed) - n_pending, len(listed))
    arguments = {
        "store": store,
        "root": listed.root,
        "spec": spec,
        "size": description.input_size,
        "image": image,
        "batch_images": features.batch_images,
        "weights_sha256": weights_sha256,
    }
    most_skipped = int(image.max_skipped * len(listed))
    n_skipped = int((status == SKIPPED).sum())
    with track("features", n_pending, "images") as advance:
        for n_images, skipped in _compute(client, pending, arguments):
            n_skipped += skipped
            advance(n_images, f"{n_skipped} skipped" if n_skipped else "")
            if n_skipped > most_skipped:
                break
    check_skipped(store, image.max_skipped)
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


def check_shared(client: Client, *urls: str) -> None:
    """Refuse places that the workers cannot see.

    Raises
    ------
    ValueError
        For ``memory://`` with worker processes.
    FileNotFoundError
        For a local folder that a worker on another machine does not have.
    """
    in_process = all(
        worker["id"] is not None and address.startswith("inproc://")
        for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()
    )
    for url in urls:
        if url.startswith("memory://") and not in_process:
            raise ValueError(
                f"{url}: memory:// is of one process only, so worker processes would lose all they "
                "write. Use a folder, or --cluster.processes false."
            )
    local = [url for url in urls[:1] if storage.is_local(url)]
    for url in local:
        for worker, there in client.run(storage.exists, url).items():
            if not there:
                raise FileNotFoundError(
                    f"Worker {worker} does not see {url}. Put the images where every worker reads "
                    "them: hdfs://, s3://, or a folder mounted on all machines."
                )


def versions() -> dict[str, str]:
    """Of the packages that the features depend on."""
    names = ("dtl", "keras", "tensorflow", "numpy", "pillow", "zarr")
    return {name: importlib.metadata.version(name) for name in names}


# --- on the driver -------------------------------------------------------------------------------


def _on_each_worker(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Run a function as a task on every worker; `Client.run` would block their event loops."""
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    futures = {
        worker: client.submit(function, *args, workers=[worker], pure=False) for worker in workers
    }
    return {worker: future.result() for worker, future in futures.items()}


def _probe(client: Client, features: FeaturesConfig) -> tuple[Description, list[list[str]]]:
    probes = _on_each_worker(
        client, _probe_worker, features.network, features.layers, features.pooling
    )
    description: Description = next(iter(probes.values()))[0]
    # The weights, the copy that they are loaded from, and what TensorFlow and a batch take.
    needed = 3 * description.weights_bytes + (1 << 30)
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        limit = worker["memory_limit"]
        if limit and limit < needed:
            raise ValueError(
                f"Worker {address} may use {limit / 2**30:.1f} GiB; {features.network} up to "
                f"{', '.join(features.layers)} needs {needed / 2**30:.1f} GiB. Raise "
                "cluster.memory_limit, or run fewer workers a machine."
            )
    return description, [available for _, available in probes.values()]


def _precision(asked: str | None, available: list[list[str]]) -> str:
    if asked is None:
        return next(
            p
            for p in ("float16", "bfloat16", "float32")
            if all(p in precisions for precisions in available)
        )
    if not all(asked in precisions for precisions in available):
        raise ValueError(
            f"features.precision = {asked}: not every worker's processor computes it at speed. "
            f"They have: {available}. Use auto or float32."
        )
    return asked


def _load(client: Client, spec: BackboneSpec) -> str:
    """Load the network everywhere before work starts; its weights' SHA-256."""
    hashes = _on_each_worker(client, _load_worker, spec)
    if len(set(hashes.values())) > 1:
        raise ValueError(f"The workers have different weights: {hashes}. Give them one file.")
    return str(next(iter(hashes.values())))


def _compute(
    client: Client, chunks: list[int], arguments: Mapping[str, Any]
) -> Iterator[tuple[int, int]]:
    """Featurize chunks, a few at a time for each worker; yields each one's result."""

    def submit(chunk: int) -> Any:
        # A bag for every chunk: the client's work for a task of one large bag grows with the bag.
        bag = db.from_sequence([chunk], npartitions=1).map(_featurize_chunk, **arguments)
        return client.compute(bag, retries=_RETRIES)

    waiting = iter(chunks)
    n_workers = max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)
    running = as_completed(
        [submit(chunk) for chunk in itertools.islice(waiting, _CHUNKS_A_WORKER * n_workers)]
    )
    for future in running:
        yield from future.result()
        wanted = _CHUNKS_A_WORKER * max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)
        for chunk in itertools.islice(waiting, max(wanted - running.count(), 0)):
            running.add(submit(chunk))


# --- on the workers ------------------------------------------------------------------------------


def _probe_worker(
    network: str, layers: tuple[str, ...], pooling: str
) -> tuple[Description, list[str]]:
    from dtl import backbone

    return backbone.describe(network, layers, pooling), backbone.precisions()


def _load_worker(spec: BackboneSpec) -> str:
    from dtl import backbone

    return backbone.load(spec).weights_sha256


def _featurize_chunk(
    chunk: int,
    *,
    store: FeatureStore,
    root: str,
    spec: BackboneSpec,
    size: tuple[int, int],
    image: ImagesConfig,
    batch_images: int,
    weights_sha256: str,
) -> tuple[int, int]:
    """Read, decode, compute and store one chunk; returns how many images, and how many skipped."""
    from dtl import backbone

    network = backbone.load(spec)
    if network.weights_sha256 != weights_sha256:
        raise ValueError(
            f"A worker that joined late has weights of SHA-256 {network.weights_sha256} instead of "
            f"{weights_sha256}. Give all workers one file."
        )
    paths = [str(path) for path in store.read("path", chunk)]

    def read(path: str) -> tuple[int, str, NDArray[np.float32] | None]:
        content_hash, error, pixels = read_image(storage.join(root, path), size, image)
        return content_hash, error, None if pixels is None else network.preprocess(pixels)

    n_images = len(paths)
    content_hash = np.zeros(n_images, np.uint64)
    errors = [""] * n_images
    stored = {
        layer: np.zeros((n_images, n), store.dtype(layer))
        for layer, n in network.description.n_features.items()
    }
    with ThreadPoolExecutor(_READERS) as pool:
        ahead = _read_ahead(pool, read, paths, 3 * batch_images)
        with network.lock:
            for start in range(0, n_images, batch_images):
                # Always of one shape, so that Keras traces it once; the rest stays black.
                batch = np.zeros((batch_images, *size, 3), np.float32)
                rows = range(start, min(start + batch_images, n_images))
                for row in rows:
                    content_hash[row], errors[row], pixels = next(ahead)
                    if pixels is not None:
                        batch[row - start] = pixels
                for layer, values in network.features(batch).items():
                    stored[layer][rows.start : rows.stop] = values[: len(rows)]
    for row in np.flatnonzero([error != "" for error in errors]):
        for values in stored.values():
            values[row] = 0
    store.write_chunk(chunk, stored, content_hash, errors)
    return n_images, sum(error != "" for error in errors)


def read_image(
    url: str, size: tuple[int, int], image: ImagesConfig
) -> tuple[int, str, NDArray[np.uint8] | None]:
    """Read and decode one image file.

    Returns
    -------
    content_hash : int
        64 bits of the bytes' BLAKE2b; 0 where there are none.
    error : str
        Why it cannot be used, or nothing.
    pixels : (height, width, 3) uint8, or None

    Raises
    ------
    OSError
        If the storage failed; a file that is gone or forbidden is an `error` instead.
    """
    try:
        data = storage.read_bytes(url)
    except FileNotFoundError:
        return 0, "the file is gone", None
    except PermissionError:
        return 0, "no permission to read", None
    except OSError as error:
        error.add_note(f"while reading {url}")
        raise
    content_hash = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    try:
        pixels = images.decode(data, size, resize=image.resize, max_pixels=image.max_pixels)
    except ValueError as error:
        return content_hash, str(error) or "damaged", None
    return content_hash, "", pixels


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[str], Any], paths: list[str], window: int
) -> Iterator[Any]:
    """Results in order, with at most `window` of them read but not taken. Starts at once."""
    waiting: deque[ThreadFuture[Any]] = deque(pool.submit(read, path) for path in paths[:window])

    def results() -> Iterator[Any]:
        for path in paths[window:]:
            yield waiting.popleft().result()
            waiting.append(pool.submit(read, path))
        while waiting:
            yield waiting.popleft().result()

    return results()
