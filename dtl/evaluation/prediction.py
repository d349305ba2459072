"""Predictions of a trained head for new images, which need no labels."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import Counter
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
from dtl.config.secrets import hide_options
from dtl.evaluation import parts
from dtl.evaluation.certainty import Thresholds
from dtl.evaluation.parts import Part, Row, Version
from dtl.features import extraction
from dtl.features.extraction import Extractor
from dtl.features.values import ExtractionSpec, check_weights
from dtl.head import blas
from dtl.head.model import Head
from dtl.images.decoding import formats
from dtl.images.decoding.reading import describe_costliest
from dtl.images.listing import ImageFiles
from dtl.neighbours.novelty import Novelty
from dtl.storage import Extent
from dtl.storage.ledger import Ledger

log = logging.getLogger(__name__)

_LEDGER = "_dtl.json"
"""Parquet readers skip names that begin with an underscore."""

_DETAILS = ("listing", "first_part", "source")
"""In the ledger: hash of the list, the first file that its new images go to, the images' URL."""

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
    coverage: float | None = None,
    max_error: float | None = None,
    novelty: Novelty | None = None,
    overwrite: bool = False,
) -> int:
    """Classify images into the Parquet dataset of the folder `url`, those that are new there.

    Each row has ``path``, ``class`` (null for an unreadable image), ``probability``, ``top5`` (a
    list of class and probability), ``error``, ``size_bytes``, ``modified`` (when the file or its
    tar was changed; null if unknown) and ``content_hash`` (64 bits of BLAKE2b). With `coverage` it
    has ``set``, the classes of which one is right in such a share of all cases, the likeliest first
    (`conformal`). With `max_error` it has ``answer``: the class, or null where among such answers a
    larger share may be wrong (`selective`). With `novelty` it has that as a number, and ``unlike``,
    whether it is above the threshold. An image of another
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
        head's, or something else is at `url`; if images of another source would lose their rows; if
        the head's validation rows do not suffice for `coverage` or `max_error`.
        With `overwrite`, predictions of another head, settings or source are replaced, and nothing
        else is.
    """
    extraction.check_head(head, spec)
    thresholds = Thresholds.find(head, coverage, max_error)
    wanted = {"head": head.fingerprint, "chunk_images": spec.features.chunk_images}
    # Only where they are given, so that datasets of earlier versions go on.
    novelty_sha256 = None if novelty is None else hashlib.sha256(novelty.to_bytes()).hexdigest()
    given = {"coverage": coverage, "max_error": max_error, "novelty": novelty_sha256}
    wanted |= {name: value for name, value in given.items() if value is not None}
    connect = _checking(connect, images.root, url)
    places = dict(zip(parts.list_versions(images), images.files(), strict=True))
    update = _plan(Ledger(url, _LEDGER, wanted), places, spec, connect, overwrite=overwrite)
    tasks = [
        _Task(parts.name_part(url, number), kept, new, [places[image] for image in new])
        for number, kept, new in update.planned
        if new
    ]
    extractor = _prepare(head, spec, connect()) if tasks else None
    update.ledger.claim(overwrite=overwrite)
    columns = thresholds.columns + (("novelty", "unlike") if novelty is not None else ())
    parts.drop_rows(url, update.on_disk, update.planned, parts.make_schema(columns))
    n_unread = update.count_unread()
    if extractor is not None:
        told = _classify(url, tasks, head, thresholds, novelty, extractor, connect())
        n_unread += told["unread"]
        _tell_certainty(told, coverage, max_error)
        if novelty is not None:
            _tell_novelty(told, novelty)
    update.ledger.finish()
    return n_unread


class _Update(NamedTuple):
    """A plan to go on, or to begin."""

    ledger: Ledger
    on_disk: dict[int, dict[Version, Row]]
    stored: dict[int, dict[Version, Row]]  # with the times of files that were recognised
    planned: list[Part]

    def count_unread(self) -> int:
        """Return how many rows that are kept have an error."""
        kept = ((part.number, image) for part in self.planned for image in part.kept)
        return sum(self.stored[number][image].unread for number, image in kept)


def _plan(
    ledger: Ledger,
    places: Mapping[Version, str | Extent],
    spec: ExtractionSpec,
    connect: Callable[[], Client],
    *,
    overwrite: bool,
) -> _Update:
    """Compare a list with the rows that are there; changes nothing."""
    earlier = _read_earlier(ledger, overwrite=overwrite)
    on_disk = parts.read_parts(ledger.url) if earlier else {}
    chunk_images = spec.features.chunk_images
    stored = _recognise(on_disk, places, connect, chunk_images)
    listed, source = [*places], hide_options(spec.images.url)
    listing, first = parts.hash_versions(listed), max(stored, default=0)
    if earlier.get("listing") == listing:  # perhaps a part of its plan is done
        first = int(earlier.get("first_part", first))
    if stored:
        before = [image for part in stored.values() for image in part]
        changes = parts.compare(before, listed)
        old_source = earlier.get("source")
        if changes.removed and old_source != source and not overwrite:
            raise DifferentSettingsError(
                f"{ledger.url} has predictions for {old_source}, of whose {len(before):,} images "
                f"{changes.removed:,} are not in {source}. Choose another `out`, or set "
                "`overwrite` to remove them."
            )
        log.info("predictions: %s", changes)
    details = {"listing": listing, "first_part": first, "source": source}
    planned = parts.plan(stored, listed, first, chunk_images)
    return _Update(replace(ledger, details=details), on_disk, stored, planned)


