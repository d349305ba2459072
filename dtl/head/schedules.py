"""The plan of a training: its rounds, their steps, and the learning rate of each step.

Pure arithmetic; steps are counted from 0 over the whole training.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config import RETIRED, TrainConfig
from dtl.config.sections import parse_steps

_MOST_VALIDATIONS = 30

_BATCHES = (128, 64, 32)
"""Rows of a step, where they are not given. A row of a step of 128 costs less than half of one of
32: a step passes over the kernel and the optimizer's state, however many rows it has."""

_LEAST_STEPS = 16
"""Of an epoch, for a larger batch than the smallest. Fewer, and training ends far from the optimum
with the default learning rate."""


def with_batch_size(config: TrainConfig, rows: NDArray[np.integer[Any]]) -> TrainConfig:
    """Return options with the rows of a step, which follow from each shard's training rows.

    Examples
    --------
    >>> [with_batch_size(TrainConfig(), np.array([n])).batch_size for n in (140, 1200, 2450)]
    [32, 64, 128]
    """
    if config.batch_size:
        return config
    most = int(rows.max(initial=0))
    fits = (size for size in _BATCHES if most >= _LEAST_STEPS * size)
    return replace(config, batch_size=next(fits, _BATCHES[-1]))


@dataclass(frozen=True)
class Steps:
    """Steps of descent that follow one another, of one head or of a stack of them.

    Parameters
    ----------
    config : TrainConfig
        Options that all heads have in common.
    learning_rates : tuple of tuple of float
        Of each step, one for each head.
    l2s : tuple of float
        Penalties, one for each head.
    first : int
        The number of the first step in the training: dropout follows from it, and the optimizer's
        state has seen so many steps, unless `config.average_optimizer` is false.
    """

    config: TrainConfig
    learning_rates: tuple[tuple[float, ...], ...]
    l2s: tuple[float, ...]
    first: int = 0
    seed: tuple[int, ...] = (0,)


def stack_steps(steps: Sequence[Steps]) -> Steps:
    """Return the steps of heads that are trained as a stack; they differ in rate and penalty."""
    rates = zip(*(one.learning_rates for one in steps), strict=True)
    return replace(
        steps[0],
        learning_rates=tuple(tuple(itertools.chain(*of_step)) for of_step in rates),
        l2s=tuple(itertools.chain(*(one.l2s for one in steps))),
    )


@dataclass(frozen=True)
class Plan:
    """The rounds of a training.

    Parameters
    ----------
    config : TrainConfig
        With the rows of a step, where they were not given.
    n_train : int
        Training rows of all shards.
    steps_per_epoch : int
        Of the shard with the most rows.
    first_steps : tuple of int
        The first step of each round, and after them the number of all steps.
    """

    config: TrainConfig
    seed: int
    n_train: int
    steps_per_epoch: int
    first_steps: tuple[int, ...]

    @classmethod
    def make(cls, rows: NDArray[np.integer[Any]], config: TrainConfig, seed: int) -> Plan:
        """Make the plan of a training from the training rows of each shard."""
        config = with_batch_size(config, rows)
        steps_per_epoch = math.ceil(rows.max() / config.batch_size)
        lengths = round_lengths(
            math.ceil(config.epochs * steps_per_epoch),
            config.averaging_frequency,
            config.averaging_frequency_end or config.averaging_frequency,
        )
        first_steps = (0, *itertools.accumulate(lengths))
        return cls(config, seed, int(rows.sum()), steps_per_epoch, first_steps)

    @property
    def n_rounds(self) -> int:
        """All rounds, if nothing stops the training."""
        return len(self.first_steps) - 1

    @property
    def validate_every(self) -> int:
        """Rounds between two validations.

        A validation passes over all rows, which costs a third of an epoch's steps.
        """
        n_validations = min(_MOST_VALIDATIONS, math.ceil(self.config.epochs))
        return math.ceil(self.n_rounds / n_validations)

    def epoch(self, index: int) -> float:
        """Return the passes over the training rows at the end of a round."""
        return self.first_steps[index + 1] / self.steps_per_epoch

    def rounds_until(self, epoch: float) -> int:
        """Return the fewest rounds that make so many passes."""
        return bisect.bisect_left(self.first_steps, math.ceil(epoch * self.steps_per_epoch))

    def learning_rates(self, index: int) -> list[float]:
        """Return the learning rates of a round's steps.

        They rise along a line from near 0 to the whole rate, then fall by the schedule. Rates given
        by hand hold from their epochs on.

        References
        ----------
        Goyal et al. (2017), "Accurate, large minibatch SGD", section 2.2, for the warm-up.
        Loshchilov, Hutter (2017), "SGDR: Stochastic gradient descent with warm restarts", for the
        cosine, without the restarts.
        """
        config, n_steps = self.config, self.first_steps[-1]
        n_warmup = config.warmup_epochs * self.steps_per_epoch
        by_hand = config.learning_rate_steps
        rates = [(0.0, config.learning_rate), *(parse_steps(by_hand) if by_hand else [])]

        def rate(step: int) -> float:
            factor = min(1.0, (step + 1) / n_warmup) if step < n_warmup else 1.0
            progress = max(step - n_warmup, 0.0) / (n_steps - n_warmup)
            if config.schedule == "cosine":
                factor *= 0.5 * (1 + math.cos(math.pi * progress))
            if config.schedule == "exponential":
                factor *= RETIRED["train"]["learning_rate_decay"] ** progress
            epoch = step / self.steps_per_epoch
            return factor * [value for since, value in rates if epoch >= since][-1]

        return [rate(step) for step in range(*self.first_steps[index : index + 2])]

    def steps(self, index: int) -> Steps:
        """Return the steps of a round."""
        return Steps(
            self.config,
            learning_rates=tuple((rate,) for rate in self.learning_rates(index)),
            l2s=(self.config.l2,),
            first=self.first_steps[index],
            seed=(self.seed,),
        )


def round_lengths(n_steps: int, first: int, last: int) -> list[int]:
    """Return the local steps of each round, which add up to `n_steps` exactly.

    A round that starts at the share p of all steps has ``first * (last / first) ** p`` of them,
    rounded: always `first` where `last` is the same. The very last round has what is left.

    Replicas drift apart between two averages, and the more they drift, the farther from the optimum
    their average settles. Many steps per round at first converge fast to its neighbourhood; fewer
    steps towards the end take that bias away.

    References
    ----------
    Wang, Joshi (2019), "Adaptive communication strategies to achieve the best error-runtime
    trade-off in local-update SGD".

    Examples
    --------
    >>> round_lengths(25, 10, 10)
    [10, 10, 5]
    >>> round_lengths(25, 10, 1)
    [10, 4, 3, 2, 2, 1, 1, 1, 1]
    """
    lengths: list[int] = []
    done = 0
    while done < n_steps:
        length = round(first * (last / first) ** (done / n_steps))
        lengths.append(min(length, n_steps - done))
        done += lengths[-1]
    return lengths
