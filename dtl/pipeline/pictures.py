"""Pictures of pages, read where the photographs lie."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dtl import config, storage
from dtl.features.store import FeatureStore
from dtl.images.decoding import formats
from dtl.storage import Extent

log = logging.getLogger(__name__)

_READERS = 8
"""Pictures that are read at the same time: they wait for the storage."""


def read_pictures(
    url: str,
    store: FeatureStore,
    paths: Collection[str],
    max_pixels: int,
    *,
    page: str = "report",
    side: int,
) -> dict[str, bytes]:
    """Read images, from `url` on, as small JPEGs by path; warn if some are gone.

    Parameters
    ----------
    page : str
        What the warning says that they are missing from.
    side : int
        Pixels of the longer side.
    """
    files = locate_pictures(url, store, paths)
    return make_thumbnails(files, max_pixels, page=page, side=side)


def locate_pictures(
    url: str, store: FeatureStore, paths: Collection[str]
) -> dict[str, str | Extent]:
    """Return the places of images by their paths, from `url` on."""
    root, tar_names = locate_images(url, store), store.attrs.get("shards", [])
    files: dict[str, str | Extent] = {path: storage.join(root, path) for path in paths}
    if tar_names:
        all_paths = store.read("path")
        rows = np.array([row for row, path in enumerate(all_paths) if path in files], np.intp)
        for chunk, at, within in store.by_chunk(rows):
            places = store.files(root, chunk)
            named = zip(map(str, all_paths[rows[at]]), within, strict=True)
            files |= {path: places[row] for path, row in named}
    return files


def make_thumbnails(
    files: Mapping[str, str | Extent], max_pixels: int, *, page: str, side: int
) -> dict[str, bytes]:
    """Read images as small JPEGs, as `read_pictures` does, from their places by name."""

    def read(file: str | Extent) -> bytes | str:
        try:
            return formats.thumbnail(storage.read_file(file), side, max_pixels=max_pixels)
        except (OSError, ValueError) as error:  # they may have moved, or changed, since
            return str(error)

    with ThreadPoolExecutor(_READERS) as pool:
        read_all = dict(zip(files, pool.map(read, files.values()), strict=True))
    problems = [f"{path}: {found}" for path, found in read_all.items() if isinstance(found, str)]
    if problems:
        log.warning(
            "The %s lacks the pictures of %d of %d images, such as %s",
            page, len(problems), len(files), problems[0],
        )  # fmt: skip
    return {path: found for path, found in read_all.items() if isinstance(found, bytes)}


def locate_images(url: str, store: FeatureStore) -> str:
    """Return where the paths of a store's images begin, by `images.url`, which may be empty."""
    url, listed = url or str(store.attrs["root"]), str(store.attrs["root"])
    tar_names = store.attrs.get("shards", [])
    if tar_names == [storage.base_name(url)]:  # it is the tar itself
        url = url.rstrip("/").removesuffix(f"/{tar_names[0]}")
    return find_root(url, listed)


def find_root(given: str, listed: str) -> str:
    """Return where the paths begin: the photographs may have moved since they were listed.

    Their listed place may be a folder in the given one, and lacks its password.

    Examples
    --------
    >>> find_root("/photos", "/photos/archive"), find_root("/moved", "/photos")
    ('/photos/archive', '/moved')
    >>> find_root("ftp://me:pw@host/a", "ftp://me:***@host/a/b")
    'ftp://me:pw@host/a/b'
    """
    given = given.rstrip("/")
    hidden = config.hide(given)
    return given + listed[len(hidden) :] if f"{listed}/".startswith(f"{hidden}/") else given


def choose_rows(store: FeatureStore, rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Choose some of the rows, of chunks drawn at random, so that few chunks are read."""
    if len(rows) <= most:
        return rows
    chunk_of = rows // store.chunk_images
    order = np.random.default_rng(0).permutation(np.unique(chunk_of))
    place = np.empty(store.n_chunks, np.intp)
    place[order] = np.arange(len(order))
    drawn = rows[np.argsort(place[chunk_of], kind="stable")]
    return np.sort(drawn[:most])
