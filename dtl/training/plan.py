"""The arithmetic of rounds, steps and learning rates."""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config import TrainConfig
from dtl.config.training import parse_steps
from dtl.head import schedules


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
        given = parse_steps(by_hand) if by_hand else []

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
