"""Comparison of averaging, in several ways, with the exact optimum on the same features."""

from __future__ import annotations

import importlib.util
import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.spread import count_tree_inputs, group_shards
from dtl.config import CompareConfig, TrainConfig, to_fingerprint
from dtl.config.errors import MissingExtraError, UserError
from dtl.evaluation import scoring
from dtl.head import schedules
from dtl.head.model import Head
from dtl.head.optimizers import OPTIMIZERS
from dtl.images.values import SPLITS, TRAIN
from dtl.training import trainer
from dtl.training.spec import TrainingSpec
from dtl.training.values import Comparison, Contender, Round

log = logging.getLogger(__name__)

_EXACT = "L-BFGS"
_SKLEARN = "scikit-learn"
_SKLEARN_ITERATIONS = 10_000
_MOVE_BYTES = ("aggregation_depth", "shards_per_task")
"""Options that no head follows from, but the bytes moved for it."""


def provenance(spec: TrainingSpec, compared: CompareConfig) -> dict[str, Any]:
    """Return the fingerprint of a comparison, as JSON has it; machines have no part in it."""
    moves = {name: getattr(spec.config, name) for name in _MOVE_BYTES}
    return spec.provenance | {
        "train": spec.provenance["train"] | moves, "compare": to_fingerprint(compared)
    }  # fmt: skip


def compare(spec: TrainingSpec, compared: CompareConfig, client: Client) -> Comparison:
    """Train on a store by L-BFGS, by averaging in several ways, and by scikit-learn.

    The spec's `solver` is not read, nor are `n_shards` and `averaging_frequency` for averaging. It
    raises as `check`, `check_store` and `trainer.train` do.

    Notes
    -----
    scikit-learn computes on the driver, which holds the training rows for it. Nothing else in this
    package brings features there.
    """
    check(spec.config, compared)
    check_store(spec, compared)
    # All ways take the same batches, though more shards have fewer rows each.
    spec = replace(spec, config=schedules.with_batch_size(spec.config, spec.n_train))
    optimum, seconds, history = _train(spec, client, _EXACT, solver="lbfgs")
    contenders: list[Contender] = []

    def add(
        name: str, head: Head, way: tuple[int, int], seconds: float, n_bytes: int,
        history: list[Round],
    ) -> None:  # fmt: skip
        scores = _scores(spec, head, client)
        least = contenders[0].objective if contenders else scores["objective"]
        n_shards, frequency = way
        contender = Contender(
            name=name,
            n_shards=n_shards,
            averaging_frequency=frequency,
            objective_gap=scores["objective"] / least - 1,
            kernel_distance=_norm(head.kernel - optimum.kernel) / _norm(optimum.kernel),
            seconds=seconds,
            bytes_moved=n_bytes,
            curve=_curve(history, seconds, spec.config.l2),
            **scores,
        )
        contenders.append(contender)

    n_tasks, n_passes = _count_tasks(spec, spec.n_shards, client), round(history[-1].epoch)
    n_bytes = n_passes * _pass_bytes(optimum, n_tasks)
    add(_EXACT, optimum, (spec.n_shards, 0), seconds, n_bytes, history)
    for n_shards, frequency in list_ways(compared, spec.store.n_chunks):
        name = _name(n_shards, frequency)
        head, seconds, history = _train(
            spec, client, name, solver="averaging", n_shards=n_shards,
            averaging_frequency=frequency,
        )  # fmt: skip
        n_tasks = _count_tasks(spec, n_shards, client)
        n_bytes = len(history) * _round_bytes(optimum, n_tasks, spec.config)
        add(name, head, (n_shards, frequency), seconds, n_bytes, history)
    if compared.sklearn_mib:
        log.info("comparing: %s, on the driver", _SKLEARN)
        started = time.monotonic()
        features, labels = _pull(spec, optimum)
        head = _solve_by_sklearn(features, labels, optimum, spec.config.l2)
        seconds = time.monotonic() - started
        n_bytes = features.size * spec.store.dtype(spec.layer).itemsize
        add(_SKLEARN, head, (0, 0), seconds, n_bytes, [])
    n_images = {
        name: int((spec.split == SPLITS.index(name)).sum()) for name in contenders[0].accuracy
    }
    return Comparison(tuple(contenders), provenance(spec, compared), n_images)


def check(config: TrainConfig, compared: CompareConfig) -> None:
    """Refuse what `compare` cannot do on any store.

    That is a hidden layer, an objective that L-BFGS does not minimise, and options that end a
    training before its last round or choose another round's weights; or scikit-learn, where it is
    to be compared and is not installed.
    """
    if config.hidden_units:
        raise UserError(
            "compare measures distances from the one optimum of a softmax layer. A head with "
            f"`train.hidden_units` = {config.hidden_units} has none. Give 0."
        )
    for name, usual in (("keep", "last"), ("patience", 0)):
        if (value := getattr(config, name)) != usual:
            raise UserError(
                f"compare trains every way to its last round; `train.{name}` = {value} is for "
                f"training alone. Give {usual}."
            )
    replace(config, solver="lbfgs")  # refuses options that L-BFGS does not have
    if compared.sklearn_mib and importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError(
            "Comparing needs scikit-learn. Install it: pip install scikit-learn; or leave it out: "
            "set `compare.sklearn_mib` = 0."
        )


