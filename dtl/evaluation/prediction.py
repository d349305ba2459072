"""Predictions of a trained head for new images, which need no labels."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client

from dtl import storage
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.workers import check_shared, check_visible
from dtl.config.errors import UserError
from dtl.features import extraction
from dtl.features.extraction import Extractor
from dtl.features.values import ExtractionSpec, check_weights
from dtl.head import blas
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images.listing import ImageFiles
from dtl.images.reading import describe_costliest
from dtl.storage import Extent
from dtl.storage.ledger import Ledger, read_parsed

log = logging.getLogger(__name__)

_N_TOP = 5


class _Task(NamedTuple):
    """A chunk: URL of its Parquet file, and paths and places of its images."""

    url: str
    paths: Sequence[str]
    files: Sequence[str | Extent]


def predict(
    url: str,
    images: ImageFiles,
    head: Head,
    spec: ExtractionSpec,
    client: Client,
    *,
    overwrite: bool = False,
) -> int:
    """Classify images, and write a Parquet dataset with one file per chunk to the folder `url`.

    Each row has ``path``, ``class`` (null for an unreadable image), ``probability``, ``top5`` (a
    list of class and probability) and ``error``. Files that exist are not computed again. It
    returns the number of images that could not be read.

    Raises
    ------
    UserError
        If features would be made otherwise than the head's, the workers' network is not the
        head's, or something else is at `url`. With `overwrite`, predictions of other images or of
        another head are replaced, and nothing else is.
    """
    extraction.check_head(head, spec)
    check_shared(client, images.root, url)
    check_visible(client, images.root)
    paths, chunk_images = images.paths, spec.features.chunk_images
    wanted = {
        "head": head.fingerprint,
        "images": hashlib.sha256("\n".join(paths).encode()).hexdigest(),
        "n_images": len(paths),
        "chunk_images": chunk_images,
    }
    ledger = Ledger(url, "_dtl.json", wanted)  # Parquet readers skip names that begin with _
    ledger.inspect(overwrite=overwrite)
    extractor = extraction.prepare(client, spec, str(head.provenance["features"]["precision"]))
    check_weights(extractor.weights_sha256, head.provenance["weights_sha256"], "The head")
    ledger.claim(overwrite=overwrite)
    head_url = storage.join(url, "_head.npz")
    storage.write_bytes(head_url, head.to_bytes())
    check_visible(client, url)
    files = images.files()
    chunks = [slice(i, i + chunk_images) for i in range(0, len(paths), chunk_images)]
    tasks = [
        _Task(storage.join(url, f"part-{i:06d}.parquet"), paths[rows], files[rows])
        for i, rows in enumerate(chunks)
    ]
    done = {task.url for task in tasks if storage.exists(task.url)}
    pending = [task for task in tasks if task.url not in done]
    n_unread = sum(map(_count_unread, sorted(done)))
    results = map_chunks(
        client, _predict_chunk, pending, head_url=head_url, head_sha256=head.fingerprint,
        extractor=extractor, describe=lambda task: describe_costliest(task.files),
    )  # fmt: skip
    with track("predictions", sum(len(task.paths) for task in pending), "images") as advance:
        for n_images, unread in results:
            n_unread += unread
            advance(n_images)
    ledger.finish()
    return n_unread


def _predict_chunk(
    task: _Task, *, head_url: str, head_sha256: str, extractor: Extractor
) -> tuple[int, int]:
    """Write the file of a chunk, on a worker; return its number of images, and of unread ones."""
    head = _load_head(head_url, head_sha256)
    features, _, errors = extraction.extract(task.files, extractor)
    with blas.one_blas_thread():
        logits = head.logits(features[head.provenance["layer"]]).astype(np.float64)
    probability = np.exp(log_softmax(logits))
    rows: list[dict[str, Any]] = []
    for path, error, p in zip(task.paths, errors, probability, strict=True):
        best = np.argsort(-p, kind="stable")[:_N_TOP]
        top = [{"class": head.class_names[k], "probability": float(p[k])} for k in best]
        read = {"error": error} if error else {**top[0], "top5": top}
        rows.append({"path": path} | read)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer)
    storage.write_bytes(task.url, buffer.getvalue())
    return len(rows), sum(map(bool, errors))


def _count_unread(url: str) -> int:
    def parse(data: bytes) -> int:
        return int(pq.read_table(io.BytesIO(data), columns=["class"])["class"].null_count)

    n_unread = read_parsed(url, parse, "Remove it, and the same command makes it again.")
    if n_unread is None:
        raise FileNotFoundError(f"{url} was there a moment ago. Does another command remove it?")
    return n_unread


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


_SCORE = {"class": pa.string(), "probability": pa.float64()}
_TOP5 = pa.list_(pa.struct(_SCORE))
_SCHEMA = pa.schema({"path": pa.string(), **_SCORE, "top5": _TOP5, "error": pa.string()})