def _read_earlier(ledger: Ledger, *, overwrite: bool) -> dict[str, Any]:
    """Read the ledger of predictions that the command goes on with; empty if it begins anew."""
    earlier = ledger.read() or {}
    if "n_images" in earlier and not overwrite:
        raise DifferentSettingsError(
            f"{ledger.url} was made by an earlier dtl, without the size and time of each file, so "
            "it cannot be told what is new. Choose another `out`, or set `overwrite` to classify "
            "all images again."
        )
    compared = replace(ledger, details=dict.fromkeys(_DETAILS))
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


def _tell_certainty(n: Counter[str], coverage: float | None, max_error: float | None) -> None:
    n_read = n["images"] - n["unread"]
    if coverage is not None and n_read:
        log.info(
            "sets that hold the right class of %s of images like the validation ones: %.2f classes "
            "on average, one alone for %s of the new images",
            f"{100 * coverage:.4g}%", n["members"] / n_read, f"{n['single'] / n_read:.1%}",
        )  # fmt: skip
    if max_error is not None and n_read and not n["answered"]:
        log.warning(
            "No image is answered: the validation images do not show of any confidence that at "
            "most %.4g%% of the answers are wrong. Allow more, or train with more of them.",
            100 * max_error,
        )
    elif max_error is not None and n_read:
        log.info(
            "answers of which at most %.4g%% are wrong: %s of %s new images (%s); the others have "
            "a class, but no answer",
            100 * max_error, f"{n['answered']:,}", f"{n_read:,}", f"{n['answered'] / n_read:.1%}",
        )  # fmt: skip


def _tell_novelty(n: Counter[str], novelty: Novelty) -> None:
    if not (n_read := n["images"] - n["unread"]):
        return
    found = (
        f"{n['unlike']:,} of {n_read:,} new images ({n['unlike'] / n_read:.1%}) are unlike the "
        f"training images; of images like these {novelty.share:.0%} would be"
    )
    if n["unlike"] > n_read / 2:
        log.warning("%s. Most may be of no known class, whatever class they get.", found)
    else:
        log.info("%s", found)


def _classify(
    url: str,
    tasks: Sequence[_Task],
    head: Head,
    thresholds: Thresholds,
    novelty: Novelty | None,
    extractor: Extractor,
    client: Client,
) -> Counter[str]:
    head_url = storage.join(url, "_head.npz")
    storage.write_bytes(head_url, head.to_bytes())
    novelty_url, novelty_data = "", b"" if novelty is None else novelty.to_bytes()
    if novelty_data:
        novelty_url = storage.join(url, "_novelty.npz")
        storage.write_bytes(novelty_url, novelty_data)
    check_visible(client, url)
    results = map_chunks(
        client, _write_part, tasks, head_url=head_url, head_sha256=head.fingerprint,
        thresholds=thresholds, novelty_url=novelty_url,
        novelty_sha256=hashlib.sha256(novelty_data).hexdigest(), extractor=extractor,
        describe=lambda task: describe_costliest(task.files),
    )  # fmt: skip
    total: Counter[str] = Counter()
    with track("predictions", sum(len(task.new) for task in tasks), "images") as advance:
        for counts in results:
            total += counts
            advance(counts["images"])
    return total


def _write_part(
    task: _Task,
    *,
    head_url: str,
    head_sha256: str,
    thresholds: Thresholds,
    novelty_url: str,
    novelty_sha256: str,
    extractor: Extractor,
) -> Counter[str]:
    """Write a file, on a worker; return how many images are new, and what became of them."""
    head = _load_head(head_url, head_sha256)
    features, hashes, errors, _ = extraction.extract(task.files, extractor)
    with blas.one_blas_thread():
        logits = head.logits(features[head.provenance["layer"]])
    probability = np.exp(head.log_probabilities(logits))
    sure, columns = thresholds.apply(probability, head.class_names), thresholds.columns
    if novelty_url:
        novelty = _load_novelty(novelty_url, novelty_sha256)
        scores = novelty.score(features[head.provenance["layer"]])
        columns += ("novelty", "unlike")
        for found, score, unlike in zip(sure, scores, novelty.is_unlike(scores), strict=True):
            found |= {"novelty": float(score), "unlike": bool(unlike)}
    rows: list[dict[str, Any]] = []
    n = Counter(images=len(task.new))
    for row, (image, content_hash, error) in enumerate(zip(task.new, hashes, errors, strict=True)):
        p = probability[row]
        best = np.argsort(-p, kind="stable")[:_N_TOP]
        top = [{"class": head.class_names[k], "probability": float(p[k])} for k in best]
        read = {"error": error} if error else {**top[0], "top5": top, **sure[row]}
        file = {"modified": image.modified or None, "content_hash": _hash_text(int(content_hash))}
        rows.append(image._asdict() | file | read)
        members = read.get("set", ())
        n.update(unread=bool(error), answered=read.get("answer") is not None)
        n.update(unlike=bool(read.get("unlike")))
        n.update(members=len(members), single=len(members) == 1)
    schema = parts.make_schema(columns)
    table = pa.Table.from_pylist(rows, schema=schema)
    if task.kept:
        table = pa.concat_tables([parts.read_rows(task.url, task.kept, schema), table])
    parts.write(task.url, table)
    return n


@functools.lru_cache(maxsize=1)
def _load_head(url: str, sha256: str) -> Head:
    return Head.from_bytes(_read_written(url, sha256, "the head"))


@functools.lru_cache(maxsize=1)
def _load_novelty(url: str, sha256: str) -> Novelty:
    return Novelty.from_bytes(_read_written(url, sha256, "the novelty"))


def _read_written(url: str, sha256: str, what: str) -> bytes:
    # By its hash, too: another one may have been at this URL before, or be there now.
    data = storage.read_bytes(url)
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(
            f"{url} is not {what} whose predictions are made: expected {sha256}, received "
            f"{found}. Does another command write to that folder? Choose another `out`."
        )
    return data
