"""Exact nearest neighbours of a store's rows: block against block, on the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.chunks import map_chunks
from dtl.cluster.progress import track
from dtl.cluster.spread import Session
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.scaling import Moments, Scaling, merge_moments, scale_rows
from dtl.neighbours.nearest import Block, Nearest, compare, compare_both

NORMALIZE = "sqrt-l2"
"""Scaling of features whose cosine is taken, unless another is asked for."""

_BLOCK_BYTES = 128 << 20
_MOST_ROWS, _LEAST_ROWS = 1 << 15, 1 << 12
_BLOCKS = 4
"""Limits of a block: a task holds two. Of few rows there are some blocks all the same."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest neighbours of rows of a store, by cosine.

    Parameters
    ----------
    rows : (n,) int64
        Rows of the store, which rise.
    index : (n, k) int64
        Rows of the store that are nearest, never the row itself; of equal cosines the lower row
        comes first. -1 where there are fewer than k.
    cosine : (n, k) float32
        Theirs, as it is rounded: it may exceed 1 by some ulps. -inf where there are fewer.
    """

    rows: NDArray[np.int64]
    index: NDArray[np.int64]
    cosine: NDArray[np.float32]


def find_neighbours(
    store: FeatureStore,
    layer: str,
    client: Client,
    k: int = 10,
    *,
    rows: NDArray[np.bool_] | None = None,
    among: NDArray[np.bool_] | None = None,
    scaling: Scaling | None = None,
) -> Neighbours:
    """Find the exact `k` nearest neighbours of rows of a store.

    Blocks of rows, some 10,000 each, are multiplied with each other. A worker holds two blocks per
    thread; the driver holds the result, of 12 bytes for each neighbour. All rows with all take
    half of the products, for each is of two blocks.

    Parameters
    ----------
    layer : str
    k : int
        At least 1.
    rows : (n_images,) bool, optional
        Rows to find neighbours of; only those with features count. None: all.
    among : (n_images,) bool, optional
        Rows that may be neighbours; None: those of `rows`.
    scaling : Scaling, optional
        Of the features, before each row gets unit length; None: `fit_scaling` of `among`.

    Raises
    ------
    UserError
        If a feature of such a row is NaN or infinite.

    Notes
    -----
    The result has the same bits on any number of workers: which blocks there are follows from the
    store, and what is found does not depend on their order. A task gets the cosines that the last
    of the nearest has so far, and returns only pairs that reach them.
    """
    usable = store.read_usable()
    wanted = usable if rows is None else usable & rows
    candidates = wanted if among is None else usable & among
    if scaling is None:
        scaling = fit_scaling(store, layer, client, candidates)
    numbers = np.flatnonzero(wanted)
    blocks = _cut(store, layer, numbers)
    others = _cut(store, layer, np.flatnonzero(candidates)) if among is not None else None
    best = _search(client, _Source(store, layer, scaling, k), numbers, blocks, others)
    return Neighbours(numbers, best.index, best.cosine)


def find_nearest(
    queries: NDArray[np.floating],
    store: FeatureStore,
    layer: str,
    client: Client,
    k: int = 10,
    *,
    among: NDArray[np.bool_] | None = None,
    scaling: Scaling | None = None,
) -> Neighbours:
    """Find the exact `k` nearest rows of a store to features that need not be in it.

    Parameters
    ----------
    queries : (n, n_features) float
        As the network gives them; few enough to be sent to every worker.
    among, scaling
        As `find_neighbours` takes them; None: all rows with features.

    Returns
    -------
    Neighbours
        `rows` are those of the queries.
    """
    usable = store.read_usable()
    usable = usable if among is None else usable & among
    if scaling is None:
        scaling = fit_scaling(store, layer, client, usable)
    unit = scale_to_unit(queries, scaling, "queries")
    numbers = np.arange(len(unit))
    others = _cut(store, layer, np.flatnonzero(usable))
    source = _Source(store, layer, scaling, k, unit)
    best = _search(client, source, numbers, [numbers] if len(unit) else [], others)
    return Neighbours(numbers, best.index, best.cosine)


def fit_scaling(
    store: FeatureStore,
    layer: str,
    client: Client,
    rows: NDArray[np.bool_],
    normalize: str = NORMALIZE,
) -> Scaling:
    """Return the scaling of features whose cosine is taken, fitted to rows (n_images,) bool.

    ``plain`` leaves features as they are; the others are `head.scaling.NORMALISATIONS`, which take
    their mean away.
    """
    n_features = store.n_features(layer)
    if normalize == "plain":
        return Scaling("l2", np.zeros(n_features), np.ones(n_features, np.float32))
    session = Session(client)
    chosen = session.submit_value(rows, "rows")
    moments = session.map_reduce(
        _chunk_moments, store.n_chunks, store, layer, chosen, normalize,
        merge=merge_moments, name="moments",
    )  # fmt: skip
    return Scaling.fit(session.result(moments), normalize)


def scale_to_unit(
    features: NDArray[np.floating], scaling: Scaling, what: str
) -> NDArray[np.float32]:
    """Scale features (n, n_features), then each row to length 1; a row of zeros stays one.

    Examples
    --------
    >>> plain = Scaling("l2", np.zeros(2), np.ones(2, np.float32))
    >>> scale_to_unit(np.array([[3.0, 4.0], [0.0, 0.0]]), plain, "rows")
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UserError(
            f"Features must be finite. Received: NaN or infinity in {(~finite).sum()} of "
            f"{len(finite)} {what}, first in the row {np.flatnonzero(~finite)[0]}. "
            "Compute these features again."
        )
    unit: NDArray[np.float32] = scale_rows(scaling.apply(features), "l2")
    return unit


