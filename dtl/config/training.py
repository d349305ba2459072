"""The options of training, and of the commands that compare and tune it."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dtl.config.errors import UserError
from dtl.config.options import BELOW_1, NO_URL, Rule, Section, above, at_least, each, option


@dataclass(frozen=True)
class TrainConfig(Section):
    """How a head is trained."""

    _name: typing.ClassVar = "train"
    layer: str = option("", "layer to train on; empty: the first of features.layers")
    solver: Literal["averaging", "lbfgs"] = option(
        "averaging", "averaging: local SGD; lbfgs: the exact optimum, in one pass per step"
    )
    n_shards: int = option(0, "replicas side by side; 0: one per chunk, at most 8", at_least(0))
    epochs: float = option(40.0, "passes over the training rows", above(0))
    batch_size: int = option(32, "rows of one step", at_least(1))
    averaging_frequency: int = option(10, "batches between two averages", at_least(1))
    averaging_frequency_end: int = option(
        0, "the same at the end, reached geometrically; 0: as at the start", at_least(0)
    )
    shards_per_task: int = option(
        0, "neighbouring shards that one task trains in turn; 0: up to 4, if threads stay busy",
        Rule(lambda v: v >= 0 and v & (v - 1) == 0, "0, 1, 2, 4 or another power of two"),
    )  # fmt: skip
    aggregation_depth: int = option(2, "levels of the tree that averages", at_least(1))
    optimizer: Literal["nesterov", "adam", "rmsprop", "adadelta"] = option(
        "nesterov", "optimizer of the local steps, as in Keras; each needs its own learning rate"
    )
    learning_rate: float = option(0.02, "learning rate at first, after any warm-up", above(0))
    schedule: Literal["cosine", "constant", "exponential", "steps"] = option(
        "cosine", "learning rate over time: cosine ends at 0, exponential at a hundredth"
    )
    learning_rate_steps: str = option(
        "", "for steps: epoch:rate, such as 10:0.01,20:0.001; each rate holds from its epoch on"
    )
    warmup_epochs: float = option(0.0, "passes in which the rate rises from 0", at_least(0))
    momentum: float = option(0.9, "momentum of nesterov; 0 is plain SGD", BELOW_1)
    l2: float = option(1e-2, "penalty l2/2 * sum(kernel ** 2)", at_least(0))
    hidden_units: int = option(
        0, "units of a hidden layer with ReLU; 0: no such layer", at_least(0)
    )
    hidden_start: Literal["random", "network"] = option(
        "random", "first weights of the hidden layer; network: of the next layer, fc2 after fc1"
    )
    dropout: float = option(0.0, "share of the softmax layer's inputs left out of a step", BELOW_1)
    label_smoothing: float = option(0.0, "share of a label spread evenly over all classes", BELOW_1)
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: a row of a rare class counts more, as in scikit-learn"
    )
    clip_norm: float = option(0.0, "largest norm of a gradient; 0: no limit", at_least(0))
    average_optimizer: bool = option(
        True, "average the optimizer's state too; false: reset it after every average"
    )
    outer_momentum: float = option(
        0.0, "Nesterov momentum over the averages (BMUF, DiLoCo); 0: none", BELOW_1
    )
    patience: int = option(0, "worse validations in a row that end training; 0: never", at_least(0))
    stop_on: Literal["validation_loss", "validation_accuracy"] = option(
        "validation_loss", "measure of a better validation: a lower loss, or a higher accuracy"
    )
    keep: Literal["last", "best"] = option(
        "last", "head that becomes head.npz: of the last round, or of the best validation"
    )
    start_from: str = option(
        NO_URL, "head.npz, or out of a run, whose head is trained further; empty: a new head"
    )
    features_in: Literal["memory", "store"] = option(
        "memory", "where features stay: memory of the workers, or the store if that is too small"
    )

    def _conflicts(self) -> Iterator[str]:
        if self.averaging_frequency_end > self.averaging_frequency:
            yield (
                "train.averaging_frequency_end must be at most train.averaging_frequency = "
                f"{self.averaging_frequency}. Received: {self.averaging_frequency_end}."
            )
        if self.warmup_epochs >= self.epochs:
            yield (
                f"train.warmup_epochs must be below train.epochs = {self.epochs:g}. "
                f"Received: {self.warmup_epochs:g}."
            )
        if (self.schedule == "steps") != bool(self.learning_rate_steps):
            yield (
                "train.schedule = steps and train.learning_rate_steps go together. Received: "
                f"schedule = {self.schedule}, learning_rate_steps = {self.learning_rate_steps!r}."
            )
        if self.learning_rate_steps:
            last, _ = parse_steps(self.learning_rate_steps)[-1]
            if last >= self.epochs:
                yield (
                    f"train.learning_rate_steps has a rate for epoch {last:g}, but training ends "
                    f"after train.epochs = {self.epochs:g}. Leave it out, or train longer."
                )
        if self.hidden_start == "network" and not self.hidden_units:
            yield (
                "train.hidden_start = network needs a hidden layer, and train.hidden_units = 0. "
                "Give the number of units of the network's layer, such as 4096 for VGG16's fc2."
            )
        if self.hidden_start == "network" and self.start_from:
            yield "train.hidden_start = network and train.start_from are two starts. Give one."
        if self.solver == "lbfgs":
            if self.hidden_units:
                yield (
                    "train.solver = lbfgs finds the one optimum of a convex problem. A head with "
                    f"train.hidden_units = {self.hidden_units} has none. Use averaging."
                )
            for name in ("dropout", "label_smoothing", "class_weights"):
                if getattr(self, name) not in (0, "none"):
                    yield (
                        f"train.{name} is for train.solver = averaging; lbfgs minimises the plain "
                        "objective. Leave it out, or change the solver."
                    )


@dataclass(frozen=True)
class CompareConfig(Section):
    """Which ways of training are compared."""

    _name: typing.ClassVar = "compare"
    frequencies: tuple[int, ...] = option(
        (1, 10, 50), "batches between two averages; 1 is synchronous SGD", each(at_least(1))
    )
    shards: tuple[int, ...] = option(
        (1, 4, 8), "replicas that train side by side, at most one per chunk", each(at_least(1))
    )
    sklearn_mib: int = option(
        2048, "MiB of features for scikit-learn on the driver; 0: leave it out", at_least(0)
    )


@dataclass(frozen=True)
class TuneConfig(Section):
    """Which options of training are searched for, and how."""

    _name: typing.ClassVar = "tune"
    method: Literal["grid", "random"] = option(
        "grid", "every combination of the values, or n_trials at random"
    )
    n_trials: int = option(20, "combinations that random draws", at_least(1))
    learning_rates: tuple[float, ...] = option(
        (0.003, 0.01, 0.03, 0.1),
        "values of train.learning_rate; random: log-uniform between them",
        each(Rule(lambda rate: 0 < rate < math.inf, "above 0")),
    )
    l2s: tuple[float, ...] = option(
        (0.001, 0.003, 0.01, 0.03, 0.1),
        "values of train.l2; random: log-uniform between them",
        each(Rule(lambda l2: 0 <= l2 < math.inf, "0 or more")),
    )
    dropouts: tuple[float, ...] = option(
        (), "values of train.dropout; empty: as train says", each(BELOW_1, may_be_empty=True)
    )
    frequencies: tuple[int, ...] = option(
        (), "values of train.averaging_frequency; empty: as train says",
        each(at_least(1), may_be_empty=True),
    )  # fmt: skip
    eta: int = option(3, "trials per cut of which the best goes on; 1: all do", at_least(1))

    def _conflicts(self) -> Iterator[str]:
        if self.method == "random" and min(self.l2s) == 0:
            yield (
                "tune.l2s must be above 0 for tune.method = random, which draws between their "
                f"logarithms. Received: {self.l2s}. Leave 0 out, or choose grid."
            )


def parse_steps(text: str) -> list[tuple[float, float]]:
    """Parse learning rates given by hand.

    Parameters
    ----------
    text : str
        ``epoch:rate`` pairs with commas between them, the epochs growing.

    Returns
    -------
    list of (float, float)
        The epochs from which the rates hold, and the rates.

    Raises
    ------
    UserError
        For any other text.

    Examples
    --------
    >>> parse_steps("10:0.01, 20:0.001")
    [(10.0, 0.01), (20.0, 0.001)]
    >>> parse_steps("10=0.01")
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: train.learning_rate_steps must be epoch:rate with commas ...
    """
    try:
        steps = [(float(epoch), float(rate)) for epoch, rate in
                 (pair.split(":") for pair in text.split(","))]  # fmt: skip
    except ValueError:
        problem = "a pair is not of two numbers"
    else:
        epochs, rates = zip(*steps, strict=True)
        if not all(0 <= epoch < math.inf for epoch in epochs):
            problem = "an epoch is below 0 or not finite"
        elif list(epochs) != sorted(set(epochs)):
            problem = "the epochs do not grow"
        elif not all(0 < rate < math.inf for rate in rates):
            problem = "a rate is not above 0, or not finite"
        else:
            return steps
    raise UserError(
        "train.learning_rate_steps must be epoch:rate with commas between, such as "
        f"10:0.01,20:0.001. Received: {text!r}, where {problem}."
    )
