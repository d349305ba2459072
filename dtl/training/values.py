"""What training, comparison and tuning tell of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Round:
    """What one round of training did: a row of history.parquet.

    Parameters
    ----------
    round, epoch : int, float
        Counted from 1; passes over the training rows at the round's end.
    loss : float
        Mean cross-entropy of the round's batches, over shards weighted by their rows (nats).
    shard_loss : tuple of float
        The same for each shard; NaN for a shard without training rows.
    learning_rate : float
        At the round's first step.
    update_ratio : float
        Norm of the round's change of the kernel over the norm of the kernel; here and below, with
        a hidden layer, of both kernels together.
    spread : float
        Root mean square distance of the replicas from their average, over the average's norm.
    step_s, average_s, wait_s : float
        Seconds in local steps (of the slowest task), in averaging, and the rest.
    train_accuracy, validation_accuracy, validation_loss, train_loss : float
        Of all rows, with the parameters at the round's end. NaN in rounds without validation.
    kernel_norm : float
        Of the kernel at the round's end; with `train_loss` it gives the objective.
    """

    round: int
    epoch: float
    loss: float
    shard_loss: tuple[float, ...]
    learning_rate: float
    update_ratio: float
    spread: float
    step_s: float
    average_s: float
    wait_s: float
    train_accuracy: float = float("nan")
    validation_accuracy: float = float("nan")
    validation_loss: float = float("nan")
    train_loss: float = float("nan")
    kernel_norm: float = float("nan")


@dataclass(frozen=True)
class Contender:
    """One way of training in a comparison, and what came of it.

    Parameters
    ----------
    name : str
    n_shards, averaging_frequency : int
        0 where that means nothing.
    accuracy, log_loss : dict of split name to float
    objective : float
        Mean cross-entropy of the training rows and penalty, nats.
    objective_gap : float
        How far that is above the optimum's, as a share of it; below 0 by rounding alone.
    kernel_distance : float
        Norm of the difference to the optimum's kernel, over that one's norm.
    seconds : float
        From the store to the head.
    bytes_moved : int
        Parameters, means and gradients that tasks gave to others, or features to the driver.
    curve : tuple of (seconds, objective)
        On the way; only the end where the way is not known.
    """

    name: str
    n_shards: int
    averaging_frequency: int
    accuracy: Mapping[str, float]
    log_loss: Mapping[str, float]
    objective: float
    objective_gap: float
    kernel_distance: float
    seconds: float
    bytes_moved: int
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Comparison:
    """Ways of training on the same features, the exact optimum first."""

    contenders: tuple[Contender, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rung:
    """How good a trial was after so many passes over the training rows."""

    epoch: float
    train_accuracy: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float


@dataclass(frozen=True)
class Trial:
    """One choice of training's options, and how it did.

    Parameters
    ----------
    learning_rate, l2, dropout, averaging_frequency
        As `TrainConfig` has them.
    rungs : tuple of Rung
        At each cut that it came to, with finite scores.
    diverged : bool
        Before the next cut.
    """

    learning_rate: float
    l2: float
    dropout: float
    averaging_frequency: int
    rungs: tuple[Rung, ...] = ()
    diverged: bool = False


@dataclass(frozen=True)
class Tuning:
    """Trials of training's options, the best first.

    Parameters
    ----------
    trials : tuple of Trial
        Those that were dropped at the same cut, by what they had there; diverged ones last.
    cuts : tuple of float
        Epochs after which trials were compared; the last is the whole training.
    metric : {"validation_loss", "validation_accuracy"}
        By which.
    hints : tuple of str
        What whoever takes the best trial should know.
    provenance : dict
        All that it follows from.
    """

    trials: tuple[Trial, ...]
    cuts: tuple[float, ...]
    metric: str
    hints: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
