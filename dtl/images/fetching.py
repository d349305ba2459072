"""Fetching of a public data set from its official archive: into class folders, splits or tars.

The archive is downloaded to this machine, checked, and listed like any tar. Only images of that
list are written, so no path of the archive leads anywhere else.

The download is our own code because pooch 1.9 cannot resume one: it begins again after a broken
connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from dtl import storage
from dtl.cluster.progress import track
from dtl.config import Config, ImagesConfig
from dtl.config.errors import UserError
from dtl.config.provenance import Claim
from dtl.images import listing, packing, split, tars
from dtl.images.decoding import formats
from dtl.images.values import NO_SPLIT, SPLITS, ImageList
from dtl.storage import read_ahead
from dtl.storage.ledger import IMAGES, Ledger

log = logging.getLogger(__name__)

LAYOUTS = ("folders", "split", "tars")
"""Class folders; class folders in train/, validation/ and test/; tars as `packing` writes them."""

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60
_ATTEMPTS = 5
"""Failures in a row, with no byte between them, after which a download is given up."""
_PAUSE_S = 1.0
"""Pause after the first failure; each further one is twice as long."""
_WRITERS = 32
"""Files written at the same time: closing one on HDFS takes about half a second."""


@dataclass(frozen=True)
class Dataset:
    """A public data set."""

    url: str  # of the archive, a tar
    n_bytes: int  # size of the archive; 0 if it is not known
    md5: str  # of the archive; "none" if it is not to be checked
    image: str  # regular expression of its images' paths, without the archive's top folder
    licence: str


DATASETS = {
    "caltech256": Dataset(
        # https://data.caltech.edu/records/nyy15-4j048 has the file with this MD5, as has
        # torchvision/datasets/caltech.py; the size is what the server says in Content-Range.
        url="https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
        n_bytes=1_183_006_720,
        md5="67b4f42ca05d46448c6bb8ecd2220f6d",
        image=r"\d{3}\.[^/]+/\d{3}_\d{4}\.jpg",
        licence="Griffin, Holub, Perona (2007), Caltech-256. CC BY 4.0. doi:10.22002/D1.20087",
    )
}


def fetch(
    name: str,
    settings: Config,
    *,
    source: str = "",
    md5: str = "",
    layout: str = "folders",
    scratch: str = "",
) -> None:
    """Bring one of `DATASETS` to ``settings.out``, or go on where that was interrupted.

    Parameters
    ----------
    settings : Config
        ``out``, ``overwrite`` and ``seed``; ``split`` for that layout, ``pack`` for tars.
    source : str
        Another place of the archive: http(s), a file of this machine, any URL that fsspec reads.
    md5 : str
        Checksum of another archive than the official one; ``none``: not checked.
    layout : {"folders", "split", "tars"}
    scratch : str
        Folder of this machine for the download, ``~/.cache/dtl`` unless given.

    Raises
    ------
    UserError
        If the archive has another size or checksum, is no tar, or the target holds something else.
    OSError
        If the archive cannot be read or the target cannot be written; finished files stay.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout must be one of {', '.join(LAYOUTS)}. Received: {layout!r}.")
    dataset = DATASETS[name]
    if md5:
        dataset = replace(dataset, md5=md5.lower(), n_bytes=0)
    fingerprint = {"dataset": name, "md5": dataset.md5, "layout": layout, "seed": settings.seed}
    if layout == "split":
        fingerprint["split"] = asdict(settings.split)
    if layout == "tars":
        fingerprint["shard_mib"] = settings.pack.shard_mib
    ledger = Ledger(settings.out, IMAGES, fingerprint)
    if ledger.claim(overwrite=settings.overwrite) is Claim.FINISHED:
        log.info("fetch: done before")
        return
    with _open_archive(name, dataset, source or dataset.url, scratch) as archive:
        listed = _list_archive(archive, dataset, settings.seed)
        if layout == "split":
            listed = _move_to_splits(listed, settings)
        if layout == "tars":
            packing.write_tars(settings.out, listed, settings.pack)
        else:
            _write_files(listed, settings.out)
        ledger.finish()
    log.info("%s", dataset.licence)


# --- the archive ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_archive(name: str, dataset: Dataset, source: str, scratch: str) -> Iterator[str]:
    """Yield the checked archive: in its place, or downloaded, and then removed after its use."""
    by_http = source.startswith(("http://", "https://"))
    if not by_http and not storage.is_file(source):
        raise FileNotFoundError(f"No such file: {source}. Check `source`.")
    if not by_http and storage.is_local(source):
        archive = Path(storage.absolute(source))
        _check_archive(archive, dataset)
        yield str(archive)
        return
    folder = Path(scratch or Path.home() / ".cache" / "dtl")
    folder.mkdir(parents=True, exist_ok=True)
    # One file per source, so that none begins from one source and goes on from another.
    tag = hashlib.sha256(f"{source} {dataset.md5}".encode()).hexdigest()[:8]
    archive = folder / f"{name}-{tag}.tar"
    if not archive.exists():
        partial = archive.with_suffix(".tar.partial")
        _download(source, partial, _open_http if by_http else _open_file, dataset.n_bytes)
        try:
            _check_archive(partial, dataset)
        except UserError:
            partial.unlink()
            raise
        partial.rename(archive)
    yield str(archive)
    archive.unlink()


Open = Callable[[str, int], tuple[IO[bytes], int, int | None]]
"""Opens a source at an offset; returns the stream, its real offset, and the whole size or None."""