def check_store(spec: TrainingSpec, compared: CompareConfig) -> None:
    """Refuse fewer chunks than shards, and rows for which scikit-learn has too little memory."""
    _ = spec.n_shards  # raises
    n_train = int((spec.split == TRAIN).sum())
    needed_mib = n_train * spec.store.n_features(spec.layer) * 4 / 2**20
    if 0 < compared.sklearn_mib < needed_mib:
        raise UserError(
            f"scikit-learn would hold {needed_mib:,.0f} MiB of features on the driver, more than "
            f"`compare.sklearn_mib` = {compared.sklearn_mib}. Raise that if the memory is there, "
            "or set it to 0 to leave scikit-learn out."
        )


def list_ways(compared: CompareConfig, n_chunks: int) -> list[tuple[int, int]]:
    """Return the pairs of shards and averaging frequency that are compared.

    The average of one replica is that replica, so a single shard is trained at one frequency only.

    Examples
    --------
    >>> list_ways(CompareConfig(frequencies=(1, 10), shards=(1, 4, 8)), n_chunks=5)
    [(1, 10), (4, 1), (4, 10), (5, 1), (5, 10)]
    """
    shards = list(dict.fromkeys(min(n, n_chunks) for n in compared.shards))
    return [
        (n, frequency)
        for n in shards
        for frequency in (compared.frequencies if n > 1 else compared.frequencies[-1:])
    ]


def _train(
    spec: TrainingSpec, client: Client, name: str, **options: Any
) -> tuple[Head, float, list[Round]]:
    log.info("comparing: %s", name)
    started = time.monotonic()
    spec = replace(spec, config=replace(spec.config, **options))
    trained = trainer.train(spec, client, calibrate=False)  # the objective knows no temperature
    return trained.head, time.monotonic() - started, trained.history


def _count_tasks(spec: TrainingSpec, n_shards: int, client: Client) -> int:
    return len(group_shards(client, n_shards, spec.config.shards_per_task))


def _name(n_shards: int, frequency: int) -> str:
    if n_shards == 1:
        return "SGD, 1 shard"
    if frequency == 1:
        return f"synchronous SGD, {n_shards} shards"
    return f"averaged every {frequency}, {n_shards} shards"


def _scores(spec: TrainingSpec, head: Head, client: Client) -> dict[str, Any]:
    scores = scoring.evaluate(spec.store, head, client, n_mistakes=0).scores
    penalty = 0.5 * spec.config.l2 * _norm(head.kernel) ** 2
    return {
        "accuracy": {name: s.accuracy for name, s in scores.items()},
        "log_loss": {name: s.log_loss for name, s in scores.items()},
        "objective": scores[SPLITS[TRAIN]].log_loss + penalty,
    }


def _norm(kernel: NDArray[Any]) -> float:
    return float(np.linalg.norm(kernel.astype(np.float64)))


def _curve(history: list[Round], seconds: float, l2: float) -> tuple[tuple[float, float], ...]:
    """Return the objective over time; loading the features comes before the first round."""
    if not history:
        return ()
    took = np.cumsum([r.step_s + r.average_s + r.wait_s for r in history])
    return tuple(
        (float(at), r.train_loss + 0.5 * l2 * r.kernel_norm**2)
        for at, r in zip(took + (seconds - took[-1]), history, strict=True)
        if np.isfinite(r.train_loss)
    )


# --- bytes ---------------------------------------------------------------------------------------


def _pass_bytes(head: Head, n_tasks: int) -> int:
    """Count the bytes of a pass.

    float32 parameters go to all tasks, float64 gradients to be added up, and a float32 one back.
    """
    n = head.kernel.size + head.bias.size
    return n * (4 * (1 + n_tasks) + 8 * count_tree_inputs(n_tasks) + 4)


def _round_bytes(head: Head, n_tasks: int, config: TrainConfig) -> int:
    """Count the bytes of a round: float32 parameters and state.

    They go to all tasks and to the last average, and from every task to its average.
    """
    n = (head.kernel.size + head.bias.size) * (1 + len(OPTIMIZERS[config.optimizer].state))
    return 4 * n * (n_tasks + 1 + count_tree_inputs(n_tasks, config.aggregation_depth))


# --- scikit-learn --------------------------------------------------------------------------------


def _pull(spec: TrainingSpec, head: Head) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Read the training rows, scaled as for `head`."""
    store, rows = spec.store, spec.split == TRAIN
    features = np.empty((int(rows.sum()), store.n_features(spec.layer)), np.float32)
    first = 0
    for chunk in range(store.n_chunks):
        part = store.read(spec.layer, chunk)[rows[store.rows(chunk)]]
        features[first : first + len(part)] = head.scaling.apply(part)
        first += len(part)
    return features, store.read("label")[rows]


def _solve_by_sklearn(
    features: NDArray[np.float32], labels: NDArray[np.int32], like: Head, l2: float
) -> Head:
    """Fit scikit-learn's ``LogisticRegression`` to the rows, as a head like the optimum's."""
    from sklearn.linear_model import LogisticRegression

    n, present = len(labels), np.unique(labels)
    # For two classes it learns one kernel w, their difference: ours are -w/2 and w/2, whose
    # penalty is half of w's.
    penalty = l2 / 2 if len(present) == 2 else l2
    strength = 1 / (penalty * n) if l2 else np.inf
    model = LogisticRegression(C=strength, max_iter=_SKLEARN_ITERATIONS).fit(features, labels)
    coef, intercept = model.coef_, model.intercept_
    if len(present) == 2:
        coef = np.concatenate([-coef, coef]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    kernel = np.zeros_like(like.kernel)
    # A class without training rows gets a bias so low that no loss shows it.
    bias = np.full_like(like.bias, intercept.min() - 30)
    kernel[:, present], bias[present] = coef.T, intercept
    return replace(like, kernel=kernel, bias=bias)
