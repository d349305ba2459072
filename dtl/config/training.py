"""The options of training, and of the commands that compare and tune it."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Literal

from dtl.config.errors import UserError
from dtl.config.options import NO_URL, Section, not_negative, option, positive


@dataclass(frozen=True)
class TrainConfig(Section):
    """How a head is trained."""

    _name: typing.ClassVar = "train"
    # Constants, until training has them as its own.
    lbfgs_tolerance: typing.ClassVar[float] = 1e-5
    lbfgs_max_iterations: typing.ClassVar[int] = 1000
    learning_rate_decay: typing.ClassVar[float] = 0.01
    outer_learning_rate: typing.ClassVar[float] = 1.0
    validate_every: typing.ClassVar[int] = 0
    max_seconds: typing.ClassVar[float] = 0.0
    checkpoint_every: typing.ClassVar[int] = 50
    layer: str = option("", "features to train on; empty: the first of features.layers")
    solver: Literal["averaging", "lbfgs"] = option(
        "averaging", "local SGD and averages; or lbfgs: the exact optimum, one pass a step"
    )
    n_shards: int = option(
        0,
        "replicas that train side by side; 0: one a chunk, at most 8",
        check=not_negative,
        allowed="0 or more",
    )
    epochs: float = option(40.0, "passes over the training rows", check=positive, allowed="above 0")
    batch_size: int = option(32, "rows of one SGD step", check=positive, allowed="1 or more")
    averaging_frequency: int = option(
        10, "batches between two averages", check=positive, allowed="1 or more"
    )
    averaging_frequency_end: int = option(
        0,
        "what it goes down to, geometrically, by the end; 0: it stays",
        check=not_negative,
        allowed="0 or more",
    )
    shards_per_task: int = option(
        0,
        "neighbouring shards that a task trains in turn; 0: as many, up to 4, as keep all threads "
        "busy",
        check=lambda v: v >= 0 and v & (v - 1) == 0,
        allowed="0, 1, 2, 4 or another power of two",
    )
    aggregation_depth: int = option(
        2, "levels of the tree that averages what tasks trained", check=positive,
        allowed="1 or more",
    )  # fmt: skip
    optimizer: Literal["nesterov", "adam", "rmsprop", "adadelta"] = option(
        "nesterov", "of the local steps, as Keras has it; each wants its own learning rate"
    )
    learning_rate: float = option(
        0.02, "of the first step, or after the warm-up", check=positive, allowed="above 0"
    )
    schedule: Literal["cosine", "constant", "exponential", "steps"] = option(
        "cosine", "how the learning rate goes on: down to 0 along a half cosine, or as named"
    )
    learning_rate_steps: str = option(
        "", "steps: epoch:rate, such as 10:0.01,20:0.001; each rate holds from its epoch on"
    )
    warmup_epochs: float = option(
        0.0,
        "passes in which the learning rate rises from 0",
        check=not_negative,
        allowed="0 or more",
    )
    momentum: float = option(
        0.9,
        "of nesterov; 0 is plain SGD",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    l2: float = option(
        1e-2, "penalty l2/2 * sum(kernel ** 2)", check=not_negative, allowed="0 or more"
    )
    hidden_units: int = option(
        0,
        "units of a hidden layer with ReLU, below the softmax layer; 0: none",
        check=not_negative,
        allowed="0 or more",
    )
    hidden_start: Literal["random", "network"] = option(
        "random", "of the hidden layer; network: from the network's own next layer, fc2 after fc1"
    )
    dropout: float = option(
        0.0,
        "share of the softmax layer's inputs, features or hidden units, that a step leaves out",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    label_smoothing: float = option(
        0.0,
        "share of a label that goes to all classes alike",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: a row of a rare class counts more, as in scikit-learn"
    )
    clip_norm: float = option(
        0.0,
        "a gradient of a larger norm is scaled down to it; 0: none is",
        check=not_negative,
        allowed="0 or more",
    )
    average_optimizer: bool = option(
        True, "average its state too; false: start it again after every average"
    )
    outer_momentum: float = option(
        0.0,
        "Nesterov's, over the averages (BMUF, DiLoCo); 0: none",
        check=lambda v: 0 <= v < 1,
        allowed="from 0 to below 1",
    )
    patience: int = option(
        0,
        "stop after this many validations without a better one; 0: never",
        check=not_negative,
        allowed="0 or more",
    )
    stop_on: Literal["validation_loss", "validation_accuracy"] = option(
        "validation_loss", "what a better validation is: a lower loss, or a higher accuracy"
    )
    keep: Literal["last", "best"] = option(
        "last", "which head is head.npz: of the last round, or of the best validation"
    )
    start_from: str = option(
        NO_URL, "head.npz, or --out of a run, whose head is trained further; empty: anew"
    )
    features_in: Literal["memory", "store"] = option(
        "memory", "where features stay: workers' memory, or the store, if it is larger than that"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.averaging_frequency_end > self.averaging_frequency:
            raise UserError(
                "train.averaging_frequency_end must be at most train.averaging_frequency = "
                f"{self.averaging_frequency}. Received: {self.averaging_frequency_end}."
            )
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"train.warmup_epochs must be below train.epochs = {self.epochs:g}. "
                f"Received: {self.warmup_epochs:g}."
            )
        if (self.schedule == "steps") != bool(self.learning_rate_steps):
            raise UserError(
                "train.schedule = steps and train.learning_rate_steps go together. Received: "
                f"schedule = {self.schedule}, learning_rate_steps = {self.learning_rate_steps!r}."
            )
        if self.learning_rate_steps:
            try:
                steps = parse_steps(self.learning_rate_steps)
            except ValueError as error:
                raise UserError(f"train.learning_rate_steps: {error}") from None
            if steps[-1][0] >= self.epochs:
                raise UserError(
                    f"train.learning_rate_steps has a rate for epoch {steps[-1][0]:g}, but "
                    f"training ends after train.epochs = {self.epochs:g}. Leave it out, or "
                    "train longer."
                )
        if self.hidden_start == "network" and not self.hidden_units:
            raise UserError(
                "train.hidden_start = network is of a hidden layer, and train.hidden_units = 0. "
                "Give the number of units of the network's layer, such as 4096 for VGG16's fc2."
            )
        if self.hidden_start == "network" and self.start_from:
            raise UserError(
                "train.hidden_start = network and train.start_from are two starts. Give one."
            )
        if self.solver == "lbfgs" and self.hidden_units:
            raise UserError(
                "train.solver = lbfgs finds the one optimum of a convex problem, and that of a "
                f"head with train.hidden_units = {self.hidden_units} is none. Use averaging."
            )
        if self.solver == "lbfgs":
            changed = [
                name
                for name, usual in (
                    ("dropout", 0.0), ("label_smoothing", 0.0), ("class_weights", "none"),
                )
                if getattr(self, name) != usual
            ]  # fmt: skip
            if changed:
                raise UserError(
                    f"train.{changed[0]} is for train.solver = averaging; lbfgs minimises the "
                    "plain objective. Leave it out, or change the solver."
                )


@dataclass(frozen=True)
class CompareConfig(Section):
    """Which ways of training are compared."""

    _name: typing.ClassVar = "compare"
    frequencies: tuple[int, ...] = option(
        (1, 10, 50),
        "batches between two averages; 1 is synchronous SGD",
        check=lambda v: bool(v) and min(v) > 0,
        allowed="numbers of 1 or more",
    )
    shards: tuple[int, ...] = option(
        (1, 4, 8),
        "replicas that train side by side; not more than chunks",
        check=lambda v: bool(v) and min(v) > 0,
        allowed="numbers of 1 or more",
    )
    sklearn_mib: int = option(
        2048,
        "MiB of features that scikit-learn may hold on the driver; 0: without scikit-learn",
        check=not_negative,
        allowed="0 or more",
    )


@dataclass(frozen=True)
class TuneConfig(Section):
    """Which options of training are searched for, and how."""

    _name: typing.ClassVar = "tune"
    first_epochs: typing.ClassVar[float] = 10.0
    method: Literal["grid", "random"] = option(
        "grid", "every combination of the values below, or n_trials drawn at random"
    )
    n_trials: int = option(
        20, "random: how many combinations are drawn", check=positive, allowed="1 or more"
    )
    learning_rates: tuple[float, ...] = option(
        (0.003, 0.01, 0.03, 0.1),
        "values of train.learning_rate; random: log-uniform from the least to the largest",
        check=lambda v: bool(v) and all(0 < rate < math.inf for rate in v),
        allowed="numbers above 0",
    )
    l2s: tuple[float, ...] = option(
        (0.001, 0.003, 0.01, 0.03, 0.1),
        "values of train.l2; random: log-uniform from the least to the largest",
        check=lambda v: bool(v) and all(0 <= l2 < math.inf for l2 in v),
        allowed="numbers of 0 or more",
    )
    dropouts: tuple[float, ...] = option(
        (),
        "values of train.dropout; empty: as train says",
        check=lambda v: all(0 <= dropout < 1 for dropout in v),
        allowed="numbers from 0 to below 1",
    )
    frequencies: tuple[int, ...] = option(
        (),
        "values of train.averaging_frequency; empty: as train says",
        check=lambda v: all(frequency > 0 for frequency in v),
        allowed="numbers of 1 or more",
    )
    eta: int = option(
        3,
        "at each cut the best goes on, one trial in so many; 1: all go on to the end",
        check=positive,
        allowed="1 or more",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "random" and min(self.l2s) == 0:
            raise UserError(
                "tune.l2s must be above 0 for tune.method = random, which draws between their "
                f"logarithms. Received: {self.l2s}. Leave 0 out, or choose grid."
            )


def parse_steps(text: str) -> list[tuple[float, float]]:
    """Learning rates given by hand: the epochs from which they hold, and the rates.

    Parameters
    ----------
    text : str
        ``epoch:rate`` pairs with commas between them, the epochs growing.

    Raises
    ------
    UserError
        For a text that is not such.

    Examples
    --------
    >>> parse_steps("10:0.01, 20:0.001")
    [(10.0, 0.01), (20.0, 0.001)]
    >>> parse_steps("10=0.01")
    Traceback (most recent call last):
        ...
    dtl.config.errors.UserError: Steps are epoch:rate with commas between, such as 10:0.01,...
    """
    wrong = (
        "Steps are epoch:rate with commas between, such as 10:0.01,20:0.001. "
        f"Received: {text!r}, of which "
    )
    steps = []
    for part in text.split(","):
        epoch, _, rate = part.partition(":")
        try:
            steps.append((float(epoch), float(rate)))
        except ValueError:
            raise UserError(f"{wrong}{part!r} is none.") from None
    epochs, rates = zip(*steps, strict=True)
    if not all(0 <= epoch < math.inf for epoch in epochs):
        raise UserError(f"{wrong}an epoch is below 0 or not finite.")
    if list(epochs) != sorted(set(epochs)):
        raise UserError(f"{wrong}the epochs do not grow.")
    if not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"{wrong}a rate is not above 0, or not finite.")
    return steps
