"""Replicas of local SGD, on a worker: their rows, their steps, their part of the average.

A task takes a group of neighbouring shards, one after another: where there are more shards than
threads, a task for each would cost a round more than its steps.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from dtl import averaging, hidden, optimizers, softmax
from dtl.averaging import Mean, Moments
from dtl.config import TrainConfig
from dtl.feature_store import FeatureStore
from dtl.softmax import Params, Rows
from dtl.streaming import StoredFeatures, standardise
from dtl.types import TRAIN, VALIDATION, WEIGHTS


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


@dataclass(frozen=True, eq=False)
class Partial:
    """What one or more shards bring to a round's average.

    Parameters
    ----------
    mean : Mean
    losses : dict of shard to float
        Of those that have training rows.
    step_s, average_s : float
        Seconds of the steps of the slowest task, and of merging, from level to level.
    """

    mean: Mean = field(default_factory=Mean)
    losses: Mapping[int, float] = field(default_factory=dict)
    step_s: float = 0.0
    average_s: float = 0.0


@dataclass(frozen=True)
class RoundStats:
    """What the driver learns of a round; see `Round`."""

    losses: Mapping[int, float]
    update_ratio: float
    kernel_norm: float
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
            f"{store.read('path', chunk)[rows[0]]}. {_mend(store, layer)}"
        )
    return Moments.of(features[store.read("split", chunk) == TRAIN])


def _mend(store: FeatureStore, layer: str) -> str:
    """What makes other features; with the settings as they are, they would be found done."""
    wider = ["--features.dtype float32"] if store.dtype(layer) == np.float16 else []
    if store.settings.get("precision", "float32") != "float32":
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


def local_steps(
    before: tuple[Params, RoundStats | None],
    group: Sequence[Shard],
    first_step: int,
    rates: Sequence[Any],
    config: TrainConfig,
    seed: int,
    class_weights: NDArray[np.float32] | None,
    descend: Callable[..., tuple[Params, float]] = optimizers.descend,
) -> Partial:
    """A group's part of a round, whose first step is number `first_step` of the training.

    Every shard starts from what `average` returned: to wait for `first` to take the parameters out
    of that would cost every round some milliseconds. `descend` takes the steps, with `rates`.
    """
    started, start, took = time.perf_counter(), first(before), 0.0

    def train(shard: Shard) -> Partial:
        nonlocal took
        if shard.n_train == 0:
            return Partial()
        batches = list(local_batches(shard, first_step, len(rates), config.batch_size, seed))
        began = time.perf_counter()
        local, loss = descend(
            start, shard.rows(batches), shard.labels, batches, rates, config,
            class_weights=class_weights,
            first_step=first_step,
            n_before=first_step if config.average_optimizer else 0,
            seed=(seed, shard.index),
        )  # fmt: skip
        took += time.perf_counter() - began
        if not config.average_optimizer:
            local = pick_weights(local)
        return Partial(Mean.of(local, shard.n_train), {shard.index: loss})

    # A diverging learning rate ends in infinities, which the driver reports.
    with one_blas_thread(), np.errstate(all="ignore"):
        total = averaging.pairwise(map(train, group), merge)
    return replace(total, step_s=took, average_s=time.perf_counter() - started - took)


def merge(a: Partial, b: Partial) -> Partial:
    """Two parts of a round as one."""
    return Partial(
        averaging.merge(a.mean, b.mean),
        {**a.losses, **b.losses},
        max(a.step_s, b.step_s),
        max(a.average_s, b.average_s),
    )


def combine(parts: list[Partial]) -> Partial:
    """Neighbouring parts of a round as one."""
    started = time.perf_counter()
    with one_blas_thread(), np.errstate(all="ignore"):
        total = averaging.pairwise(parts, merge)
    return replace(total, average_s=total.average_s + time.perf_counter() - started)


def begin(params: Params) -> tuple[Params, None]:
    """What the first round starts from."""
    return params, None


def average(
    parts: list[Partial], before: tuple[Params, RoundStats | None], config: TrainConfig
) -> tuple[Params, RoundStats]:
    """The parameters that the next round starts from, and what there is to tell of this one.

    Raises
    ------
    ValueError
        If no shard has training rows.
    """
    total, started, start = combine(parts), time.perf_counter(), first(before)
    if not total.mean.n_samples:
        raise ValueError("No replica had training rows to learn from. Check the split.")
    params = dict(total.mean.params)
    with one_blas_thread(), np.errstate(all="ignore"):
        if config.outer_momentum or config.outer_learning_rate != 1:
            params = averaging.outer_step(
                params, start,
                momentum=config.outer_momentum, learning_rate=config.outer_learning_rate,
            )  # fmt: skip
        change, norm = averaging.distance_and_norm(params, start)
    apart = math.sqrt(total.mean.scatter / total.mean.n_samples)
    return params, RoundStats(
        losses=total.losses,
        update_ratio=change / norm if norm else 0.0,
        kernel_norm=norm,
        spread=apart / norm if norm else 0.0,
        step_s=total.step_s,
        average_s=total.average_s + time.perf_counter() - started,
    )


def count_classes(group: Sequence[Shard]) -> NDArray[np.int64]:
    """Training rows of each class, up to the last that the shards have."""
    labels = np.concatenate([shard.labels[: shard.n_train] for shard in group])
    return np.bincount(labels).astype(np.int64)


def balanced_weights(counts: list[NDArray[np.int64]], params: Params) -> NDArray[np.float32]:
    """Class weights from the counts of all shards; parameters know the number of classes."""
    total = np.zeros(len(params["bias"]), np.int64)
    for count in counts:
        total[: len(count)] += count
    return softmax.balanced_weights(total).astype(np.float32)


def first(both: tuple[Params, RoundStats | None]) -> Params:
    """The parameters, which stay on the workers."""
    return both[0]


def second(both: tuple[Params, RoundStats]) -> RoundStats:
    """The numbers, which go to the driver."""
    return both[1]


def pick_weights(params: Params) -> Params:
    """What a head has of the parameters; the rest is the optimizer's."""
    return {name: params[name] for name in WEIGHTS if name in params}


