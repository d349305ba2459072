"""Shards: the rows that each replica trains on, and the order in which it takes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtl.features.store import FeatureStore
from dtl.head.averaging import Moments
from dtl.head.softmax import Rows
from dtl.images.values import TRAIN, VALIDATION
from dtl.training.streaming import StoredFeatures, standardise


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows that one replica trains on, and those that it validates on, standardised.

    Parameters
    ----------
    index : int
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
        """What to take the features of these batches from, in this order.

        The array; or, where the features stay in the store, what reads ahead.
        """
        return (
            self.features.ahead(batches)
            if isinstance(self.features, StoredFeatures)
            else self.features
        )

    def chunks(self) -> Iterator[tuple[NDArray[np.intp], int]]:
        """The rows of each chunk, and how many of them, the first ones, are training rows.

        What is summed by these blocks has the same bits wherever the features are.
        """
        validation = self.validation_rows or (len(self.labels) - self.n_train,)
        start, then = 0, self.n_train
        for n_train, n in itertools.zip_longest(self.chunk_rows, validation, fillvalue=0):
            if n_train or n:
                rows = np.r_[start : start + n_train, then : then + n].astype(np.intp)
                yield rows, n_train
            start, then = start + n_train, then + n

    def order(self, seed: int, epoch: int) -> NDArray[np.intp]:
        """The training rows in an epoch's order: chunks shuffled, and rows within each.

        Rows were shuffled over all chunks when they were listed, so this is as good as shuffling
        all, and features can be read chunk by chunk.
        """
        rng = np.random.default_rng([seed, self.index, epoch])
        starts = np.concatenate([[0], np.cumsum(self.chunk_rows)])
        return np.concatenate(
            [
                starts[c] + rng.permutation(self.chunk_rows[c])
                for c in rng.permutation(len(self.chunk_rows))
            ]
        ).astype(np.intp)


def chunk_moments(store: FeatureStore, layer: str, chunk: int) -> Moments:
    """Moments of a chunk's training rows.

    Raises
    ------
    ValueError
        If a feature of the chunk is NaN or infinite.
    """
    features = store.read(layer, chunk)
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(
            f"Features must be finite. Received: NaN or infinity in chunk {chunk}, at "
            f"{store.read('path', chunk)[rows[0]]}. {_mend(store, layer)}"
        )
    return Moments.of(features[store.read("split", chunk) == TRAIN])


def _mend(store: FeatureStore, layer: str) -> str:
    """What makes other features; with the settings as they are, they would be found done."""
    wider = ["--features.dtype float32"] if store.dtype(layer) == np.float16 else []
    if store.fingerprint.get("precision", "float32") != "float32":
        wider.append("--features.precision float32")
    if wider:
        return f"Compute them again with --overwrite {' '.join(wider)}."
    return (
        f"They are float32 already: check the network's weights, then remove {store.url}, or "
        "choose another --out, and compute them again."
    )


def load_group(
    store: FeatureStore,
    layer: str,
    indices: range,
    n_shards: int,
    moments: Moments,
    features_in: str = "memory",
) -> list[Shard]:
    """Some of a store's shards; each has every `n_shards`-th chunk, from its index on."""
    return [
        load_shard(store, layer, i, range(i, store.n_chunks, n_shards), moments, features_in)
        for i in indices
    ]


def load_shard(
    store: FeatureStore,
    layer: str,
    index: int,
    chunks: range,
    moments: Moments,
    features_in: str = "memory",
) -> Shard:
    """Read and standardise the rows of a shard's chunks.

    With `features_in` ``store``, the features are left there until a batch asks for them.
    """
    mean, scale = moments.mean.astype(np.float32), moments.scale()
    split, labels = store.read("split"), store.read("label")
    kept = {
        part: [np.flatnonzero(split[store.rows(chunk)] == part) for chunk in chunks]
        for part in (TRAIN, VALIDATION)
    }
    chunk_rows, validation_rows = (tuple(len(rows) for rows in kept[part]) for part in kept)
    row = np.concatenate(kept[TRAIN] + kept[VALIDATION])
    chunk_of = np.repeat([*chunks, *chunks], chunk_rows + validation_rows)
    label = labels[chunk_of * store.chunk_images + row].astype(np.int32)
    features: NDArray[np.float32] | StoredFeatures
    if features_in == "store":
        features = StoredFeatures(
            store, layer, chunk_of.astype(np.int32), row.astype(np.int32), mean, scale
        )
    else:
        features = np.empty((len(row), len(mean)), np.float32)
        for chunk in chunks:
            here = chunk_of == chunk
            features[here] = standardise(store.read(layer, chunk), mean, scale)[row[here]]
    return Shard(index, features, label, chunk_rows, validation_rows)


def local_batches(
    shard: Shard, first: int, n_steps: int, batch_size: int, seed: int
) -> Iterator[NDArray[np.intp]]:
    """The rows of a shard's steps from the step `first` on, over the epochs' ends."""
    steps_per_epoch = math.ceil(shard.n_train / batch_size)
    order, epoch = np.empty(0, np.intp), -1
    for step in range(first, first + n_steps):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = shard.order(seed, epoch)
        start = step % steps_per_epoch * batch_size
        yield order[start : start + batch_size]
