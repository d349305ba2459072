"""Replicas of local SGD, on a worker: their rows, their steps, their part of the average.

A task takes a group of neighbouring shards, one after another: where there are more shards than
threads, a task for each would cost a round more than its steps.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config import TrainConfig
from dtl.head import averaging, descent, hidden, softmax
from dtl.head.averaging import Mean
from dtl.head.blas import one_blas_thread
from dtl.head.model import WEIGHTS
from dtl.head.softmax import Params
from dtl.training.sharding import Shard, local_batches


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


def local_steps(
    before: tuple[Params, RoundStats | None],
    group: Sequence[Shard],
    first_step: int,
    rates: Sequence[Any],
    config: TrainConfig,
    seed: int,
    class_weights: NDArray[np.float32] | None,
    descend: Callable[..., tuple[Params, float]] = descent.descend,
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
