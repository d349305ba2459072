"""Near-duplicates: images that show the same picture, cropped, mirrored, brighter or saved again.

Features find who may be a twin, and pixels decide. Cosine alone does not tell a cropped copy from
another photograph of the same motorcycle: of Caltech-256's, 5 % of copies cropped to 90 % have a
cosine below 0.87, which 100 pairs of different photographs exceed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dtl.checking import twins
from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.config import ImagesConfig
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.images.decoding.reading import describe_costliest, open_images
from dtl.images.values import NO_SPLIT, TRAIN
from dtl.neighbours.novelty import take_evenly
from dtl.neighbours.search import Neighbours
from dtl.storage import Extent

log = logging.getLogger(__name__)

_N_COPIED = 256
"""Images of which copies are made, to see how alike these are."""
_COPY_SIDE = 256
_COPY_SHARE = 0.9
_MISSED = 0.02
"""Share of the copies made that the threshold may miss."""
_LEAST_THRESHOLD, _MOST_THRESHOLD = 0.92, 0.97
"""Where copies of an image without structure are not alike, anything would be a copy of it."""

_LEAST_PAIRS, _PAIRS_SHARE = 500, 0.01
"""Pairs that are compared before it is asked again whether to go on: of many images, so many."""
_LEAST_CONFIRMED = 0.01
"""Share of them that are twins, below which nobody looks further."""
_LEAST_COSINE = 0.3

_PAIRS_PER_TASK = 32
_READ_AHEAD = 16


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Pairs of images that show the same picture.

    Parameters
    ----------
    a, b : (n_pairs,) int64
        Rows of the store, ``a < b``; the most alike first.
    likeness : (n_pairs,) float32
        Of the pixels (`twins.measure_likeness`); 1 for identical files.
    cosine : (n_pairs,) float32
        Of the features; 1 for identical files.
    identical : (n_pairs,) bool
        The files have the same bytes. Of n of them there are n - 1 pairs, each with the first.
    group : (n_images,) int64
        Lowest row of those that a row is linked with by pairs: its own if there is none.
    threshold : float
        Likeness of twins.
    near_a, near_b, near_likeness : (n_near,)
        Other pairs, a bit less alike than twins are: some show the same picture, most do not.
    least_cosine : float
        Pairs of less were compared only if one is the nearest of the other.
    compared : tuple of (cosine, n_compared, n_twins)
        How many pairs were compared down to a cosine, since the entry before, and were twins.
    compared_nearest : (n_compared, n_twins)
        The same of pairs of less, of which one is the nearest of the other.
    n_copies : int
        Copies that were made for the threshold; 0: there was none to make.
    n_unread : int
        Pairs of which an image cannot be read any more.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    likeness: NDArray[np.float32]
    cosine: NDArray[np.float32]
    identical: NDArray[np.bool_]
    group: NDArray[np.int64]
    threshold: float
    near_a: NDArray[np.int64]
    near_b: NDArray[np.int64]
    near_likeness: NDArray[np.float32]
    least_cosine: float
    compared: tuple[tuple[float, int, int], ...]
    compared_nearest: tuple[int, int]
    n_copies: int
    n_unread: int

    @property
    def reason(self) -> str:
        """Say where the thresholds are from."""
        if not self.compared:
            return "No two images are alike enough in their features to be compared by pixels."
        made = (
            f"{1 - _MISSED:.0%} of {self.n_copies} copies that were made of these images (90 % of "
            f"each side, mirrored, brighter or darker) are at least so like their originals"
        )
        bounds = {_LEAST_THRESHOLD: "the least that counts", _MOST_THRESHOLD: "enough"}
        why = bounds.get(self.threshold, made)
        cosine, n, n_twins = self.compared[-1]
        return (
            f"Likeness of pixels from {self.threshold:.3f} on: {why}. Pairs were compared from "
            f"most alike features on, down to a cosine of {cosine:.2f}: of the last {n:,}, "
            f"{n_twins:,} were twins. Each image was compared with its nearest, too, if that is "
            f"alike at all: that is {self.compared_nearest[0]:,} pairs more, of which "
            f"{self.compared_nearest[1]:,} were."
        )

    def find_leaks(self, split: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Return which pairs (n_pairs,) lie on two sides of a split, one of them in training."""
        a, b = split[self.a], split[self.b]
        one = (a != b) & ((a == TRAIN) | (b == TRAIN))
        found: NDArray[np.bool_] = one & (a != NO_SPLIT) & (b != NO_SPLIT)
        return found

    def find_leaked(self, split: NDArray[np.int8]) -> NDArray[np.bool_]:
        """Return which rows (n_images,) are held out, and linked with a training image."""
        has_train = np.zeros(len(self.group), bool)
        has_train[self.group[split == TRAIN]] = True
        held_out = (split != TRAIN) & (split != NO_SPLIT)
        leaked: NDArray[np.bool_] = has_train[self.group] & held_out
        return leaked


