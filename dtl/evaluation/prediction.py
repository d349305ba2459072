"""Another use of a trained head: the classes of images that nobody has labelled."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
from collections.abc import Sequence

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
from dtl.features.values import ExtractionSpec
from dtl.head import blas
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images.listing import Found
from dtl.storage import Extent
from dtl.storage.ledger import Ledger

log = logging.getLogger(__name__)

_N_TOP = 5
_Part = tuple[str, Sequence[str], Sequence[str | Extent]]
"""A part's URL, and the names and places of its images."""


def predict(
    url: str,
    images: Found,
    head: Head,
    spec: ExtractionSpec,
    client: Client,
    *,
    overwrite: bool = False,
) -> int:
    """Classify images; writes a Parquet dataset, one part a chunk.

    Each row has ``path``, ``class`` (null for an unreadable image), ``probability``, ``top5`` (a
    list of class and probability) and ``error``. Parts that are there already are not computed
    again.

    Parameters
    ----------
    url : str
        Folder of the dataset.
    images : Found
        As `listing.find_images` gives them; labels do not matter.
    spec : ExtractionSpec
        As the head's features were made.

    Returns
    -------
    int
        How many images could not be read.

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
    if extractor.weights_sha256 != head.provenance["weights_sha256"]:
        raise UserError(
            f"The head was trained on features of weights {head.provenance['weights_sha256']}, the "
            f"workers have {extractor.weights_sha256}. Give `features.weights` as it was."
        )
    ledger.claim(overwrite=overwrite)
    head_url = storage.join(url, "_head.npz")
    storage.write_bytes(head_url, head.to_bytes())
    check_visible(client, url)
    files = images.files()
    parts: list[_Part] = []
    for i, start in enumerate(range(0, len(paths), chunk_images)):
        rows = slice(start, start + chunk_images)
        parts.append((storage.join(url, f"part-{i:06d}.parquet"), paths[rows], files[rows]))
    done = {part[0] for part in parts if storage.exists(part[0])}
    pending = [part for part in parts if part[0] not in done]
    n_unread = sum(_count_unread(part) for part in sorted(done))
    with track("predictions", sum(len(part[1]) for part in pending), "images") as advance:
        for n_images, unread in map_chunks(
            client,
            _predict_chunk,
            pending,
            head_url=head_url,
            fingerprint=head.fingerprint,
            extractor=extractor,
        ):
            n_unread += unread
            advance(n_images)
    ledger.finish()
    return n_unread


def _predict_chunk(
    part: _Part,
    *,
    head_url: str,
    fingerprint: str,
    extractor: Extractor,
) -> tuple[int, int]:
    url, paths, files = part
    head = _head(head_url, fingerprint)
    features, _, errors = extraction.extract(files, extractor)
    with blas.one_blas_thread():
        logits = head.logits(features[head.provenance["layer"]]).astype(np.float64)
    probability = np.exp(log_softmax(logits))
    top = np.argsort(-probability, axis=1, kind="stable")[:, :_N_TOP]
    named = [
        [{"class": head.class_names[k], "probability": float(p[k])} for k in best]
        for p, best in zip(probability, top, strict=True)
    ]
    table = pa.table(
        {
            "path": list(paths),
            "class": [None if e else t[0]["class"] for e, t in zip(errors, named, strict=True)],
            "probability": [
                None if e else t[0]["probability"] for e, t in zip(errors, named, strict=True)
            ],
            "top5": [None if e else t for e, t in zip(errors, named, strict=True)],
            "error": [e or None for e in errors],
        },
        schema=_SCHEMA,
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(url, buffer.getvalue())
    return len(paths), sum(e != "" for e in errors)


def _count_unread(part: str) -> int:
    table = pq.read_table(io.BytesIO(storage.read_bytes(part)), columns=["class"])
    return int(table["class"].null_count)


@functools.lru_cache(maxsize=1)
def _head(url: str, fingerprint: str) -> Head:
    """Another head may have been there before."""
    return Head.from_bytes(storage.read_bytes(url))


_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "class": pa.string(),
        "probability": pa.float64(),
        "top5": pa.list_(pa.struct({"class": pa.string(), "probability": pa.float64()})),
        "error": pa.string(),
    }
)
