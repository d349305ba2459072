"""The third stage: a head on the features, by local SGD on the workers and averaging.

A round is: every shard takes `averaging_frequency` steps from the current parameters, on its own
rows, and a tree merges the results to their average. Parameters stay on the workers; the driver
submits rounds ahead and reads only losses, and parameters for a checkpoint now and then. A task
takes a group of shards, one after another, where there are more of them than threads. Random
numbers come from (seed, shard, epoch), and the order of sums from the number of shards, so the head
has the same bits on any number of workers, and when some are lost on the way: Dask then computes
again what they held.
"""

from __future__ import annotations

import bisect
import functools
import io
import itertools
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, Future
from numpy.typing import NDArray

from dtl import averaging, lbfgs, optimizers, replica, schedules, starts, storage
from dtl.averaging import Moments
from dtl.checkpoint import Checkpoint, Keeper
from dtl.config import TrainConfig, to_dict
from dtl.feature_store import FeatureStore
from dtl.progress import track
from dtl.softmax import Params
from dtl.types import TRAIN, VALIDATION, Head, Round
from dtl.workers import hold, in_groups, tree_reduce, wait_for

log = logging.getLogger(__name__)

ROUNDS_AHEAD = 4
"""Submitted before the oldest round's numbers are waited for."""

MOST_SHARDS = 8


_NOT_IN_THE_HEAD = (
    "start_from", "checkpoint_every", "features_in", "shards_per_task", "aggregation_depth",
)  # fmt: skip
"""Options that do not change a head; of the one that it starts from, the content does."""