def find_duplicates(
    store: FeatureStore,
    neighbours: Neighbours,
    client: Client,
    root: str,
    images: ImagesConfig,
) -> Duplicates:
    """Find images that show the same picture, and read again those that may.

    Pairs of neighbours are compared by pixels, from the most alike features on, until hardly any
    of the last ones are twins; then each image with its nearest: a copy that is so bright that much
    of it is white has few features of its original, but more than any other image has. A task reads
    the images of some pairs; the driver sees no pixels.

    Parameters
    ----------
    neighbours : Neighbours
        Of all rows that may be twins; 10 of each are enough for groups of any size.
    root : str
        Where the images lie.
    images : ImagesConfig
        `max_pixels` is read.

    Notes
    -----
    The result follows from the store, its images and the neighbours alone. A copy whose features
    are not among the nearest of its original's is not found.
    """
    rows = neighbours.rows
    usable = np.zeros(store.n_images, bool)
    usable[rows] = True
    content_hash = store.read("content_hash")
    same_a, same_b = _pair_identical(content_hash, rows)
    a, b, cosine, nearest = list_pairs(_drop_identical(neighbours, content_hash))
    keep = cosine >= _LEAST_COSINE
    a, b, cosine, nearest = a[keep], b[keep], cosine[keep], nearest[keep]
    reading = replace(images, resize="stretch")
    scores = _copy_and_compare(store, client, root, reading, usable) if len(a) else np.empty(0)
    threshold = choose_threshold(scores)
    likeness = np.full(len(a), np.nan, np.float32)
    compared: list[tuple[float, int, int]] = []
    size, end = max(_LEAST_PAIRS, int(_PAIRS_SHARE * len(rows))), 0
    while end < len(a):
        pairs = slice(end, min(end + size, len(a)))
        end = pairs.stop
        likeness[pairs] = _compare(store, client, root, reading, a[pairs], b[pairs])
        n_twins = int((likeness[pairs] >= threshold).sum())
        compared.append((float(cosine[end - 1]), end - pairs.start, n_twins))
        if n_twins < _LEAST_CONFIRMED * size:
            break
    further = end + np.flatnonzero(nearest[end:])
    if len(further):
        likeness[further] = _compare(store, client, root, reading, a[further], b[further])
    n_unread = int(np.isnan(likeness[:end]).sum() + np.isnan(likeness[further]).sum())
    if n_unread:
        log.warning("%d pairs were not compared: an image cannot be read any more", n_unread)
    twin = likeness >= threshold
    near = (likeness >= _LEAST_THRESHOLD) & ~twin
    n_same, order = len(same_a), np.lexsort((b[twin], a[twin], -likeness[twin]))
    ones = np.ones(n_same, np.float32)
    all_a = np.concatenate([same_a, a[twin][order]])
    all_b = np.concatenate([same_b, b[twin][order]])
    return Duplicates(
        all_a, all_b,
        np.concatenate([ones, likeness[twin][order]]), np.concatenate([ones, cosine[twin][order]]),
        np.arange(len(all_a)) < n_same, link(all_a, all_b, store.n_images),
        threshold, a[near], b[near], likeness[near],
        compared[-1][0] if compared else 1.0, tuple(compared),
        (len(further), int(twin[further].sum())), len(scores), n_unread,
    )  # fmt: skip


