"""Predictions of a trained head for new images, which need no labels."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from distributed import Client

from dtl import storage
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible
from dtl.config.errors import DifferentSettingsError, UserError
from dtl.config.provenance import Claim
from dtl.evaluation import parts
from dtl.evaluation.parts import Row, Version
from dtl.features import extraction
from dtl.features.extraction import Extractor
from dtl.features.values import ExtractionSpec, check_weights
from dtl.head import blas
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images import formats
from dtl.images.listing import ImageFiles
from dtl.images.reading import describe_costliest
from dtl.storage import Extent
from dtl.storage.ledger import Ledger

log = logging.getLogger(__name__)

_LEDGER = "_dtl.json"
"""Parquet readers skip names that begin with an underscore."""

_N_TOP = 5
_READERS = 8


class _Task(NamedTuple):
    """A file: its URL, images whose rows it has, those to classify, and the places of these."""

    url: str
    kept: Sequence[Version]
    new: Sequence[Version]
    files: Sequence[str | Extent]


def predict(
    url: str,
    images: ImageFiles,
    head: Head,
    spec: ExtractionSpec,
    connect: Callable[[], Client],
    *,
    overwrite: bool = False,
) -> int:
    """Classify images into the Parquet dataset of the folder `url`, those that are new there.

    Each row has ``path``, ``class`` (null for an unreadable image), ``probability``, ``top5`` (a
    list of class and probability), ``error``, ``size_bytes``, ``modified`` (when the file or its
    tar was changed; null if unknown) and ``content_hash`` (64 bits of BLAKE2b). An image of another
    size is classified again; so is one of another time, unless the content has the hash. In the end
    there is a row for each image of the list, and no other. It returns the number of images that
    could not be read. `connect` is called only if images are to be read.

    Rows of images that were removed or changed go first; then rows are added, as `parts.plan` says.
    Each file takes the place of the old one at once. So who reads meanwhile finds no image twice,
    but perhaps not yet those that are new or changed. A killed command goes on to the bytes of an
    undisturbed one.

    Raises
    ------
    UserError
        If features would be made otherwise than the head's, the workers' network is not the
        head's, or something else is at `url`. With `overwrite`, predictions of another head or of
        other settings are replaced, and nothing else is.
    """
    extraction.check_head(head, spec)
    listed, chunk_images = parts.list_versions(images), spec.features.chunk_images
    ledger = Ledger(url, _LEDGER, {"head": head.fingerprint, "chunk_images": chunk_images})
    earlier = _read_earlier(ledger, overwrite=overwrite)
    on_disk = parts.read_parts(url) if earlier else {}
    connect = _checking(connect, images.root, url)
    places = dict(zip(listed, images.files(), strict=True))
    stored = _recognise(on_disk, places, connect, chunk_images)
    listing, first = parts.hash_versions(listed), max(stored, default=0)
    if earlier.get("listing") == listing:  # perhaps a part of its plan is done
        first = int(earlier["first_part"])
    planned = parts.plan(stored, listed, first, chunk_images)
    if stored:
        before = (image for part in stored.values() for image in part)
        log.info("predictions: %s", parts.compare(before, listed))
    tasks = [
        _Task(parts.name_part(url, number), kept, new, [places[image] for image in new])
        for number, kept, new in planned
        if new
    ]
    extractor = _prepare(head, spec, connect()) if tasks else None
    ledger = replace(ledger, details={"listing": listing, "first_part": first})
    ledger.claim(overwrite=overwrite)
    parts.drop_rows(url, on_disk, planned)
    n_unread = sum(stored[part.number][image].unread for part in planned for image in part.kept)
    if extractor is not None:
        n_unread += _classify(url, tasks, head, extractor, connect())
    ledger.finish()
    return n_unread


def _read_earlier(ledger: Ledger, *, overwrite: bool) -> dict[str, Any]:
    """Read the ledger of predictions that the command goes on with; empty if it begins anew."""
    earlier = ledger.read() or {}
    if "n_images" in earlier and not overwrite:
        raise DifferentSettingsError(
            f"{ledger.url} was made by an earlier dtl, without the size and time of each file, so "
            "it cannot be told what is new. Choose another `out`, or set `overwrite` to classify "
            "all images again."
        )
    # Without `details`, which say how far it is, and not which it is.
    compared = replace(ledger, details=dict.fromkeys(("listing", "first_part")))
    going_on = compared.inspect(overwrite=overwrite) in (Claim.BEGUN, Claim.FINISHED)
    return earlier if going_on else {}


def _checking(connect: Callable[[], Client], root: str, url: str) -> Callable[[], Client]:
    def checked() -> Client:
        client = connect()
        check_shared(client, root, url)
        check_visible(client, root)
        return client

    return functools.cache(checked)


def _recognise(
    stored: Mapping[int, Mapping[Version, Row]],
    places: Mapping[Version, str | Extent],
    connect: Callable[[], Client],
    chunk_images: int,
) -> dict[int, dict[Version, Row]]:
    """Give stored rows the new time of files that have another, but the same size and content."""
    touched = parts.match_touched(stored, places)
    if not touched:
        return {number: dict(part) for number, part in stored.items()}
    images = [*touched]
    chunks = [images[i : i + chunk_images] for i in range(0, len(images), chunk_images)]
    log.info("%s files have another time, and are compared by content", f"{len(images):,}")
    tasks = ([(image, places[image]) for image in chunk] for chunk in chunks)
    now: dict[Version, Version] = {}
    with track("comparison", len(images), "images") as advance:
        for hashes in map_chunks(connect(), _hash_files, tasks):
            for image, content_hash in hashes:
                before, hash_before = touched[image]
                if content_hash == hash_before:
                    now[before] = image
            advance(len(hashes))
    return {
        number: {now.get(image, image): row for image, row in part.items()}
        for number, part in stored.items()
    }


def _hash_files(
    files: Sequence[tuple[Version, str | Extent]],
) -> list[tuple[Version, str | None]]:
    """Return the content hashes of images, on a worker; None of one that cannot be read."""
    with (
        storage.Reader([place for _, place in files]) as reader,
        ThreadPoolExecutor(_READERS) as pool,
    ):

        def read(row: int) -> str | None:
            try:
                return _hash_text(formats.hash_content(reader.read(row)))
            except OSError:
                return None  # classified again, which says why

        hashes = pool.map(read, range(len(files)))
        return [(image, found) for (image, _), found in zip(files, hashes, strict=True)]


def _hash_text(content_hash: int) -> str | None:
    # As text, for older readers of Parquet know no unsigned integers.
    return f"{content_hash:016x}" if content_hash else None


def _prepare(head: Head, spec: ExtractionSpec, client: Client) -> Extractor:
    extractor = extraction.prepare(client, spec, str(head.provenance["features"]["precision"]))
    check_weights(extractor.weights_sha256, head.provenance["weights_sha256"], "The head")
    return extractor


def _classify(
    url: str, tasks: Sequence[_Task], head: Head, extractor: Extractor, client: Client
) -> int:
    head_url = storage.join(url, "_head.npz")
    storage.write_bytes(head_url, head.to_bytes())
    check_visible(client, url)
    results = map_chunks(
        client, _write_part, tasks, head_url=head_url, head_sha256=head.fingerprint,
        extractor=extractor, describe=lambda task: describe_costliest(task.files),
    )  # fmt: skip
    n_unread = 0
    with track("predictions", sum(len(task.new) for task in tasks), "images") as advance:
        for n_images, unread in results:
            n_unread += unread
            advance(n_images)
    return n_unread


def _write_part(
    task: _Task, *, head_url: str, head_sha256: str, extractor: Extractor
) -> tuple[int, int]:
    """Write a file, on a worker; return the number of images that were classified or unreadable."""
    head = _load_head(head_url, head_sha256)
    features, hashes, errors = extraction.extract(task.files, extractor)
    with blas.one_blas_thread():
        logits = head.logits(features[head.provenance["layer"]]).astype(np.float64)
    probability = np.exp(log_softmax(logits))
    rows: list[dict[str, Any]] = []
    for image, content_hash, error, p in zip(task.new, hashes, errors, probability, strict=True):
        best = np.argsort(-p, kind="stable")[:_N_TOP]
        top = [{"class": head.class_names[k], "probability": float(p[k])} for k in best]
        read = {"error": error} if error else {**top[0], "top5": top}
        file = {"modified": image.modified or None, "content_hash": _hash_text(int(content_hash))}
        rows.append(image._asdict() | file | read)
    table = pa.Table.from_pylist(rows, schema=parts.SCHEMA)
    if task.kept:
        table = pa.concat_tables([parts.read_rows(task.url, task.kept), table])
    parts.write(task.url, table)
    return len(rows), sum(map(bool, errors))


@functools.lru_cache(maxsize=1)
def _load_head(url: str, sha256: str) -> Head:
    # By its hash, too: another head may have been at this URL before, or be there now.
    head = Head.from_bytes(storage.read_bytes(url))
    if head.fingerprint != sha256:
        raise UserError(
            f"{url} is not the head whose predictions are made: expected {sha256}, received "
            f"{head.fingerprint}. Does another command write to that folder? Choose another `out`."
        )
    return head