@dataclass(frozen=True, eq=False)
class Ready:
    """What training starts with, on the workers.

    Parameters
    ----------
    groups : list of futures of lists of Shard
        Of neighbouring shards, each group for one task.
    moments : future of Moments
        Of the training rows.
    start : future of Params
        As `starts.submit` has it.
    n_train : (n_shards,) int
        Training rows of each shard.
    """

    groups: list[Future]
    moments: Future
    start: Future
    n_train: NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Parameters that `fit_both` ends with.

    Parameters
    ----------
    last : Params
        After the last round.
    best : Params
        The weights of the best validation; empty without validation.
    best_round : int
        Counted from 1; 0 without validation.
    history : list of Round
    """

    last: Params
    best: Params
    best_round: int
    history: list[Round]


@dataclass(frozen=True, eq=False)
class Trained:
    """Heads that `train_both` ends with.

    Parameters
    ----------
    head : Head
        The one that `train.keep` asks for.
    other : Head or None
        The one of the best validation where `head` is the last round's, and the other way round;
        None where there is only one.
    history : list of Round
    """

    head: Head
    other: Head | None
    history: list[Round]


def provenance(
    store: FeatureStore, config: TrainConfig, layer: str, seed: int, weights: str = ""
) -> dict[str, Any]:
    """All that a head follows from; a head of other provenance is trained again.

    Parameters
    ----------
    weights : str
        As `train` has it.

    Raises
    ------
    FileNotFoundError
        If the head, or the network's weights, to start from are gone.
    """
    options = {name: v for name, v in to_dict(config).items() if name not in _NOT_IN_THE_HEAD}
    start = starts.head_url(config.start_from) if config.start_from else ""
    made_from = {
        "features": store.settings,
        "weights_sha256": store.attrs["weights_sha256"],
        "split": store.split_settings,
        "layer": layer,
        "train": options | {"layer": layer},
        "start_sha256": storage.sha256(start) if start else "",
        "seed": seed,
    }
    if config.hidden_start == "network":
        made_from["start_weights"] = starts.describe_network(store, weights)
    return made_from


def train(
    store: FeatureStore,
    config: TrainConfig,
    layer: str,
    seed: int,
    client: Client,
    *,
    weights: str = "",
    checkpoint: str = "",
    overwrite: bool = False,
) -> tuple[Head, list[Round]]:
    """Train a head on the rows of a store that the split gives to training.

    Parameters
    ----------
    store : FeatureStore
        With a split.
    layer : str
        Whose features.
    client : distributed.Client
    weights : str
        As ``features.weights``, where the network's own layer is what a hidden one starts from;
        empty: as the features were made.
    checkpoint : str
        URL of the file to go on from, if it is there, and to keep until the head is safe, when
        whoever calls removes it. Empty: none.
    overwrite : bool
        Start again if the checkpoint is of other settings, or damaged.

    Returns
    -------
    head : Head
        After the last round, or of the best validation, as `config.keep` says.
    history : list of Round

    Raises
    ------
    ValueError
        For settings that the store, the checkpoint or the head to start from does not fit, features
        that are not finite, or a learning rate that diverges.
    OSError
        If the head, or the network's weights, to start from cannot be had.
    """
    trained = train_both(
        store, config, layer, seed, client,
        weights=weights, checkpoint=checkpoint, overwrite=overwrite,
    )  # fmt: skip
    return trained.head, trained.history


def train_both(
    store: FeatureStore,
    config: TrainConfig,
    layer: str,
    seed: int,
    client: Client,
    *,
    weights: str = "",
    checkpoint: str = "",
    overwrite: bool = False,
) -> Trained:
    """Train as `train` does, and return the last head and the best one."""
    has_validation = bool((store.read("split") == VALIDATION).any())
    _check_stopping(config, has_validation)
    made_from = provenance(store, config, layer, seed, weights)
    run = uuid.uuid4().hex[:8]
    ready = prepare(store, config, layer, seed, client, run, weights=weights)
    if config.solver == "lbfgs":
        solved, history = lbfgs.solve(
            ready.groups, len(ready.n_train), ready.start, config, client, run=run,
            has_validation=has_validation,
        )  # fmt: skip
        fitted = Fitted(solved, {}, 0, history)
    else:
        with ExitStack() as stack:
            keeper = stack.enter_context(Keeper(checkpoint, made_from)) if checkpoint else None
            fitted = fit_both(
                ready.groups, ready.n_train, ready.start, config, seed, client, run=run,
                has_validation=has_validation, keeper=keeper,
                resume=keeper.load(overwrite=overwrite) if keeper else None,
            )  # fmt: skip
    final: Moments = ready.moments.result()

    def head(params: Params) -> Head:
        return Head(
            **replica.pick_weights(params),
            mean=final.mean.astype(np.float32),
            scale=final.scale(),
            class_names=store.class_names,
            provenance=made_from,
        )

    heads = [head(fitted.last)]
    if fitted.best and fitted.best_round != fitted.history[-1].round:
        heads.append(head(fitted.best))
    if config.keep == "best":
        heads.reverse()
    return Trained(heads[0], heads[1] if len(heads) > 1 else None, fitted.history)


def prepare(
    store: FeatureStore,
    config: TrainConfig,
    layer: str,
    seed: int,
    client: Client,
    run: str,
    *,
    weights: str = "",
) -> Ready:
    """Check what can be checked of a store, and bring its rows to the workers.

    Parameters
    ----------
    weights : str
        As `train` has it.

    Raises
    ------
    ValueError
        For more shards than chunks, no training rows, or a start that does not fit.
    """
    n_shards = count_shards(store, config)
    split = store.read("split")
    _check_classes(split, store)
    found = starts.find(store, config, layer, weights, client, run)
    groups, moments = load_groups(
        store, layer, n_shards, client, run,
        features_in=config.features_in, shards_per_task=config.shards_per_task,
    )  # fmt: skip
    start = starts.submit(found, store, config, layer, seed, moments, client, run)
    chunk = np.arange(store.n_images) // store.chunk_images
    n_train = np.bincount(chunk[split == TRAIN] % n_shards, minlength=n_shards)
    return Ready(groups, moments, start, n_train)


def count_shards(store: FeatureStore, config: TrainConfig) -> int:
    """How many replicas train on a store.

    Raises
    ------
    ValueError
        If there are more than chunks.
    """
    n_shards = config.n_shards or min(MOST_SHARDS, store.n_chunks)
    if n_shards > store.n_chunks:
        raise ValueError(
            f"train.n_shards = {n_shards}, but the store has {store.n_chunks} chunks, and a shard "
            "trains on whole ones. Use fewer shards, or smaller chunks (features.chunk_images)."
        )
    return n_shards


def load_groups(
    store: FeatureStore,
    layer: str,
    n_shards: int,
    client: Client,
    run: str,
    *,
    features_in: str = "memory",
    shards_per_task: int = 0,
) -> tuple[list[Future], Future]:
    """Bring a store's rows to the workers, standardised by the training rows.

    With `features_in` ``store`` the features are left there, and read when they are asked for.

    Returns
    -------
    groups : list of futures of lists of Shard
    moments : future of Moments
        Of the training rows.
    """
    moments = tree_reduce(
        client,
        [
            client.submit(replica.chunk_moments, store, layer, chunk, key=f"moments-{run}-{chunk}")
            for chunk in range(store.n_chunks)
        ],
        averaging.combine_moments,
        name=f"combine-moments-{run}",
    )
    groups = [
        client.submit(
            replica.load_group, store, layer, indices, n_shards, moments, features_in,
            key=f"load-shards-{run}-{g}",
        )
        for g, indices in enumerate(in_groups(client, n_shards, shards_per_task))
    ]  # fmt: skip
    return groups, moments


def fit(
    groups: list[Future],
    n_train: NDArray[np.integer[Any]],
    start: Future,
    config: TrainConfig,
    seed: int,
    client: Client,
    *,
    run: str,
    has_validation: bool,
    show: bool = True,
) -> tuple[Params, list[Round]]:
    """Run all rounds.

    Parameters
    ----------
    groups : list of futures of lists of Shard
        Of neighbouring shards, the first group the first ones.
    n_train : (n_shards,) int
        Training rows of each shard.
    start : future of Params
    run : str
        Unique; in the names of the tasks.
    has_validation : bool
        Whether any shard has validation rows.
    show : bool
        How far it is, in the terminal.

    Returns
    -------
    params : Params
        After the last round; with `config.keep` ``best``, the weights of the best validation.
    history : list of Round

    Raises
    ------
    ValueError
        For features that are not finite, or a learning rate that diverges.
    """
    fitted = fit_both(
        groups, n_train, start, config, seed, client, run=run, has_validation=has_validation,
        show=show,
    )  # fmt: skip
    return fitted.best if config.keep == "best" else fitted.last, fitted.history


def fit_both(
    groups: list[Future],
    n_train: NDArray[np.integer[Any]],
    start: Future,
    config: TrainConfig,
    seed: int,
    client: Client,
    *,
    run: str,
    has_validation: bool,
    keeper: Keeper | None = None,
    resume: Checkpoint | None = None,
    show: bool = True,
) -> Fitted:
    """Run rounds as `fit` does, and return the last parameters and the best.

    Rounds are decided on in their order. Those that were submitted before it was known that an
    earlier one is the last are thrown away, so the result does not depend on how many these are.

    Parameters
    ----------
    keeper : Keeper, optional
        Where checkpoints go; its file is removed where training diverges.
    resume : Checkpoint, optional
        What to go on from.
    """
    _check_stopping(config, has_validation)
    plan = Plan.make(n_train, config, seed)
    log.log(
        logging.INFO if show else logging.DEBUG,
        "training: %d rows in %d shards, %d rounds of %d batches of %d",
        plan.n_train, len(n_train), plan.n_rounds, config.averaging_frequency, config.batch_size,
    )  # fmt: skip
    class_weights = submit_class_weights(client, groups, start, config, run)
    history: list[Round] = []
    tally = _Tally(config)
    best: Future | Params = {}
    wait_for(client, [*groups, start])  # reading the features is no part of the first round's time
    began = time.monotonic()
    if resume is not None:
        log.info("training: goes on after round %d", len(resume.history))
        history, best = list(resume.history), resume.best
        for done in history:
            tally.add(done)
        start = hold(client, resume.params, f"resumed-{run}")
        began -= resume.seconds
    decided = client.submit(replica.begin, start, key=f"begin-{run}")
    with (
        track("training", plan.n_rounds, "rounds", show=show) as advance,
        replica.one_blas_thread(),  # throughout, where the workers are threads of this process
    ):
        advance(len(history))
        coming = _rounds(
            client, decided, groups, n_train, len(history), plan, class_weights, run,
            has_validation,
        )  # fmt: skip
        for done, decided in coming:
            if not (math.isfinite(done.loss) and math.isfinite(done.update_ratio)):
                if keeper is not None:
                    keeper.remove()  # it leads to the same
                raise ValueError(
                    f"Training diverged in round {done.round}: the loss is {done.loss}. Lower "
                    f"train.learning_rate (now {config.learning_rate})."
                )
            too_long = 0 < config.max_seconds <= time.monotonic() - began
            if too_long and math.isnan(done.train_accuracy):
                params = _params_after(client, decided, done.round, run)
                scores = submit_scores(client, params, groups, has_validation, f"{run}-last")
                done = replace(done, **scores.result())
            history.append(done)
            if tally.add(done):
                params = _params_after(client, decided, done.round, run)
                best = client.submit(replica.pick_weights, params, key=f"best-{run}-{done.round}")
            note = f"loss {done.loss:.4f}"
            if not math.isnan(tally.accuracy):
                note += f", validation {tally.accuracy:.1%}"
            advance(1, note)
            if done.round < plan.n_rounds and (too_long or 0 < config.patience <= tally.n_since):
                why = "train.max_seconds are over" if too_long else (
                    f"{tally.n_since} validations since round {tally.best_round}, the best"
                )  # fmt: skip
                log.info(
                    "training: stopped after round %d of %d: %s", done.round, plan.n_rounds, why
                )
                break
            every = config.checkpoint_every
            if keeper and every and done.round % every == 0 and done.round < plan.n_rounds:
                keeper.save(
                    replica.first(decided.result()), _value(best), history,
                    time.monotonic() - began,
                )  # fmt: skip
    return Fitted(replica.first(decided.result()), _value(best), tally.best_round, history)


def _rounds(
    client: Client,
    averaged: Future,
    groups: list[Future],
    n_train: NDArray[np.integer[Any]],
    n_done: int,
    plan: Plan,
    class_weights: Future | None,
    run: str,
    has_validation: bool,
) -> Iterator[tuple[Round, Future]]:
    """The rounds after some, in their order, and what the next ones start from.

    Some more are always submitted; they are thrown away where nobody asks for them.
    """
    coming = iter(range(n_done, plan.n_rounds))
    pending: deque[tuple[int, Future, Future, Future | None]] = deque()
    last = time.monotonic()
    while True:
        for index in itertools.islice(coming, 1 + ROUNDS_AHEAD - len(pending)):
            key, scores = f"{run}-{index}", None
            averaged, stats = submit_round(
                client, averaged, groups, index, plan, class_weights, key
            )
            if (index + 1) % plan.validate_every == 0 or index + 1 == plan.n_rounds:
                params = _params_after(client, averaged, index + 1, run)
                scores = submit_scores(client, params, groups, has_validation, key)
            pending.append((index, averaged, stats, scores))
        if not pending:
            return
        index, after, stats, scores = pending.popleft()
        told: replica.RoundStats = stats.result()
        found = scores.result() if scores else {}
        now = time.monotonic()
        elapsed, last = now - last, now
        losses = np.array([told.losses.get(s, math.nan) for s in range(len(n_train))])
        used = n_train > 0
        yield (
            Round(
                round=index + 1,
                epoch=plan.epoch(index),
                loss=float(np.average(losses[used], weights=n_train[used])),
                shard_loss=tuple(losses.tolist()),
                learning_rate=plan.learning_rates(index)[0],
                update_ratio=told.update_ratio,
                spread=told.spread,
                step_s=told.step_s,
                average_s=told.average_s,
                wait_s=max(elapsed - told.step_s - told.average_s, 0.0),
                kernel_norm=told.kernel_norm,
                **found,
            ),
            after,
        )


def _params_after(client: Client, averaged: Future, n_rounds: int, run: str) -> Future:
    return client.submit(replica.first, averaged, key=f"params-{run}-{n_rounds}")


class _Tally:
    """The best validation so far, and how many there were since."""

    def __init__(self, config: TrainConfig) -> None:
        self._field = config.stop_on
        self._sign = -1 if config.stop_on == "validation_loss" else 1
        self._best = -math.inf
        self.best_round = 0
        self.n_since = 0
        self.accuracy = math.nan

    def add(self, done: Round) -> bool:
        """Count a round; whether its validation is the best so far."""
        if math.isnan(done.validation_accuracy):
            return False
        self.accuracy = done.validation_accuracy
        value = self._sign * getattr(done, self._field)
        if value <= self._best:
            self.n_since += 1
            return False
        self._best, self.best_round, self.n_since = value, done.round, 0
        return True


def _check_stopping(config: TrainConfig, has_validation: bool) -> None:
    asked = [f"train.patience = {config.patience}"] if config.patience else []
    asked += ["train.keep = best"] if config.keep == "best" else []
    if asked and not has_validation:
        raise ValueError(
            f"{' and '.join(asked)} needs validation images, and the split has none. Give some to "
            "split.validation, or leave it out."
        )
    asked += [f"train.max_seconds = {config.max_seconds:g}"] if config.max_seconds else []
    if asked and config.solver == "lbfgs":
        raise ValueError(
            f"{' and '.join(asked)} is for rounds of averaging; lbfgs ends at the optimum. Leave "
            "it out, or set train.solver = averaging."
        )


def _value(params: Future | Params) -> Params:
    value: Params = params.result() if isinstance(params, Future) else params
    return value


def history_to_bytes(history: list[Round]) -> bytes:
    """A Parquet file with one row a round."""
    columns = {f.name: [getattr(row, f.name) for row in history] for f in fields(Round)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def history_from_bytes(data: bytes) -> list[Round]:
    """Read what `history_to_bytes` wrote."""
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return [Round(**(row | {"shard_loss": tuple(row["shard_loss"])})) for row in rows]


@dataclass(frozen=True)
class Plan:
    """The arithmetic of rounds, steps and learning rates.

    Parameters
    ----------
    starts : tuple of int
        The first step of each round, and after them the number of all steps.
    """

    config: TrainConfig
    seed: int
    n_train: int
    steps_per_epoch: int
    starts: tuple[int, ...]

    @classmethod
    def make(cls, rows: NDArray[np.integer[Any]], config: TrainConfig, seed: int) -> Plan:
        """That of a training, from the training rows of each shard."""
        steps_per_epoch = math.ceil(rows.max() / config.batch_size)
        lengths = schedules.round_lengths(
            math.ceil(config.epochs * steps_per_epoch),
            config.averaging_frequency,
            config.averaging_frequency_end or config.averaging_frequency,
        )
        starts = (0, *itertools.accumulate(lengths))
        return cls(config, seed, int(rows.sum()), steps_per_epoch, starts)

    @property
    def n_rounds(self) -> int:
        """All rounds, if nothing stops the training."""
        return len(self.starts) - 1

    @property
    def validate_every(self) -> int:
        """Rounds between two validations.

        A validation passes over all rows, which costs a third of an epoch's steps.
        """
        n_validations = min(30, math.ceil(self.config.epochs))
        return self.config.validate_every or math.ceil(self.n_rounds / n_validations)

    def epoch(self, index: int) -> float:
        """Passes over the training rows at the end of a round."""
        return self.starts[index + 1] / self.steps_per_epoch

    def rounds_until(self, epoch: float) -> int:
        """The fewest rounds that make so many passes."""
        return bisect.bisect_left(self.starts, math.ceil(epoch * self.steps_per_epoch))

    def learning_rates(self, index: int) -> list[float]:
        """Of the steps of a round."""
        config, n_steps = self.config, self.starts[-1]
        n_warmup = config.warmup_epochs * self.steps_per_epoch
        by_hand = config.learning_rate_steps
        given = schedules.parse_steps(by_hand) if by_hand else []

        def rate(step: int) -> float:
            progress = max(step - n_warmup, 0.0) / (n_steps - n_warmup)
            factor = schedules.warmup(step, n_warmup)
            if config.schedule == "cosine":
                factor *= schedules.cosine(progress)
            if config.schedule == "exponential":
                factor *= schedules.exponential(progress, config.learning_rate_decay)
            epoch = step / self.steps_per_epoch
            return factor * schedules.stepwise(epoch, config.learning_rate, given)

        return [rate(step) for step in range(self.starts[index], self.starts[index + 1])]


def _check_classes(split: NDArray[np.int8], store: FeatureStore) -> None:
    labels = store.read("label")
    counts = np.bincount(labels[split == TRAIN], minlength=len(store.class_names))
    if not counts.any():
        raise ValueError("No image of the store is in the training split. Change [split].")
    if missing := [store.class_names[k] for k in np.flatnonzero(counts == 0)]:
        log.warning(
            "%d classes have no training image and will never be predicted: %s",
            len(missing), ", ".join(missing[:10]),
        )  # fmt: skip


def submit_class_weights(
    client: Client, groups: list[Future], params: Future, config: TrainConfig, run: str
) -> Future | None:
    """A future of (n_classes,) float32; None where all rows count the same."""
    if config.class_weights == "none":
        return None
    counts = [
        client.submit(replica.count_classes, group, key=f"count-classes-{run}-{g}")
        for g, group in enumerate(groups)
    ]
    return client.submit(replica.balanced_weights, counts, params, key=f"class-weights-{run}")


def submit_round(
    client: Client,
    before: Future,
    groups: list[Future],
    index: int,
    plan: Plan,
    class_weights: Future | None,
    key: str,
    *,
    stack: Sequence[Plan] = (),
) -> tuple[Future, Future]:
    """One round's tasks, from the first future that the round before returned, or `replica.begin`.

    Futures of what the next round starts from, parameters and numbers, and of the `RoundStats`.
    Parameters that are a stack of heads take the steps of a `stack` of plans, which differ in
    learning rate and penalty.
    """
    config = plan.config
    rates: Sequence[Any] = plan.learning_rates(index)
    more: dict[str, Any] = {}
    if stack:
        rates = list(zip(*(one.learning_rates(index) for one in stack), strict=True))
        more["descend"] = functools.partial(
            optimizers.descend_stack, l2s=tuple(one.config.l2 for one in stack)
        )
    parts = [
        client.submit(
            replica.local_steps,
            before, group, plan.starts[index], rates, config, plan.seed, class_weights,
            key=f"local-steps-{key}-{g}", **more,
        )
        for g, group in enumerate(groups)
    ]  # fmt: skip
    both = tree_reduce(
        client, parts, replica.combine, name=f"average-{key}", depth=config.aggregation_depth,
        last=replica.average, arguments=(before, config),
    )  # fmt: skip
    return both, client.submit(replica.second, both, key=f"stats-{key}")


def submit_scores(
    client: Client, params: Future, groups: list[Future], has_validation: bool, key: str
) -> Future:
    """A future of the scores, of training and validation rows, as fields of `Round`."""
    parts = [
        client.submit(replica.score_group, params, group, key=f"score-{key}-{g}")
        for g, group in enumerate(groups)
    ]
    return client.submit(replica.combine_scores, parts, has_validation, key=f"scores-{key}")
