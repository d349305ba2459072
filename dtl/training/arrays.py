"""Shards of the rows of Dask and NumPy arrays, for `SoftmaxRegression`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, Future
from numpy.typing import NDArray
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from dtl.cluster.spread import Session, group_shards
from dtl.config import FeaturesConfig, TrainConfig
from dtl.config.errors import UserError
from dtl.head import softmax
from dtl.head.scaling import Moments, Scaling, merge_moments, scale_rows
from dtl.training.sharding import Shard
from dtl.training.spec import MOST_SHARDS, Inputs

_BLOCK_ROWS = FeaturesConfig.chunk_images
_BLOCK_BYTES = 8 * 2**20
"""A NumPy array's blocks are cut as the store's chunks are, and go to the workers in tasks."""


def check_dask_rows(X: da.Array) -> da.Array:
    """Check a Dask array of numbers, and return it in blocks of whole rows."""
    if X.ndim != 2:
        raise UserError(f"X must be (n_rows, n_features). Received: {X.ndim} axes.")
    if X.dtype.kind not in "biuf":
        raise UserError(f"X must hold real numbers. Received: dtype {X.dtype}.")
    if np.isnan(X.shape[1]):
        raise UserError("The number of X's features must be known. Use X.compute_chunk_sizes().")
    return X if X.numblocks[1] == 1 else X.rechunk({1: -1})


def check_finite(rows: NDArray[Any], where: str = "") -> None:
    """Refuse rows with NaN or infinity."""
    if not np.isfinite(rows).all():
        raise UserError(f"Features must be finite. Received: NaN or infinity{where}.")


def compute_blocks(client: Client, X: da.Array, y: Any) -> tuple[list[Future], list[Future]]:
    """Compute the blocks of a Dask array and their labels, on the workers."""
    if y is None:
        raise UserError("y must hold a label for every row of X. Received: None.")
    sizes_known = not np.isnan(X.shape[0])
    if not isinstance(y, da.Array):
        rows = client.compute(_list_blocks(X))
        y = column_or_1d(y, warn=True)
        sizes = X.chunks[0] if sizes_known else client.gather([client.submit(len, r) for r in rows])
        _check_length(sum(sizes), len(y))
        ends = np.cumsum(sizes)
        parts = [y[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return rows, [client.submit(np.asarray, part) for part in parts]
    if y.ndim != 1:
        raise UserError(f"y must be (n_rows,). Received: {y.ndim} axes. Use y.ravel().")
    if sizes_known and not np.isnan(y.shape[0]):
        _check_length(X.shape[0], y.shape[0])
        y = y.rechunk((X.chunks[0],))
    elif y.numblocks[0] != X.numblocks[0]:
        raise UserError(
            f"X has {X.numblocks[0]} blocks and y {y.numblocks[0]}, of unknown sizes. Use "
            "compute_chunk_sizes() of both."
        )
    # In one graph, for rows and labels often come from one source.
    blocks = client.compute([*_list_blocks(X), *_list_blocks(y)])
    return blocks[: X.numblocks[0]], blocks[X.numblocks[0] :]


def cut_blocks(
    session: Session, X: NDArray[Any], y: NDArray[Any], n_shards: int, seed: int
) -> tuple[list[Future], list[Future]]:
    """Cut a NumPy array's shuffled rows and their labels into blocks of one size.

    They make whole shards. They are arguments of tasks, not scattered, so a lost worker's are sent
    again.
    """
    n_rows = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // (X.shape[1] * X.itemsize)))
    n_blocks = -(-len(X) // n_rows)
    n_shards = n_shards or min(MOST_SHARDS, n_blocks)
    n_blocks = min(-(-n_blocks // n_shards) * n_shards, len(X))
    parts = np.array_split(np.random.default_rng(seed).permutation(len(X)), n_blocks)
    return (
        [session.submit(np.asarray, X[p], name=f"rows-{i}") for i, p in enumerate(parts)],
        [session.submit(np.asarray, y[p], name=f"labels-{i}") for i, p in enumerate(parts)],
    )


def load_blocks(
    session: Session, rows: list[Future], labels: list[Future], config: TrainConfig
) -> tuple[Inputs, NDArray[Any]]:
    """Make shards of blocks of rows, as `trainer.prepare` does of a store's chunks.

    The blocks are emptied: the workers let go of one when its shard has been made.

    It also returns the labels, sorted (n_classes,). It refuses labels that do not fit, fewer than
    two classes, and more shards than blocks.
    """
    n_rows, n_features, classes = _read_labels(session, rows, labels)
    n_shards = config.n_shards or min(MOST_SHARDS, len(rows))
    if n_shards > len(rows):
        raise UserError(
            f"n_shards = {n_shards}, but X has {len(rows)} blocks of rows, and a shard "
            "trains on whole ones. Use fewer shards, or rechunk X to smaller blocks."
        )
    parts = [
        session.submit(_block_moments, block, i, config.normalize, name=f"moments-{i}")
        for i, block in enumerate(rows)
    ]
    moments = session.reduce(parts, merge_moments, name="merge-moments")
    scaling = session.submit(Scaling.fit, moments, config.normalize, name="scaling")
    groups = [
        session.submit(
            _make_shards, indices,
            [rows[s::n_shards] for s in indices], [labels[s::n_shards] for s in indices],
            scaling, classes, name=f"load-shards-{g}",
        )
        for g, indices in enumerate(group_shards(session.client, n_shards, config.shards_per_task))
    ]  # fmt: skip
    rows.clear()
    labels.clear()
    initial = session.submit(softmax.zero_params, n_features, len(classes), name="start")
    n_train = np.array([n_rows[s::n_shards].sum() for s in range(n_shards)])
    return Inputs(groups, n_train, False, initial, scaling), classes


def _list_blocks(array: da.Array) -> list[Any]:
    delayed: list[Any] = array.to_delayed().ravel().tolist()
    return delayed


def _check_length(n_rows: int, n_labels: int) -> None:
    if n_rows != n_labels:
        raise UserError(f"X has {n_rows} rows, and y {n_labels} labels. They must be as many.")


def _read_labels(
    session: Session, rows: Sequence[Future], labels: Sequence[Future]
) -> tuple[NDArray[np.intp], int, NDArray[Any]]:
    """Return the rows of every block, the number of features, and the classes of all blocks."""
    blocks = enumerate(zip(rows, labels, strict=True))
    tasks = [session.submit(_block_classes, *b, i, name=f"classes-{i}") for i, b in blocks]
    read = session.client.gather(tasks)
    n_rows = np.array([shape[0] for shape, _ in read], np.intp)
    classes = np.unique(np.concatenate([found for _, found in read if len(found)] or [[]]))
    if len(classes):
        check_classification_targets(classes)
    if len(classes) < 2:
        raise UserError(
            f"y must hold two classes or more. Received: {len(classes)} class in {n_rows.sum()} "
            "rows."
        )
    return n_rows, read[0][0][1], classes


def _block_classes(
    rows: NDArray[Any], labels: NDArray[Any], index: int
) -> tuple[tuple[int, ...], NDArray[Any]]:
    if len(rows) != len(labels):
        raise UserError(
            f"Block {index} of X has {len(rows)} rows, and that of y {len(labels)}. Their blocks "
            "must be of the same sizes."
        )
    return rows.shape, np.unique(labels)


def _block_moments(rows: NDArray[Any], index: int, normalize: str) -> Moments:
    check_finite(rows, f" in block {index}")
    return Moments.of(scale_rows(rows, normalize, _dtype(rows)))


def _dtype(rows: NDArray[Any]) -> np.dtype[Any]:
    # In float32, numbers far from 0 would lose digits before the mean is subtracted.
    return np.result_type(rows.dtype, np.float32)


def _make_shards(
    indices: range,
    rows: list[list[NDArray[Any]]],
    labels: list[list[NDArray[Any]]],
    scaling: Scaling,
    classes: NDArray[Any],
) -> list[Shard]:
    shards = []
    for index, blocks, of_blocks in zip(indices, rows, labels, strict=True):
        ends = np.cumsum([len(block) for block in blocks])
        features = np.empty((ends[-1], len(scaling.mean)), np.float32)
        for block, end in zip(blocks, ends, strict=True):
            place = slice(end - len(block), end)
            features[place] = scaling.apply(block, _dtype(block))
        encoded = np.searchsorted(classes, np.concatenate(of_blocks)).astype(np.int32)
        shards.append(Shard(index, features, encoded, tuple(map(len, blocks))))
    return shards