def list_pairs(
    neighbours: Neighbours,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """List each pair of neighbours once: the lower row, the other, cosine, and whether nearest.

    The most alike come first; of equally alike ones, the lower rows. The last value says whether
    one of a pair has no nearer neighbour than the other.
    """
    row, rank = np.nonzero(neighbours.index >= 0)
    one, other = neighbours.rows[row], neighbours.index[row, rank]
    a, b = np.minimum(one, other), np.maximum(one, other)
    cosine = neighbours.cosine[row, rank]
    order = np.lexsort((-cosine, b, a))
    first_rank = np.argmax(neighbours.index >= 0, axis=1)[row] if len(row) else rank
    a, b, cosine, nearest = a[order], b[order], cosine[order], (rank == first_rank)[order]
    first = np.ones(len(a), bool)  # of the two that name a pair
    first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    nearest[:-1] |= nearest[1:] & ~first[1:]
    a, b, cosine, nearest = a[first], b[first], cosine[first], nearest[first]
    order = np.lexsort((b, a, -cosine))
    return a[order], b[order], cosine[order], nearest[order]


def choose_threshold(scores: NDArray[np.floating]) -> float:
    """Return the likeness of twins, by that of copies with their originals.

    Examples
    --------
    >>> choose_threshold(np.linspace(0.93, 0.98, 101))
    0.931
    >>> choose_threshold(np.zeros(0))
    0.97
    """
    if not len(scores):
        return _MOST_THRESHOLD
    found = round(float(np.quantile(scores, _MISSED)), 3)
    return min(max(found, _LEAST_THRESHOLD), _MOST_THRESHOLD)


def link(a: NDArray[np.int64], b: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the lowest row that each of n rows is linked with by pairs.

    Examples
    --------
    >>> link(np.array([1, 2]), np.array([2, 4]), 6)
    array([0, 1, 1, 3, 1, 5])
    """
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    lowest: NDArray[np.int64] = first[inverse].astype(np.int64)
    return lowest


def _pair_identical(
    content_hash: NDArray[np.uint64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair each file with the first of the same content."""
    rows = rows[content_hash[rows] != 0]
    _, first, inverse = np.unique(content_hash[rows], return_index=True, return_inverse=True)
    lowest = rows[first[inverse]]
    later = rows != lowest
    return lowest[later], rows[later]


def _drop_identical(neighbours: Neighbours, content_hash: NDArray[np.uint64]) -> Neighbours:
    """Leave out neighbours whose files have the same bytes: the next one is the nearest then."""
    own = content_hash[neighbours.rows][:, None]
    same = (content_hash[neighbours.index] == own) & (own != 0)
    return replace(neighbours, index=np.where(same, -1, neighbours.index))


# --- pixels --------------------------------------------------------------------------------------


class _Task(NamedTuple):
    """Images, and which of them are compared: their place in the list of files."""

    first: int
    files: Sequence[str | Extent]
    pairs: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"{len(self.files)} images from number {self.first} on"


def _locate(store: FeatureStore, root: str, rows: NDArray[np.int64]) -> dict[int, str | Extent]:
    """Return where the images of rows lie."""
    found: dict[int, str | Extent] = {}
    for chunk, at, within in store.by_chunk(rows):
        files = store.files(root, chunk)
        found |= {int(rows[k]): files[row] for k, row in zip(at, within, strict=True)}
    return found


def _compare(
    store: FeatureStore,
    client: Client,
    root: str,
    images: ImagesConfig,
    a: NDArray[np.int64],
    b: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Compare images by pixels, on the workers; NaN where one cannot be read."""
    order = np.lexsort((b, a))  # an image is read for several of its pairs at once
    places = _locate(store, root, np.unique(np.concatenate([a, b])))

    def list_tasks() -> Iterator[_Task]:
        for start in range(0, len(order), _PAIRS_PER_TASK):
            chosen = order[start : start + _PAIRS_PER_TASK]
            pairs = np.stack([a[chosen], b[chosen]], axis=1)
            rows, inverse = np.unique(pairs, return_inverse=True)
            files = [places[row] for row in rows.tolist()]
            yield _Task(start, files, inverse.reshape(-1, 2))

    likeness = np.empty(len(a), np.float32)
    for start, found in _run(client, _compare_pairs, list_tasks(), images, len(a), "pairs"):
        likeness[order[start : start + len(found)]] = found
    return likeness


def _copy_and_compare(
    store: FeatureStore,
    client: Client,
    root: str,
    images: ImagesConfig,
    usable: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Make copies of some images, on the workers, and return how like the originals they are."""
    rows = np.flatnonzero(take_evenly(usable, _N_COPIED))
    places = _locate(store, root, rows)
    starts, none = range(0, len(rows), _PAIRS_PER_TASK), np.empty((0, 2), np.int64)
    tasks = (
        _Task(s, [places[row] for row in rows[s : s + _PAIRS_PER_TASK].tolist()], none)
        for s in starts
    )
    scores = np.full(len(rows), np.nan, np.float32)
    for start, found in _run(client, _compare_copies, tasks, images, len(rows), "copies"):
        scores[start : start + len(found)] = found
    return scores[np.isfinite(scores)]


def _run(
    client: Client, function: Any, tasks: Iterator[_Task], images: ImagesConfig, n: int, unit: str
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    done = map_chunks(
        client, function, tasks, images=images, describe=lambda task: describe_costliest(task.files)
    )
    with track("twins", n, unit) as advance:
        for start, found in done:
            yield start, found
            advance(len(found))


def _read_grey(
    files: Sequence[str | Extent], side: int, images: ImagesConfig
) -> Mapping[int, twins.Grey]:
    """Read images as grey squares; those that cannot be read are not there."""
    with open_images(files, [(side, side)], images, n_ahead=_READ_AHEAD) as opened:
        return {
            k: twins.make_grey(image.pixels[0]) for k, image in enumerate(opened) if image.pixels
        }


def _compare_pairs(task: _Task, *, images: ImagesConfig) -> tuple[int, NDArray[np.float32]]:
    """Compare pairs of images, on a worker."""
    grey = _read_grey(task.files, twins.SIDE, images)
    likeness = np.full(len(task.pairs), np.nan, np.float32)
    with blas.one_blas_thread():
        for k, (a, b) in enumerate(task.pairs.tolist()):
            if a in grey and b in grey:
                likeness[k] = twins.measure_likeness(grey[a], grey[b])
    return task.first, likeness


def _compare_copies(task: _Task, *, images: ImagesConfig) -> tuple[int, NDArray[np.float32]]:
    """Compare images with cropped, brighter or darker copies, half of them mirrored."""
    grey = _read_grey(task.files, _COPY_SIDE, images)
    likeness = np.full(len(task.files), np.nan, np.float32)
    shrink = twins.resample(_COPY_SIDE, twins.SIDE)
    with blas.one_blas_thread():
        for k, original in grey.items():
            copy = _make_copy(original, np.random.default_rng(task.first + k))
            likeness[k] = twins.measure_likeness(shrink @ original @ shrink.T, copy)
    return task.first, likeness


def _make_copy(original: twins.Grey, rng: np.random.Generator) -> twins.Grey:
    most = math.floor(_COPY_SIDE * (1 - _COPY_SHARE))
    y, x = rng.integers(0, most + 1, 2)
    rows, columns = (twins.resample(_COPY_SIDE, twins.SIDE, _COPY_SHARE, shift) for shift in (y, x))
    brightness = rng.choice(np.array([0.75, 1.0, 1.25], np.float32))
    copy: twins.Grey = rows @ np.minimum(original * brightness, np.float32(255)) @ columns.T
    return copy[:, ::-1] if rng.integers(2) else copy
