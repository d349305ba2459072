"""Repair of a store: files that are missing or damaged are made again, in the same bytes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from distributed import Client

from dtl import storage
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_visible
from dtl.config import ImagesConfig
from dtl.config.errors import UserError
from dtl.features.arrays import DamagedError
from dtl.features.columns import TASK_COLUMNS, lay_out, list_columns
from dtl.features.store import FeatureStore
from dtl.features.values import REMOVED, SKIPPED
from dtl.images.decoding.reading import open_images
from dtl.images.values import ImageList

log = logging.getLogger(__name__)

_TRIED_SIZE = (224, 224)
"""To which images are decoded to see whether they can be read: a usual size."""


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
    damaged = mend_columns(store, images, n_features)
    chunks = []
    layers = tuple(n_features)
    with track("check", store.n_chunks, "chunks") as advance:
        begun = sorted(store.arrays.list_files("status"))
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


def mend_columns(store: FeatureStore, images: ImageList, layers: Mapping[str, int]) -> list[str]:
    """Write again what is missing or damaged of the columns that follow from the list.

    `layers` are of n_features each. Returns what was damaged. A split that was is forgotten, unless
    it has grown with the store: it cannot be made again, which is a `UserError`.
    """
    found, arrays = [], store.arrays
    dtype, chunk_images = store.fingerprint["dtype"], store.fingerprint["chunk_images"]
    layouts = lay_out(images, layers, dtype, chunk_images)
    for name, layout in layouts.items():
        if not arrays.fits(name, layout):
            found.append(storage.join(store.url, f"{name}/zarr.json"))
            arrays.remove_array(name)
            arrays.create_array(name, layout)
    for name, column in list_columns(images).items():
        for file, rows in enumerate(arrays.files(name)):
            try:
                stored = arrays.read(name, rows)
                follows = name not in ("modified", "split")
                if not follows or np.array_equal(stored, column[rows]):
                    continue
            except DamagedError:
                pass
            found.append(arrays.file_url(name, file))
            if name == "split":
                _forget_split(store, found[-1])
            arrays.remove_file(name, file)
            arrays.write(name, rows, column[rows])
    return found


def _forget_split(store: FeatureStore, damaged: str) -> None:
    with contextlib.suppress(DamagedError):
        fingerprint, _ = store.split_before
        is_whole = store.split_fingerprint is not None
        if fingerprint is not None and ("grown" in fingerprint or not is_whole):
            raise UserError(
                f"{damaged} is damaged or missing. It says which images were trained on, list by "
                "list, which nothing else tells. Put back a copy of it, or compute into another "
                "`out`."
            )
    store.forget_split()


def list_damaged(store: FeatureStore, chunk: int, layers: Iterable[str]) -> list[str]:
    """Name what cannot be read of a done chunk, as the messages of `DamagedError`."""
    found = []
    for name in (*layers, *TASK_COLUMNS):
        try:
            store.read(name, chunk)
        except DamagedError as error:
            found.append(str(error))
    return found


def find_readable(
    store: FeatureStore, root: str, images: ImagesConfig, client: Client
) -> list[int]:
    """Find the chunks of which a skipped image can be read now; workers try."""
    check_visible(client, root, store.url)
    is_there = store.read("label") != REMOVED
    skipped = np.flatnonzero((store.read("status") == SKIPPED) & is_there)
    chunks = np.unique(skipped // store.chunk_images).tolist()
    tried = map_chunks(client, _check_images, chunks, store=store, root=root, images=images)
    return sorted(chunk for chunk, n_readable in tried if n_readable)


def _list_damaged(
    chunk: int, *, store: FeatureStore, layers: tuple[str, ...]
) -> tuple[int, list[str]]:
    return chunk, list_damaged(store, chunk, layers)


def _check_images(
    chunk: int, *, store: FeatureStore, root: str, images: ImagesConfig
) -> tuple[int, int]:
    """Refuse to compute a chunk again if an image is not as it was; count those readable now."""
    stored = {}
    for name in ("content_hash", "error", "status"):
        with contextlib.suppress(DamagedError):
            stored[name] = store.read(name, chunk)
    path, n_readable = store.read("path", chunk), 0
    is_gone = store.read("label", chunk) == REMOVED
    was_skipped = np.zeros(len(path), bool)
    if "status" in stored:
        was_skipped = stored["status"] == SKIPPED
    elif "error" in stored:
        was_skipped = stored["error"] != ""
    with open_images(store.files(root, chunk), [_TRIED_SIZE], images, n_ahead=16) as opened:
        for row, (content_hash, error, *_) in enumerate(opened):
            if is_gone[row]:
                continue
            if was_skipped[row]:
                n_readable += not error
            elif "content_hash" in stored and content_hash != stored["content_hash"][row]:
                raise UserError(
                    f"{storage.join(root, str(path[row]))} is not the file that features were made "
                    f"of ({error or 'its bytes are others'}), so its chunk of {store.url} cannot "
                    "be made again. Put it back, or choose another `out`."
                )
    return chunk, n_readable


def check_same_images(chunk: int, *, store: FeatureStore, root: str, images: ImagesConfig) -> None:
    """Refuse to compute a chunk again if other images of it can be read than could before."""
    _, n_readable = _check_images(chunk, store=store, root=root, images=images)
    if n_readable:
        raise UserError(
            f"{n_readable} images of chunk {chunk} of {store.url} were skipped, and can be read "
            "now, so a repair would not make it as it was. Run the featurize stage with "
            "`retry_skipped` and without `repair`: that takes them in, and makes anew what "
            "follows. Or choose another `out`."
        )
