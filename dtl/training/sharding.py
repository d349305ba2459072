"""Shards: the rows that each replica trains on, and their order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.features.streaming import StoredFeatures
from dtl.head.scaling import Moments, Scaling, scale_rows
from dtl.head.softmax import Rows
from dtl.images.values import TRAIN, VALIDATION

Labelled = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Features (n, n_features) and labels (n,) of rows."""

_BLOCK_ROWS, _BLOCK_VALUES = 4096, 1 << 24
"""Rows of a product, or features of all its rows where these are many, if chunks are smaller."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows that one replica trains on, and those that it validates on, scaled.

    Parameters
    ----------
    features : (n, n_features) float32, or StoredFeatures
        Training rows first, chunk after chunk, then validation rows, chunk after chunk.
    labels : (n,) int32
    chunk_rows : tuple of int
        Training rows of each chunk.
    validation_rows : tuple of int
        Validation rows of each chunk; empty: all that follow the training rows are of one.
    """

    index: int
    features: NDArray[np.float32] | StoredFeatures
    labels: NDArray[np.int32]
    chunk_rows: tuple[int, ...]
    validation_rows: tuple[int, ...] = ()

    @property
    def n_train(self) -> int:
        """Training rows."""
        return sum(self.chunk_rows)

    def rows(self, batches: Sequence[NDArray[np.intp]]) -> Rows:
        """Return the source of the features of these batches, in this order.

        It is the array; or, where the features stay in the store, a reader that reads ahead.
        """
        features = self.features
        return features.ahead(batches) if isinstance(features, StoredFeatures) else features

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield the training rows and the validation rows of neighbouring chunks.

        Chunks are put together until a block has some thousand rows: products of 1024 rows, and
        adding them up, take 7 % longer than of 4096. Sums by these blocks have the same bits
        wherever the features are.
        """
        enough = min(_BLOCK_ROWS, _BLOCK_VALUES // self.features.shape[1])
        validation = self.validation_rows or (len(self.labels) - self.n_train,)
        train_end, end = 0, self.n_train
        first, first_validation = train_end, end
        for n_train, n in itertools.zip_longest(self.chunk_rows, validation, fillvalue=0):
            train_end, end = train_end + n_train, end + n
            if train_end - first + end - first_validation >= enough:
                yield slice(first, train_end), slice(first_validation, end)
                first, first_validation = train_end, end
        if train_end > first or end > first_validation:
            yield slice(first, train_end), slice(first_validation, end)

    def scan(self) -> Iterator[tuple[Labelled, Labelled]]:
        """Yield features and labels of training and of validation rows, block by block."""
        blocks = list(self.blocks())
        source = self.features
        if isinstance(source, np.ndarray):
            for parts in blocks:
                # Features from another worker may begin at any byte. Of such an operand NumPy makes
                # a copy in another order, and the product has other last bits.
                train, validation = (
                    (np.require(source[part], requirements="A"), self.labels[part])
                    for part in parts
                )
                yield train, validation
            return
        rows = [np.r_[train, validation].astype(np.intp) for train, validation in blocks]
        reader = self.rows(rows)
        for chosen, (part, _) in zip(rows, blocks, strict=True):
            n, features, labels = part.stop - part.start, reader[chosen], self.labels[chosen]
            yield (features[:n], labels[:n]), (features[n:], labels[n:])

    def order(self, seed: int, epoch: int) -> NDArray[np.intp]:
        """Return the training rows in an epoch's order: chunks shuffled, and rows within each.

        Rows were shuffled over all chunks when they were listed. So this is as good as shuffling
        all, and lets features be read chunk by chunk.
        """
        rng = np.random.default_rng([seed, self.index, epoch])
        first_rows = np.concatenate([[0], np.cumsum(self.chunk_rows)])
        chunks = rng.permutation(len(self.chunk_rows))
        order = [first_rows[c] + rng.permutation(self.chunk_rows[c]) for c in chunks]
        return np.concatenate(order).astype(np.intp)


def chunk_moments(
    chunk: int,
    store: FeatureStore,
    layer: str,
    normalize: str,
    split: NDArray[np.int8] | None = None,
) -> Moments:
    """Return the moments of a chunk's training rows, which are scaled as `normalize` says.

    NaN and infinity are refused in any row. `split` is of all rows, if not as stored.
    """
    features = store.read(layer, chunk)
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise UserError(
            f"Features must be finite. Received: NaN or infinity in chunk {chunk}, at "
            f"{store.read('path', chunk)[rows[0]]}. {_advise(store, layer)}"
        )
    of_chunk = store.read_split(chunk) if split is None else split[store.rows(chunk)]
    return Moments.of(scale_rows(features[of_chunk == TRAIN], normalize))


def _advise(store: FeatureStore, layer: str) -> str:
    """Say what makes other features; with the same settings they would be found done."""
    wider = ["`features.dtype`"] if store.dtype(layer) == np.float16 else []
    if store.fingerprint.get("precision", "float32") != "float32":
        wider.append("`features.precision`")
    if wider:
        return f"Set {' and '.join(wider)} to float32 and `overwrite`, and compute them again."
    return (
        f"They are float32 already: check the network's weights, then remove {store.url}, or "
        "choose another `out`, and compute them again."
    )


def load_group(
    store: FeatureStore,
    layer: str,
    indices: range,
    n_shards: int,
    scaling: Scaling,
    features_in: str = "memory",
    split: NDArray[np.int8] | None = None,
) -> list[Shard]:
    """Load some of a store's shards; each has every `n_shards`-th chunk, from its index on.

    `split` is of all rows, if not as stored.
    """
    split = store.read_split() if split is None else split
    columns = split, store.read("label")  # once: 100,000 chunks take seconds
    return [
        load_shard(store, layer, range(i, store.n_chunks, n_shards), scaling, columns, features_in)
        for i in indices
    ]


def load_shard(
    store: FeatureStore,
    layer: str,
    chunks: range,
    scaling: Scaling,
    columns: tuple[NDArray[np.int8], NDArray[np.int32]],
    features_in: str = "memory",
) -> Shard:
    """Read and scale the rows of a shard's chunks, of which the first is the shard's index.

    `columns` are the split and the label of all rows. With `features_in` ``store``, the features
    are left there until a batch asks for them.
    """
    split, labels = columns
    train_rows, validation_rows = (
        [np.flatnonzero(split[store.rows(chunk)] == part) for chunk in chunks]
        for part in (TRAIN, VALIDATION)
    )
    n_train, n_validation = (tuple(map(len, rows)) for rows in (train_rows, validation_rows))
    row = np.concatenate(train_rows + validation_rows)
    chunk_of = np.repeat([*chunks, *chunks], n_train + n_validation)
    label = labels[chunk_of * store.chunk_images + row].astype(np.int32)
    features: NDArray[np.float32] | StoredFeatures
    if features_in == "store":
        features = StoredFeatures(
            store, layer, chunk_of.astype(np.int32), row.astype(np.int32), scaling
        )
    else:
        features = np.empty((len(row), len(scaling.mean)), np.float32)
        ends = np.cumsum(np.add(n_train, n_validation))
        by_chunk = np.split(np.argsort(chunk_of, kind="stable"), ends[:-1])
        for chunk, chosen in zip(chunks, by_chunk, strict=True):
            features[chosen] = scaling.apply(store.read(layer, chunk))[row[chosen]]
    return Shard(chunks.start, features, label, n_train, n_validation)


def local_batches(
    shard: Shard, first: int, n_steps: int, batch_size: int, seed: int
) -> Iterator[NDArray[np.intp]]:
    """Yield the rows of a shard's steps from the step `first` on, over the epochs' ends."""
    steps_per_epoch = math.ceil(shard.n_train / batch_size)
    order, epoch = np.empty(0, np.intp), -1
    for step in range(first, first + n_steps):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = shard.order(seed, epoch)
        at = step % steps_per_epoch * batch_size
        yield order[at : at + batch_size]
