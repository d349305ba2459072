"""Rounds of local SGD and averaging, submitted ahead and decided on in their order."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Client, Future
from numpy.typing import NDArray

from dtl.cluster.progress import track
from dtl.cluster.spread import submit_value, tree_reduce, wait_for
from dtl.config import TrainConfig
from dtl.head import blas, descent
from dtl.head.softmax import Params
from dtl.training import local_sgd
from dtl.training.checkpoint import Checkpoint, Keeper
from dtl.training.plan import Plan
from dtl.training.values import Round

log = logging.getLogger(__name__)

ROUNDS_AHEAD = 4
"""Submitted before the oldest round's numbers are waited for."""


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
    check_stopping(config, has_validation)
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
        start = submit_value(client, resume.params, f"resumed-{run}")
        began -= resume.seconds
    decided = client.submit(local_sgd.begin, start, key=f"begin-{run}")
    with (
        track("training", plan.n_rounds, "rounds", show=show) as advance,
        blas.one_blas_thread(),  # throughout, where the workers are threads of this process
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
                best = client.submit(local_sgd.pick_weights, params, key=f"best-{run}-{done.round}")
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
                    local_sgd.first(decided.result()), _value(best), history,
                    time.monotonic() - began,
                )  # fmt: skip
    return Fitted(local_sgd.first(decided.result()), _value(best), tally.best_round, history)


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
        told: local_sgd.RoundStats = stats.result()
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
    return client.submit(local_sgd.first, averaged, key=f"params-{run}-{n_rounds}")


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


def check_stopping(config: TrainConfig, has_validation: bool) -> None:
    """Refuse options that stop a training by validation where there is none."""
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


def submit_class_weights(
    client: Client, groups: list[Future], params: Future, config: TrainConfig, run: str
) -> Future | None:
    """A future of (n_classes,) float32; None where all rows count the same."""
    if config.class_weights == "none":
        return None
    counts = [
        client.submit(local_sgd.count_classes, group, key=f"count-classes-{run}-{g}")
        for g, group in enumerate(groups)
    ]
    return client.submit(local_sgd.balanced_weights, counts, params, key=f"class-weights-{run}")


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
            descent.descend_stack, l2s=tuple(one.config.l2 for one in stack)
        )
    parts = [
        client.submit(
            local_sgd.local_steps,
            before, group, plan.starts[index], rates, config, plan.seed, class_weights,
            key=f"local-steps-{key}-{g}", **more,
        )
        for g, group in enumerate(groups)
    ]  # fmt: skip
    both = tree_reduce(
        client, parts, local_sgd.combine, name=f"average-{key}", depth=config.aggregation_depth,
        last=local_sgd.average, arguments=(before, config),
    )  # fmt: skip
    return both, client.submit(local_sgd.second, both, key=f"stats-{key}")


def submit_scores(
    client: Client, params: Future, groups: list[Future], has_validation: bool, key: str
) -> Future:
    """A future of the scores, of training and validation rows, as fields of `Round`."""
    parts = [
        client.submit(local_sgd.score_group, params, group, key=f"score-{key}-{g}")
        for g, group in enumerate(groups)
    ]
    return client.submit(local_sgd.combine_scores, parts, has_validation, key=f"scores-{key}")