def score_group(params: Params, group: Sequence[Shard]) -> list[NDArray[np.float64]]:
    """What `score_shard` says of each shard."""
    return [score_shard(params, shard) for shard in group]


def score_shard(params: Params, shard: Shard) -> NDArray[np.float64]:
    """Rows, right ones and summed loss of the training and of the validation rows, (2, 3)."""
    sums = np.zeros((2, 3))
    chunks = list(shard.chunks())
    features = shard.rows([rows for rows, _ in chunks])
    for rows, n_train in chunks:
        with one_blas_thread(), np.errstate(all="ignore"):
            log_p = softmax.log_softmax(hidden.logits(params, features[rows]))
        labels = shard.labels[rows]
        true = log_p[np.arange(len(log_p)), labels].astype(np.float64)
        right = log_p.argmax(axis=1) == labels
        for part, some in enumerate((slice(0, n_train), slice(n_train, None))):
            sums[part] += len(true[some]), right[some].sum(), -true[some].sum()
    return sums


def combine_scores(
    groups: list[list[NDArray[np.float64]]], has_validation: bool
) -> dict[str, float]:
    """Fields of `Round` from the sums of all shards, added up from the first to the last."""
    parts = itertools.chain.from_iterable(groups)
    (n_train, train_right, train_loss), (n, right, loss) = sum(parts, start=np.zeros((2, 3)))
    scores = {
        "train_accuracy": float(train_right / n_train),
        "train_loss": float(train_loss / n_train),
    }
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
    out lifts it. After that OpenBLAS takes three times as long for the next product of a thread,
    even where nothing has changed: so nothing is set where it is so already, as in Dask's worker
    processes, and whoever starts many tasks in its own process does well to hold it.
    """
    global _blas_users, _blas_limit
    with _blas_lock:
        _blas_users += 1
        if _blas_users == 1 and any(lib.num_threads != 1 for lib in _blas().lib_controllers):
            with _in_control():
                _blas_limit = _blas().limit(limits=1)
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0 and _blas_limit is not None:
                with _in_control():
                    _blas_limit.restore_original_limits()
                _blas_limit = None


@contextmanager
def _in_control() -> Iterator[None]:
    """Let this thread set limits, whichever did before.

    From threadpoolctl 3.8 on, what other threads than the first one set would have no effect.
    """
    controllers = [c for c in _blas().lib_controllers if hasattr(c, "clear_controlling_thread")]
    for controller in controllers:
        controller.clear_controlling_thread(force=True)
    yield
    for controller in controllers:
        controller.clear_controlling_thread(force=True)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    """Looking for the process's libraries takes milliseconds; once is enough."""
    return threadpoolctl.ThreadpoolController().select(user_api="blas")
