"""Replicas of local SGD, on a worker: their steps, and their contribution to the average.

A task takes a group of neighbouring shards, one after another: where there are more shards than
threads, a task for each would cost a round more than its steps.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dtl.config import TrainConfig
from dtl.config.errors import UserError
from dtl.head import averaging, hidden, softmax
from dtl.head.averaging import Mean
from dtl.head.blas import one_blas_thread
from dtl.head.descent import descend
from dtl.head.model import WEIGHTS
from dtl.head.schedules import Steps
from dtl.head.softmax import Params, log_softmax
from dtl.training.sharding import Shard, local_batches

Timed = TypeVar("Timed")
"""A result with seconds of merging, `merge_s`."""


@dataclass(frozen=True, eq=False)
class Contribution:
    """A contribution of one or more shards to a round's average.

    Losses are by shard, of those that have training rows. Seconds are those of the steps of the
    slowest task, and of merging, from level to level.
    """

    mean: Mean = field(default_factory=Mean)
    losses: Mapping[int, float] = field(default_factory=dict)
    step_s: float = 0.0
    merge_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Averaged:
    """Parameters that a round starts from, which stay on the workers, and numbers of the last one.

    Parameters
    ----------
    losses : dict of shard to float
        Of the last round; empty before the first.
    stats : dict of str to float
        Fields of its `Round`.
    """

    params: Params
    losses: Mapping[int, float] = field(default_factory=dict)
    stats: Mapping[str, float] = field(default_factory=dict)


def take_steps(
    before: Averaged,
    group: Sequence[Shard],
    steps: Steps,
    class_weights: NDArray[np.float32] | None,
) -> Contribution:
    """Take a group's steps of a round, shard after shard, from the parameters before it.

    A task that took the parameters out of `before` would cost every round some milliseconds.
    """
    started, took, config = time.perf_counter(), 0.0, steps.config

    def train(shard: Shard) -> Contribution:
        nonlocal took
        if shard.n_train == 0:
            return Contribution()
        n_steps, (seed,) = len(steps.learning_rates), steps.seed
        batches = list(local_batches(shard, steps.first, n_steps, config.batch_size, seed))
        descent_started = time.perf_counter()
        params, loss = descend(
            before.params, shard.rows(batches), shard.labels, batches,
            replace(steps, seed=(seed, shard.index)), class_weights,
        )  # fmt: skip
        took += time.perf_counter() - descent_started
        if not config.average_optimizer:
            params = pick_weights(params)
        return Contribution(Mean.of(params, shard.n_train), {shard.index: loss})

    # A diverging learning rate ends in infinities, which the driver reports.
    with one_blas_thread(), np.errstate(all="ignore"):
        total = averaging.pairwise(map(train, group), merge)
    return replace(total, step_s=took, merge_s=time.perf_counter() - started - took)


def merge(a: Contribution, b: Contribution) -> Contribution:
    """Merge the contributions of two runs of shards."""
    return Contribution(
        averaging.merge(a.mean, b.mean),
        {**a.losses, **b.losses},
        max(a.step_s, b.step_s),
        max(a.merge_s, b.merge_s),
    )


def merge_all(values: list[Timed], merge: Callable[[Timed, Timed], Timed]) -> Timed:
    """Merge what neighbouring groups returned, and add the seconds to their `merge_s`."""
    started = time.perf_counter()
    with one_blas_thread(), np.errstate(all="ignore"):
        total: Any = averaging.pairwise(values, merge)
    merged: Timed = replace(total, merge_s=total.merge_s + time.perf_counter() - started)
    return merged


def average(contributions: list[Contribution], before: Averaged, config: TrainConfig) -> Averaged:
    """Average the last contributions to what the next round starts from."""
    total, started = merge_all(contributions, merge), time.perf_counter()
    if not total.mean.n_samples:
        raise UserError("No replica had training rows to learn from. Check the split.")
    params = dict(total.mean.params)
    with one_blas_thread(), np.errstate(all="ignore"):
        if config.outer_momentum:
            params = averaging.outer_step(params, before.params, config.outer_momentum)
        change, norm = averaging.distance_and_norm(params, before.params)
    distance = math.sqrt(total.mean.scatter / total.mean.n_samples)
    stats = {
        "update_ratio": change / norm if norm else 0.0,
        "kernel_norm": norm,
        "spread": distance / norm if norm else 0.0,
        "step_s": total.step_s,
        "average_s": total.merge_s + time.perf_counter() - started,
    }
    return Averaged(params, total.losses, stats)


def count_classes(group: Sequence[Shard]) -> NDArray[np.int64]:
    """Count the training rows of each class, up to the last that the shards have."""
    labels = np.concatenate([shard.labels[: shard.n_train] for shard in group])
    return np.bincount(labels).astype(np.int64)


def balanced_weights(counts: list[NDArray[np.int64]], params: Params) -> NDArray[np.float32]:
    """Return class weights from the counts of all shards; `params` tell the number of classes."""
    total = np.zeros(len(params["bias"]), np.int64)
    for count in counts:
        total[: len(count)] += count
    return softmax.balanced_weights(total).astype(np.float32)


def pick_weights(params: Params) -> Params:
    """Return the weights of a head among the parameters; the rest is the optimizer's."""
    return {name: params[name] for name in WEIGHTS if name in params}


def score_group(params: Params, group: Sequence[Shard]) -> list[NDArray[np.float64]]:
    """Score each shard, as `score_shard` does."""
    return [score_shard(params, shard) for shard in group]


def score_shard(params: Params, shard: Shard) -> NDArray[np.float64]:
    """Return the scores of a shard's training and validation rows, (2, 3), as `score_rows` does."""
    sums = np.zeros((2, 3))
    with one_blas_thread(), np.errstate(all="ignore"):
        for parts in shard.scan():
            sums += [score_rows(log_softmax(hidden.logits(params, x)), y) for x, y in parts]
    return sums


def score_rows(log_p: NDArray[Any], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Count rows and right ones, and sum losses.

    Parameters
    ----------
    log_p : (n, n_classes) float
        Logarithms of the probabilities.

    Returns
    -------
    (3,) float64
        The number of rows, of right ones, and their summed loss.
    """
    loss = -log_p[np.arange(len(labels)), labels].astype(np.float64)
    return np.array([len(loss), (log_p.argmax(axis=1) == labels).sum(), loss.sum()])


def combine_scores(
    groups: list[list[NDArray[np.float64]]], has_validation: bool
) -> dict[str, float]:
    """Return fields of `Round` from the sums of all shards, added from the first to the last."""
    sums = sum(itertools.chain.from_iterable(groups), start=np.zeros((2, 3)))
    (n_train, train_right, train_loss), (n, right, loss) = sums
    scores = {"train_accuracy": train_right / n_train, "train_loss": train_loss / n_train}
    if has_validation:
        scores |= {"validation_accuracy": right / n, "validation_loss": loss / n}
    return {name: float(score) for name, score in scores.items()}
