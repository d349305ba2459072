"""Predictions of a trained head for new images, which need no labels."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
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
from dtl.evaluation.parts import Version
from dtl.features import extraction
from dtl.features.extraction import Extractor
from dtl.features.values import ExtractionSpec, check_weights
from dtl.head import blas
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images.listing import ImageFiles
from dtl.images.reading import describe_costliest
from dtl.storage import Extent
from dtl.storage.ledger import Ledger

log = logging.getLogger(__name__)

_LEDGER = "_dtl.json"
"""Parquet readers skip names that begin with an underscore."""

_N_TOP = 5


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
    list of class and probability), ``error``, and ``size_bytes`` and ``modified`` of the file, or
    its tar's. Where size or time differ, the image is classified again. In the end there is a row
    for each image of the list, and no other. It returns the number of images that could not be
    read. `connect` is called only if an image is to be classified.

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
    stored = parts.read_parts(url) if earlier else {}
    listing, first = parts.hash_versions(listed), max(stored, default=0)
    if earlier.get("listing") == listing:  # perhaps a part of its plan is done
        first = int(earlier["first_part"])
    planned = parts.plan(stored, listed, first, chunk_images)
    if stored:
        before = (image for part in stored.values() for image in part)
        log.info("predictions: %s", parts.compare(before, listed))
    pending = [part for part in planned if part.new]
    if pending:
        client = connect()
        extractor = _prepare(url, images.root, head, spec, client)
    ledger = replace(ledger, details={"listing": listing, "first_part": first})
    ledger.claim(overwrite=overwrite)
    parts.drop_rows(url, stored, planned)
    n_unread = sum(stored[part.number][image] for part in planned for image in part.kept)
    if pending:
        places = dict(zip(listed, images.files(), strict=True))
        tasks = [
            _Task(parts.name_part(url, number), kept, new, [places[image] for image in new])
            for number, kept, new in pending
        ]
        n_unread += _classify(url, tasks, head, extractor, client)
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


def _prepare(url: str, root: str, head: Head, spec: ExtractionSpec, client: Client) -> Extractor:
    check_shared(client, root, url)
    check_visible(client, root)
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
    features, _, errors = extraction.extract(task.files, extractor)
    with blas.one_blas_thread():
        logits = head.logits(features[head.provenance["layer"]]).astype(np.float64)
    probability = np.exp(log_softmax(logits))
    rows: list[dict[str, Any]] = []
    for image, error, p in zip(task.new, errors, probability, strict=True):
        best = np.argsort(-p, kind="stable")[:_N_TOP]
        top = [{"class": head.class_names[k], "probability": float(p[k])} for k in best]
        read = {"error": error} if error else {**top[0], "top5": top}
        rows.append(image._asdict() | {"modified": image.modified or None} | read)
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
