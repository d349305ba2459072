"""Rounds of local SGD and averaging, submitted ahead and decided on in their order."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import operator
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from distributed import Future

from dtl.cluster import live
from dtl.cluster.progress import track
from dtl.cluster.spread import Session
from dtl.config import RETIRED, TrainConfig
from dtl.config.errors import UserError
from dtl.head import blas, schedules
from dtl.head.schedules import Plan
from dtl.head.softmax import Params
from dtl.training import local_sgd
from dtl.training.checkpoint import Keeper
from dtl.training.spec import Fitted, Inputs
from dtl.training.values import Round

log = logging.getLogger(__name__)

CHECKPOINT_EVERY: int = RETIRED["train"]["checkpoint_every"]
"""Rounds between two checkpoints."""

_MOST_SHOWN = 2000
"""Rounds of a training that goes on, which the live page is told at once."""

ROUNDS_AHEAD = 4
"""Submitted before the oldest round's numbers are waited for."""


@dataclass(frozen=True, eq=False)
class RoundTasks:
    """The tasks of rounds and of validations."""

    inputs: Inputs
    session: Session
    class_weights: Future | None  # (n_classes,) float32; None where all rows count the same

    @classmethod
    def make(cls, inputs: Inputs, config: TrainConfig, session: Session) -> RoundTasks:
        """Make tasks for training with these options."""
        if config.class_weights == "none":
            return cls(inputs, session, None)
        counts = [
            session.submit(local_sgd.count_classes, group, name=f"count-classes-{g}")
            for g, group in enumerate(inputs.groups)
        ]
        weights = session.submit(
            local_sgd.balanced_weights, counts, inputs.initial, name="class-weights"
        )
        return cls(inputs, session, weights)

    def submit_start(self, params: Future, name: str = "") -> Future:
        """Submit what the first round starts from, as a future of `Averaged`."""
        return self.session.submit(local_sgd.Averaged, params, name=f"begin{name}")

    def submit_round(
        self, before: Future, plans: Sequence[Plan], index: int, name: str
    ) -> tuple[Future, Future]:
        """Submit a round's tasks.

        Parameters
        ----------
        before : future of Averaged
            Of the round before, or of `submit_start`.
        plans : sequence of Plan
            One for each head of the stack that the parameters are; mostly one. They may differ in
            learning rate and penalty.

        Returns
        -------
        after : future of Averaged
            The next round starts from it; it stays on the workers.
        numbers : future of (losses, stats)
            Those of `Averaged`, for the driver.
        """
        submit, config = self.session.submit, plans[0].config
        steps = schedules.stack_steps([plan.steps(index) for plan in plans])
        parts = [
            submit(
                local_sgd.take_steps,
                before, group, steps, self.class_weights,
                name=f"local-steps-{name}-{g}",
            )
            for g, group in enumerate(self.inputs.groups)
        ]  # fmt: skip
        after = self.session.reduce(
            parts,
            functools.partial(local_sgd.merge_all, merge=local_sgd.merge),
            name=f"average-{name}",
            depth=config.aggregation_depth,
            root=(local_sgd.average, before, config),
        )
        return after, submit(operator.attrgetter("losses", "stats"), after, name=f"stats-{name}")

    def submit_params(self, averaged: Future, name: str) -> Future:
        """Submit the parameters that a round ended with, as a future of `Params`."""
        return self.session.submit(operator.attrgetter("params"), averaged, name=f"params-{name}")

    def submit_scores(self, params: Future, name: str) -> Future:
        """Submit scores of training and validation rows, as a future of fields of `Round`."""
        sums = [
            self.session.submit(local_sgd.score_group, params, group, name=f"score-{name}-{g}")
            for g, group in enumerate(self.inputs.groups)
        ]
        return self.session.submit(
            local_sgd.combine_scores, sums, self.inputs.has_validation, name=f"scores-{name}"
        )


