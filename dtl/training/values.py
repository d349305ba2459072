"""Values that training, comparison and tuning take and return."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from dtl.config.plain import from_plain
from dtl.evaluation.values import Occlusion

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Round:
    """One round of training: a row of history.parquet.

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
        Norm of the round's change of the kernel over the norm of the kernel. With a hidden layer
        norms are of both kernels together.
    spread : float
        Root mean square distance of the replicas from their average, over the average's norm.
    step_s, average_s, wait_s : float
        Seconds in local steps (of the slowest task), in averaging, and in all else.
    train_accuracy, validation_accuracy, validation_loss, train_loss : float
        Of all rows, with the parameters at the round's end; NaN in rounds without validation.
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


def to_columns(history: Sequence[Round]) -> dict[str, list[Any]]:
    """Return the fields of all rounds by name."""
    return {f.name: [getattr(row, f.name) for row in history] for f in fields(Round)}


def from_columns(columns: Mapping[str, Sequence[Any]]) -> list[Round]:
    """Return the rounds whose fields `to_columns` returned; a `ValueError` for others."""
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [from_plain(Round, row, f"round {n}") for n, row in enumerate(rows, 1)]


def history_to_bytes(history: Sequence[Round]) -> bytes:
    """Return the bytes of a Parquet file with one row per round."""
    import pyarrow as pa  # not for those who only show these values
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(to_columns(history)), buffer, write_page_checksum=True)
    return buffer.getvalue()


def history_from_bytes(data: bytes) -> list[Round]:
    """Read what `history_to_bytes` wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    return from_columns(table.to_pydict())


@dataclass(frozen=True)
class Contender:
    """One way of training in a comparison, and its result.

    Parameters
    ----------
    name : str
    n_shards, averaging_frequency : int
        0 for a way of training that has none.
    accuracy, log_loss : dict of split name to float
    objective : float
        Mean cross-entropy of the training rows and penalty, nats.
    objective_gap : float
        Its excess over the optimum's, as a share of that; rounding alone makes it negative.
    kernel_distance : float
        Norm of the difference to the optimum's kernel, over the norm of that.
    seconds : float
        From the store to the head.
    bytes_moved : int
        Parameters, means and gradients that tasks gave to others, or features to the driver.
    curve : tuple of (seconds, objective)
        During training; empty where it cannot be observed.
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
    n_images: Mapping[str, int] = field(default_factory=dict)
    """Of each split; empty in what earlier versions stored."""

    def __post_init__(self) -> None:
        for split, n in self.n_images.items():
            if n < 1 or not all(0 <= c.accuracy.get(split, -1) <= 1 for c in self.contenders):
                raise ValueError(f"{split} has {n} images, or an accuracy that is not from 0 to 1")


@dataclass(frozen=True)
class Rung:
    """Scores of a trial after so many passes over the training rows."""

    epoch: float
    train_accuracy: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float


@dataclass(frozen=True)
class Trial:
    """One choice of training's options, and its scores.

    Parameters
    ----------
    learning_rate, l2, dropout, averaging_frequency
        As `TrainConfig` has them.
    rungs : tuple of Rung
        At each cut that it reached with finite scores.
    diverged : bool
        Whether it diverged before the next cut.
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
        Those dropped at the same cut are in the order of their scores there; diverged ones last.
    cuts : tuple of float
        Epochs after which trials were compared; the last is the whole training.
    metric : {"validation_loss", "validation_accuracy"}
        The score that trials were compared by.
    hints : tuple of str
        Advice to those who use the best trial.
    provenance : dict
        Its fingerprint.
    n_validation : int
        Images that the trials were compared on; 0 in what earlier versions stored.
    """

    trials: tuple[Trial, ...]
    cuts: tuple[float, ...]
    metric: str
    hints: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    n_validation: int = 0

    def __post_init__(self) -> None:
        if not all(trial.rungs or trial.diverged for trial in self.trials):
            raise ValueError("a trial has no scores and has not diverged")
        accuracies = [rung.validation_accuracy for t in self.trials for rung in t.rungs]
        if self.n_validation < 0 or (
            self.n_validation and not all(0 <= a <= 1 for a in accuracies)
        ):
            raise ValueError("a validation accuracy is not from 0 to 1, or its images are not")


@dataclass(frozen=True)
class Probed:
    """Accuracy of one method, with so many training images.

    Parameters
    ----------
    method : str
        ``L-BFGS``, or the neighbours that vote, ``5-NN``.
    n_per_class : int
        Training images of each class; 0: all.
    accuracy : float
        The mean of draws, or that of all training images.
    low, high : float
        One standard deviation of the draws to either side; of all training images, the 95 %
        interval.
    l2 : float
        Penalty that was chosen; 0 for neighbours, which have none.
    n_draws : int
    """

    layer: str
    normalize: str
    method: str
    n_per_class: int
    accuracy: float
    low: float
    high: float
    l2: float
    n_draws: int = 1


@dataclass(frozen=True)
class Probe:
    """What features are worth, with few training images and with all.

    `split` is the one whose images were classified.
    """

    results: tuple[Probed, ...]
    split: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers: dict[tuple[str, str, str], set[int]] = {}
        for r in self.results:
            numbers.setdefault((r.layer, r.normalize, r.method), set()).add(r.n_per_class)
        if not numbers or any(n != {0} | next(iter(numbers.values())) for n in numbers.values()):
            raise ValueError("not all methods have the same numbers of images, and all of them")


def to_json(value: Comparison | Tuning | Probe | Occlusion) -> bytes:
    """Return the text of compare.json, tune.json, probe.json or occlusion.json."""
    return (json.dumps(asdict(value), indent=1) + "\n").encode()


def from_json(kind: type[_Value], data: bytes) -> _Value:
    """Read what `to_json` wrote of a value of this type; anything else is a `ValueError`."""
    value: _Value = from_plain(kind, json.loads(data))
    return value
