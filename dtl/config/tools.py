"""The options of what goes beside a run, each declared once, as in `dtl.config.sections`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dtl.config.options import BELOW_1, Rule, Section, above, at_least, each, option

# fmt: off


@dataclass(frozen=True)
class CompareConfig(Section):
    """Which ways of training are compared."""

    frequencies: tuple[int, ...] = option((1, 10, 50),
        "batches between two averages; 1 is synchronous SGD", each(at_least(1)))
    shards: tuple[int, ...] = option((1, 4, 8),
        "replicas that train side by side, at most one per chunk", each(at_least(1)))
    sklearn_mib: int = option(2048,
        "MiB of features for scikit-learn on the driver; 0: leave it out", at_least(0))


@dataclass(frozen=True)
class TuneConfig(Section):
    """Which options of training are searched for, and how."""

    method: Literal["grid", "random"] = option("grid",
        "every combination of the values, or n_trials at random")
    n_trials: int = option(20, "combinations that random draws", at_least(1))
    learning_rates: tuple[float, ...] = option((0.003, 0.01, 0.03, 0.1),
        "values of train.learning_rate; random: log-uniform between them",
        each(Rule(lambda rate: 0 < rate < math.inf, "above 0")))
    l2s: tuple[float, ...] = option((0.001, 0.003, 0.01, 0.03, 0.1),
        "values of train.l2; random: log-uniform between them",
        each(Rule(lambda l2: 0 <= l2 < math.inf, "0 or more")))
    dropouts: tuple[float, ...] = option((),
        "values of train.dropout; empty: as train says", each(BELOW_1, may_be_empty=True))
    frequencies: tuple[int, ...] = option((),
        "values of train.averaging_frequency; empty: as train says",
        each(at_least(1), may_be_empty=True))
    eta: int = option(3, "trials per cut of which the best goes on; 1: all do", at_least(1))

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        yield self.method == "random" and min(self.l2s) == 0, (
            "tune.l2s must be above 0 for tune.method = random, which draws between their "
            f"logarithms. Received: {self.l2s}. Leave 0 out, or choose grid."
        )


@dataclass(frozen=True)
class PackConfig(Section):
    """How images are packed into tars."""

    shard_mib: int = option(256, "MiB of one tar, which a worker holds in memory", at_least(1))


@dataclass(frozen=True)
class CheckConfig(Section):
    """How label errors and other faults of the images are looked for."""

    folds: int = option(5,
        "parts of the images, each judged by a head that was trained on the others", at_least(2))
    normalize: Literal["standardise", "l2", "sqrt-l2"] = option("sqrt-l2",
        "features of these heads, as train.normalize")
    l2: float = option(0.1, "penalty of these heads, as train.l2", above(0))