def read_units(
    store: FeatureStore, layer: str, rows: NDArray[np.int64], scaling: Scaling
) -> NDArray[np.float32]:
    """Read features (n, n_features) of rows (n,) as `scale_to_unit` makes them, chunk by chunk."""
    unit = np.empty((len(rows), store.n_features(layer)), np.float32)
    for chunk, at, within in store.by_chunk(rows):
        what = f"rows of chunk {chunk} of {store.url}"
        unit[at] = scale_to_unit(store.read(layer, chunk)[within], scaling, what)
    return unit


def _chunk_moments(
    chunk: int, store: FeatureStore, layer: str, rows: NDArray[np.bool_], normalize: str
) -> Moments:
    features = store.read(layer, chunk)[rows[store.rows(chunk)]]
    if not np.isfinite(features).all():
        raise UserError(
            f"Features must be finite. Received: NaN or infinity in chunk {chunk} of {store.url}. "
            "Compute the features again."
        )
    return Moments.of(scale_rows(features, normalize))


# --- blocks --------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Where a task's rows come from, and how many neighbours they get."""

    store: FeatureStore
    layer: str
    scaling: Scaling
    k: int
    queries: NDArray[np.float32] | None = None

    def read(self, rows: NDArray[np.int64], least: NDArray[np.float32]) -> Block:
        """Read rows, which rise, as a block."""
        return Block(read_units(self.store, self.layer, rows, self.scaling), rows, least)


@dataclass(frozen=True, eq=False, repr=False)
class _Tile:
    """Two blocks, as rows of the store, and the cosines that neighbours of their rows need.

    `both` says that the others look for neighbours, too.
    """

    at: tuple[int, int]
    rows: NDArray[np.int64]
    others: NDArray[np.int64]
    least: NDArray[np.float32]
    least_of_others: NDArray[np.float32]
    both: bool

    def __repr__(self) -> str:
        return f"blocks {self.at[0]} and {self.at[1]}"


def _search(
    client: Client,
    source: _Source,
    numbers: NDArray[np.int64],
    blocks: Sequence[NDArray[np.int64]],
    others: Sequence[NDArray[np.int64]] | None,
) -> Nearest:
    """Compare blocks, whose rows are `numbers`, with others, or all with each other."""
    best, both = Nearest(len(numbers), source.k), others is None
    others = blocks if others is None else others
    first = np.cumsum([0, *map(len, blocks)])
    results = [slice(first[i], first[i + 1]) for i in range(len(blocks))]
    n = len(others)
    if both:  # the diagonal first: then all rows have neighbours, and further ones must be nearer
        pairs = [(i, i + d) for d in range(n) for i in range(n - d)]
    else:
        pairs = [(i, (i + d) % n) for d in range(n) for i in range(len(blocks))]

    def list_tiles() -> Iterator[_Tile]:
        for i, j in pairs:  # each when it is sent, with what is known by then
            rows, theirs = blocks[i], others[j]
            least = best.least[results[i]].copy()
            bound = best.least[results[j]].copy() if both else np.empty(0, np.float32)
            yield _Tile((i, j), rows, theirs, least, bound, both)

    done = map_chunks(client, _compare, list_tiles(), source=source, describe=_describe)
    with track("neighbours", len(pairs), "pairs of blocks") as advance:
        for at, *founds in done:
            for block, found in zip(at, founds, strict=False):
                best.add(found._replace(row=found.row + np.int32(first[block])))
            advance(1)
    return best


def _describe(tile: _Tile) -> str:
    return f"It compared {len(tile.rows)} rows of features with {len(tile.others)}."


def _compare(tile: _Tile, *, source: _Source) -> tuple[Any, ...]:
    """Compare two blocks, on a worker; return their numbers, and what each has found."""
    rows = tile.rows
    if source.queries is None:
        block = source.read(rows, tile.least)
    else:  # they have no number in the store
        block = Block(source.queries, np.full(len(rows), -1), tile.least)
    same = tile.both and tile.at[0] == tile.at[1]
    other = None if same else source.read(tile.others, tile.least_of_others)
    with blas.one_blas_thread():
        if tile.both:
            found = compare_both(block, other, source.k)
            return tile.at, *(f for f in found if f is not None)
        return tile.at, compare(block, other or block, source.k)


def _cut(store: FeatureStore, layer: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut rows into blocks of whole chunks."""
    size = _BLOCK_BYTES // (4 * store.n_features(layer))
    size = min(size, _MOST_ROWS, max(_LEAST_ROWS, -(-len(rows) // _BLOCKS)))
    chunks = max(1, size // store.chunk_images)
    block = rows // (chunks * store.chunk_images)
    return np.split(rows, np.flatnonzero(np.diff(block)) + 1) if len(rows) else []
