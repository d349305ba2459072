"""One replica of local SGD, on a worker: its rows, its steps, its part of the average."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from dtl import averaging, softmax
from dtl.averaging import Moments, WeightedSum
from dtl.config import TrainConfig
from dtl.feature_store import FeatureStore
from dtl.softmax import Params
from dtl.types import TRAIN, VALIDATION


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows that one replica trains on, and those that it validates on, standardised.

    Parameters
    ----------
    index : int
    features : (n, n_features) float32
        Training rows first, chunk after chunk, then validation rows.
    labels : (n,) int32
    chunk_rows : tuple of int
        Training rows of each chunk.
    """

    index: int
    features: NDArray[np.float32]
    labels: NDArray[np.int32]
    chunk_rows: tuple[int, ...]

    @property
    def n_train(self) -> int:
        """Training rows."""
        return sum(self.chunk_rows)

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


@dataclass(frozen=True, eq=False)
class Partial:
    """What one or more shards bring to a round's average."""

    total: WeightedSum
    losses: Mapping[int, float]
    step_s: float
    average_s: float


@dataclass(frozen=True)
class RoundStats:
    """What the driver learns of a round; see `Round`."""

    losses: Mapping[int, float]
    loss: float
    update_ratio: float
    spread: float
    step_s: float
    average_s: float


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
            f"{store.read('path', chunk)[rows[0]]}. Compute them again with --overwrite"
            + (" and --features.dtype float32." if store.dtype(layer) == np.float16 else ".")
        )
    return Moments.of(features[store.read("split", chunk) == TRAIN])


def load_shard(
    store: FeatureStore, layer: str, index: int, chunks: range, moments: Moments
) -> Shard:
    """Read and standardise the rows of a shard's chunks."""
    mean, scale = moments.mean.astype(np.float32), moments.scale()
    parts: dict[int, list[NDArray[np.float32]]] = {TRAIN: [], VALIDATION: []}
    labels: dict[int, list[NDArray[np.int32]]] = {TRAIN: [], VALIDATION: []}
    for chunk in chunks:
        features = store.read(layer, chunk).astype(np.float32)
        features -= mean
        features /= scale
        split, label = store.read("split", chunk), store.read("label", chunk)
        for part in parts:
            parts[part].append(features[split == part])
            labels[part].append(label[split == part])
    return Shard(
        index,
        np.concatenate(parts[TRAIN] + parts[VALIDATION]),
        np.concatenate(labels[TRAIN] + labels[VALIDATION]),
        tuple(len(rows) for rows in parts[TRAIN]),
    )


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


def local_steps(
    params: Params, shard: Shard, index: int, rates: list[float], config: TrainConfig, seed: int
) -> Partial:
    """One shard's part of a round."""
    if shard.n_train == 0:
        return Partial(WeightedSum(), {}, 0.0, 0.0)
    started = time.perf_counter()
    local = {name: value.copy() for name, value in params.items()}
    batches = local_batches(shard, index * len(rates), len(rates), config.batch_size, seed)
    # A diverging learning rate ends in infinities, which the driver reports.
    with one_blas_thread(), np.errstate(all="ignore"):
        loss = softmax.sgd(
            local, shard.features, shard.labels, batches, rates,
            momentum=config.momentum, l2=config.l2,
        )  # fmt: skip
        stepped = time.perf_counter()
        total = WeightedSum.of(local, shard.n_train)
    return Partial(total, {shard.index: loss}, stepped - started, time.perf_counter() - stepped)


def combine(parts: list[Partial]) -> Partial:
    """Add parts of a round up, from the first to the last."""
    started = time.perf_counter()
    total = averaging.combine([part.total for part in parts])
    return Partial(
        total,
        {shard: loss for part in parts for shard, loss in part.losses.items()},
        max(part.step_s for part in parts),
        max(part.average_s for part in parts) + time.perf_counter() - started,
    )


def average(part: Partial, before: Params, average_optimizer: bool) -> tuple[Params, RoundStats]:
    """The parameters that the next round starts from, and what there is to tell of this one."""
    started = time.perf_counter()
    with np.errstate(all="ignore"):
        params, spread = averaging.average(part.total)
        if not average_optimizer:
            params |= {name: np.zeros_like(v) for name, v in params.items() if "_velocity" in name}
        change = float(np.linalg.norm(params["kernel"] - before["kernel"]))
        norm = float(np.linalg.norm(params["kernel"]))
    stats = RoundStats(
        losses=part.losses,
        loss=float(np.mean(list(part.losses.values()))),
        update_ratio=change / norm if norm else 0.0,
        spread=spread,
        step_s=part.step_s,
        average_s=part.average_s + time.perf_counter() - started,
    )
    return params, stats


def first(both: tuple[Params, RoundStats]) -> Params:
    """The parameters, which stay on the workers."""
    return both[0]


def second(both: tuple[Params, RoundStats]) -> RoundStats:
    """The numbers, which go to the driver."""
    return both[1]


def score_shard(params: Params, shard: Shard) -> NDArray[np.float64]:
    """Rows, right ones and summed loss of the training and of the validation rows, (2, 3)."""
    sums = np.zeros((2, 3))
    with one_blas_thread(), np.errstate(all="ignore"):
        log_p = softmax.log_softmax(shard.features @ params["kernel"] + params["bias"])
    true = log_p[np.arange(len(log_p)), shard.labels].astype(np.float64)
    right = log_p.argmax(axis=1) == shard.labels
    for part, rows in enumerate((slice(0, shard.n_train), slice(shard.n_train, None))):
        sums[part] = len(true[rows]), right[rows].sum(), -true[rows].sum()
    return sums


def combine_scores(parts: list[NDArray[np.float64]], has_validation: bool) -> dict[str, float]:
    """Fields of `Round` from the sums of all shards."""
    (n_train, train_right, _), (n, right, loss) = sum(parts[1:], start=parts[0])
    scores = {"train_accuracy": float(train_right / n_train)}
    if has_validation:
        scores |= {"validation_accuracy": float(right / n), "validation_loss": float(loss / n)}
    return scores


_blas_lock = Lock()
_blas_users = 0
_blas_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread a product, in all of the process's tasks at once.

    The tasks of a process already use its processors, and a product's last bits depend on the
    number of its threads. Limits are of the process, so the first task in sets it and the last one
    out lifts it.
    """
    global _blas_users, _blas_limit
    with _blas_lock:
        _blas_users += 1
        if _blas_users == 1:
            _blas_limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limit.restore_original_limits()


_found: list[threadpoolctl.ThreadpoolController] = []


def _controller() -> threadpoolctl.ThreadpoolController:
    """Looking for the process's libraries takes milliseconds; once is enough."""
    if not _found:
        _found.append(threadpoolctl.ThreadpoolController())
    return _found[0]