def _download(source: str, partial: Path, open_at: Open, expected_bytes: int) -> None:
    """Download into a file, from where it ends; reconnect when the connection breaks."""
    failures, most = 0, partial.stat().st_size if partial.exists() else 0
    with track("download", expected_bytes >> 20, "MiB") as advance:
        advance(most >> 20)
        while True:
            have = partial.stat().st_size if partial.exists() else 0
            try:
                stream, start, n_bytes = open_at(source, have)
                with (
                    storage.naming_full(str(partial)),
                    stream,
                    partial.open("r+b" if have else "wb") as file,
                ):
                    _check_size(source, n_bytes, expected_bytes)
                    file.seek(start)
                    file.truncate()
                    while block := stream.read(_BLOCK_BYTES):
                        file.write(block)
                        if (now := file.tell()) > most:
                            advance((now >> 20) - (most >> 20))
                            failures, most = 0, now
                    if n_bytes is None or file.tell() == n_bytes:
                        return
                    problem: Exception = OSError(f"it ended after {file.tell()} of {n_bytes} bytes")
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416 and have:
                    if error.headers.get("Content-Range") == f"bytes */{have}":
                        return
                    partial.unlink()  # longer than the source: of another archive
                    continue
                if error.code < 500 and error.code not in (408, 429):
                    raise OSError(f"{source}: {error}. Check `source`.") from error
                problem = error
            except storage.FullError:
                raise
            except (OSError, http.client.HTTPException) as error:
                problem = error
            failures += 1
            if failures == _ATTEMPTS:
                raise OSError(
                    f"{source} cannot be downloaded: {problem}. What came is kept in {partial}; "
                    "the same command goes on. Without internet here, bring the archive by other "
                    "means and name it in `source`."
                ) from problem
            log.warning("%s: %s; trying again", source, problem)
            time.sleep(_PAUSE_S * 2 ** (failures - 1))


def _open_http(url: str, start: int) -> tuple[IO[bytes], int, int | None]:
    request = urllib.request.Request(url, headers={"User-Agent": "dtl"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    # "bytes 100-999/1000"; a server without ranges answers 200 and sends the whole file.
    ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status == 206 and ranged:
        return response, int(ranged[1]), int(ranged[2])
    length = response.headers.get("Content-Length")
    return response, 0, None if length is None else int(length)


def _open_file(url: str, start: int) -> tuple[IO[bytes], int, int | None]:
    n_bytes = storage.size(url)
    start = min(start, n_bytes)
    return storage.open_at(url, start), start, n_bytes


def _check_archive(archive: Path, dataset: Dataset) -> None:
    _check_size(str(archive), archive.stat().st_size, dataset.n_bytes)
    if dataset.md5 == "none":
        return
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != dataset.md5:
        raise UserError(
            f"The archive has the MD5 {md5} instead of {dataset.md5}: it is damaged, or another "
            "one. Try again, or give its checksum in `md5`."
        )


def _check_size(source: str, n_bytes: int | None, expected_bytes: int) -> None:
    if expected_bytes and n_bytes not in (None, expected_bytes):
        raise UserError(
            f"{source} has {n_bytes} bytes, the official archive has {expected_bytes}. For another "
            "archive give its checksum in `md5`, or none."
        )


# --- what is in it -------------------------------------------------------------------------------


def _list_archive(archive: str, dataset: Dataset, seed: int) -> ImageList:
    listed = listing.list_images(ImagesConfig(url=archive), seed, keep_order=False)
    known = np.array([re.fullmatch(dataset.image, str(path)) is not None for path in listed.path])
    if not known.any():
        raise UserError(f"{archive} has no image of the data set. Check `source`.")
    left_out = [(path.removeprefix(f"{Path(archive).name}/"), why) for path, why in listed.left_out]
    left_out += [(str(path), "no image of the data set") for path in listed.path[~known]]
    if left_out:
        lines = "\n  ".join(f"{path}: {why}" for path, why in sorted(left_out))
        log.info("%d members of the archive are left out:\n  %s", len(left_out), lines)
    return listed.take(known)


def _move_to_splits(listed: ImageList, settings: Config) -> ImageList:
    """Return the same images, with paths in folders of their splits."""
    with storage.Reader(tars.locate_listed(listed)) as reader:
        hashes = [formats.hash_content(reader.read(row)) for row in range(len(listed))]
    rows = split.assign_splits(
        listed, settings.split, settings.seed, content_hash=np.array(hashes, np.uint64)
    )
    kept = replace(listed, given_split=rows).take(rows != NO_SPLIT)
    path = [f"{SPLITS[k]}/{path}" for k, path in zip(kept.given_split, kept.path, strict=True)]
    log.info("split: %s", split.describe(rows))
    return replace(kept, path=np.array(path, np.dtypes.StringDType()))


# --- writing -------------------------------------------------------------------------------------


def _write_files(listed: ImageList, url: str) -> None:
    written = {file.path: file.n_bytes for file in storage.walk(url)}
    wanted = zip(listed.path.tolist(), listed.size_bytes.tolist(), strict=True)
    pending = [row for row, (path, size) in enumerate(wanted) if written.get(path) != size]
    files = tars.locate_listed(listed)

    with (
        storage.Reader([files[row] for row in pending]) as reader,
        ThreadPoolExecutor(_WRITERS) as pool,
        track("writing", len(pending), "images") as advance,
    ):

        def write(index: int) -> None:
            data = reader.read(index)
            storage.write_bytes(storage.join(url, str(listed.path[pending[index]])), data)

        for _ in read_ahead(pool, write, range(len(pending)), 4 * _WRITERS):
            advance(1)