def run(
    inputs: Inputs, plan: Plan, session: Session, *, keeper: Keeper | None = None, show: bool = True
) -> Fitted:
    """Run all rounds of a plan.

    Rounds are decided on in their order. Those that were submitted before an earlier one turned
    out to be the last are thrown away, so the result does not depend on how many these are.

    Parameters
    ----------
    keeper : Keeper, optional
        Of the checkpoint to go on from and to keep; it is removed where training diverges.
    show : bool
        Whether progress is shown in the terminal.
    """
    config = plan.config
    log.log(
        logging.INFO if show else logging.DEBUG,
        "training: %d rows in %d shards, %d rounds of %d batches of %d",
        plan.n_train, len(inputs.n_train), plan.n_rounds, config.averaging_frequency,
        config.batch_size,
    )  # fmt: skip
    tasks = RoundTasks.make(inputs, config, session)
    history: list[Round] = []
    tally = _Tally(config)
    best: Future | Params = {}
    # Reading the features is no part of the first round's time.
    session.wait([*inputs.groups, inputs.initial])
    started, params = time.monotonic(), inputs.initial
    if keeper is not None and (resumed := keeper.found) is not None:
        log.info("training: goes on after round %d", len(resumed.history))
        history, best = list(resumed.history), resumed.best
        for done in history:
            tally.add(done)
        params = session.submit_value(resumed.params, "resumed")
        started -= resumed.seconds
    start = tasks.submit_start(params)
    if show:
        show_rounds(history, begins=True)
    with (
        track("training", plan.n_rounds, "rounds", show=show) as advance,
        blas.one_blas_thread(),  # throughout, where the workers are threads of this process
    ):
        advance(len(history))
        for done, averaged in _finish_rounds(tasks, plan, start, len(history)):
            if not (math.isfinite(done.loss) and math.isfinite(done.update_ratio)):
                if keeper is not None:
                    keeper.remove()  # it leads to the same
                raise UserError(
                    f"Training diverged in round {done.round}: the loss is {done.loss}. Lower "
                    f"`train.learning_rate` (now {config.learning_rate})."
                )
            history.append(done)
            if show:
                show_rounds([done])
            if tally.add(done):
                best = session.submit(
                    local_sgd.pick_weights,
                    tasks.submit_params(averaged, f"{done.round}"),
                    name=f"best-{done.round}",
                )
            note = f"loss {done.loss:.4f}"
            if not math.isnan(tally.accuracy):
                note += f", validation {tally.accuracy:.1%}"
            advance(1, note)
            if done.round == plan.n_rounds:
                break
            if 0 < config.patience <= tally.n_since:
                log.info(
                    "training: stopped after round %d of %d: %d validations since round %d",
                    done.round, plan.n_rounds, tally.n_since, tally.best_round,
                )  # fmt: skip
                break
            if keeper is not None and done.round % CHECKPOINT_EVERY == 0:
                seconds = time.monotonic() - started
                last = session.result(averaged).params
                keeper.save(last, _take(best, session), history, seconds)
    if show and (soon := find_standstill(history)):
        log.info(
            "training: validation accuracy was %.1f %% after epoch %.3g, and is %.1f %% after "
            "epoch %.3g. Fewer `train.epochs` may do.",
            100 * soon.validation_accuracy, soon.epoch, 100 * tally.accuracy, history[-1].epoch,
        )  # fmt: skip
    last = session.result(averaged).params
    return Fitted(last, history, _take(best, session), tally.best_round)


def _finish_rounds(
    tasks: RoundTasks, plan: Plan, averaged: Future, n_done: int
) -> Iterator[tuple[Round, Future]]:
    """Yield the rounds after the first `n_done`, in their order, and what the next starts from.

    Some more are always submitted; they are thrown away if the caller stops.
    """
    n_train = tasks.inputs.n_train
    used = n_train > 0
    indices = iter(range(n_done, plan.n_rounds))
    pending: deque[tuple[int, Future, Future, Future | None]] = deque()
    last = time.monotonic()
    while True:
        for index in itertools.islice(indices, 1 + ROUNDS_AHEAD - len(pending)):
            number, scores = index + 1, None
            averaged, numbers = tasks.submit_round(averaged, [plan], index, f"{index}")
            if number % plan.validate_every == 0 or number == plan.n_rounds:
                params = tasks.submit_params(averaged, f"{number}")
                scores = tasks.submit_scores(params, f"{index}")
            pending.append((index, averaged, numbers, scores))
        if not pending:
            return
        index, after, numbers, scores = pending.popleft()
        by_shard, stats = tasks.session.result(numbers)
        found = tasks.session.result(scores) if scores else {}
        now = time.monotonic()
        elapsed, last = now - last, now
        losses = np.array([by_shard.get(s, math.nan) for s in range(len(n_train))])
        done = Round(
            round=index + 1,
            epoch=plan.epoch(index),
            loss=float(np.average(losses[used], weights=n_train[used])),
            shard_loss=tuple(losses.tolist()),
            learning_rate=plan.learning_rates(index)[0],
            wait_s=max(elapsed - stats["step_s"] - stats["average_s"], 0.0),
            **stats,
            **found,
        )
        yield done, after


def show_rounds(history: Sequence[Round], *, begins: bool = False) -> None:
    """Show rounds on the live page; where a training `begins`, in place of those of another."""
    if begins:
        live.tell("training")
    every = math.ceil(len(history) / _MOST_SHOWN) or 1
    for done in history[::-every][::-1]:  # the last one in any case
        live.tell("round", **asdict(done))


def find_standstill(history: Sequence[Round]) -> Round | None:
    """Return the first round that validated as well as the last, if before half of the training."""
    last = history[-1]
    good = (r for r in history if r.validation_accuracy >= last.validation_accuracy)
    first = next(good, last)
    return first if first.epoch <= last.epoch / 2 else None


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
        """Count a round, and return whether its validation is the best so far."""
        if math.isnan(done.validation_accuracy):
            return False
        self.accuracy = done.validation_accuracy
        value = self._sign * getattr(done, self._field)
        if value <= self._best:
            self.n_since += 1
            return False
        self._best, self.best_round, self.n_since = value, done.round, 0
        return True


def _take(params: Future | Params, session: Session) -> Params:
    value: Params = session.result(params) if isinstance(params, Future) else params
    return value
