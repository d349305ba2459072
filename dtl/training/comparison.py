"""How good averaging is: the same features by other ways of training, against the exact optimum."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.spread import group_shards, tree_inputs
from dtl.config import CompareConfig, TrainConfig, to_fingerprint
from dtl.evaluation import scoring
from dtl.features.store import FeatureStore
from dtl.head import descent
from dtl.head.model import Head
from dtl.images.values import SPLITS, TRAIN
from dtl.training import trainer
from dtl.training.values import Comparison, Contender, Round

log = logging.getLogger(__name__)

_EXACT = "L-BFGS"
_SKLEARN = "scikit-learn"
_SKLEARN_ITERATIONS = 10_000
_MOVERS = ("aggregation_depth", "shards_per_task")


def provenance(
    store: FeatureStore, config: TrainConfig, compared: CompareConfig, layer: str, seed: int
) -> dict[str, Any]:
    """All that a comparison follows from but the machines, as JSON has it."""
    made_from = trainer.provenance(store, config, layer, seed) | {
        "compare": to_fingerprint(compared)
    }
    # A head does not follow from them, but what is moved for it does.
    made_from["train"] |= {name: getattr(config, name) for name in _MOVERS}
    return made_from


def compare(
    store: FeatureStore,
    config: TrainConfig,
    compared: CompareConfig,
    layer: str,
    seed: int,
    client: Client,
) -> Comparison:
    """Train on a store by L-BFGS, by averaging in several ways, and by scikit-learn.

    Parameters
    ----------
    store : FeatureStore
        Finished, with a split.
    config : TrainConfig
        Of all but `solver`, and of averaging but `n_shards` and `averaging_frequency`.
    compared : CompareConfig
    layer : str
        Whose features.
    client : distributed.Client

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError, ImportError
        As `check` and `check_store`; or as `train`.

    Notes
    -----
    scikit-learn computes on the driver, which holds the training rows for it. Nothing else in this
    package brings features there.
    """
    check(config, compared)
    check_store(store, config, compared, layer)
    n_shards = trainer.count_shards(store, config)
    n_tasks = len(group_shards(client, n_shards, config.shards_per_task))
    way = replace(config, solver="lbfgs")
    optimum, seconds, history = _train(store, way, layer, seed, client, _EXACT)
    n_passes = round(history[-1].epoch)
    first = Contender(
        name=_EXACT,
        n_shards=n_shards,
        averaging_frequency=0,
        objective_gap=0.0,
        kernel_distance=0.0,
        seconds=seconds,
        bytes_moved=n_passes * _pass_bytes(optimum, n_tasks),
        curve=_curve(history, seconds, config.l2),
        **_scores(store, optimum, config.l2, client),
    )
    contenders = [first]

    def keep(name: str, head: Head, **told: Any) -> None:
        scores = _scores(store, head, config.l2, client)
        contenders.append(
            Contender(
                name=name,
                objective_gap=scores["objective"] / first.objective - 1,
                kernel_distance=_norm(head.kernel - optimum.kernel) / _norm(optimum.kernel),
                **told,
                **scores,
            )
        )

    for n_shards, frequency in ways(compared, store.n_chunks):
        name = _name(n_shards, frequency)
        way = replace(config, solver="averaging", n_shards=n_shards, averaging_frequency=frequency)
        n_tasks = len(group_shards(client, n_shards, config.shards_per_task))
        head, seconds, history = _train(store, way, layer, seed, client, name)
        keep(
            name,
            head,
            n_shards=n_shards,
            averaging_frequency=frequency,
            seconds=seconds,
            bytes_moved=len(history) * _round_bytes(optimum, n_tasks, config),
            curve=_curve(history, seconds, config.l2),
        )
    if compared.sklearn_mib:
        log.info("comparing: %s, on the driver", _SKLEARN)
        started = time.monotonic()
        features, labels = _pull(store, layer, optimum)
        head = _solve_by_sklearn(features, labels, optimum, config.l2)
        seconds = time.monotonic() - started
        keep(
            _SKLEARN,
            head,
            n_shards=0,
            averaging_frequency=0,
            seconds=seconds,
            bytes_moved=features.size * store.dtype(layer).itemsize,
            curve=(),
        )
    return Comparison(tuple(contenders), provenance(store, config, compared, layer, seed))


def check(config: TrainConfig, compared: CompareConfig) -> None:
    """Refuse what `compare` cannot do on any store.

    Raises
    ------
    ValueError
        For a hidden layer, an objective that L-BFGS does not minimise, or a training that ends
        before its last round or with another's weights.
    ImportError
        If scikit-learn is asked for and not installed.
    """
    if config.hidden_units:
        raise ValueError(
            "compare measures distances from the one optimum of a softmax layer; a head with "
            f"train.hidden_units = {config.hidden_units} has no such. Give --train.hidden-units 0."
        )
    for name, usual in (("keep", "last"), ("patience", 0), ("max_seconds", 0)):
        if (value := getattr(config, name)) != usual:
            raise ValueError(
                f"compare trains every way to its last round; train.{name} = {value} is for "
                f"training alone. Give --train.{name.replace('_', '-')} {usual}."
            )
    replace(config, solver="lbfgs")  # says which options that has not
    if compared.sklearn_mib and importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            "Comparing needs scikit-learn. Install it: pip install scikit-learn; or leave it out: "
            "--compare.sklearn-mib 0."
        )


def check_store(
    store: FeatureStore, config: TrainConfig, compared: CompareConfig, layer: str
) -> None:
    """Refuse a store that `compare` has no room for, before any work.

    Raises
    ------
    ValueError
        If scikit-learn would need more memory on the driver than it may have, or for more shards
        than chunks.
    """
    trainer.count_shards(store, config)
    n_train = int((store.read("split") == TRAIN).sum())
    needed_mib = n_train * store.n_features(layer) * 4 / 2**20
    if 0 < compared.sklearn_mib < needed_mib:
        raise ValueError(
            f"scikit-learn would hold {needed_mib:,.0f} MiB of features on the driver, more than "
            f"compare.sklearn_mib = {compared.sklearn_mib}. Raise that if the memory is there, or "
            "leave scikit-learn out: --compare.sklearn-mib 0."
        )


def ways(compared: CompareConfig, n_chunks: int) -> list[tuple[int, int]]:
    """The pairs of shards and averaging frequency that are compared.

    The average of one replica is that replica, so there is only one way to train a single shard.

    Examples
    --------
    >>> ways(CompareConfig(frequencies=(1, 10), shards=(1, 4, 8)), n_chunks=5)
    [(1, 10), (4, 1), (4, 10), (5, 1), (5, 10)]
    """
    shards = list(dict.fromkeys(min(n, n_chunks) for n in compared.shards))
    return [
        (n, frequency)
        for n in shards
        for frequency in (compared.frequencies if n > 1 else compared.frequencies[-1:])
    ]


def to_json(comparison: Comparison) -> bytes:
    """The text of compare.json."""
    return (json.dumps(asdict(comparison), indent=1) + "\n").encode()


def from_json(data: bytes) -> Comparison:
    """Read what `to_json` wrote."""
    values = json.loads(data)
    return Comparison(
        tuple(
            Contender(**(c | {"curve": tuple((s, o) for s, o in c["curve"])}))
            for c in values["contenders"]
        ),
        values["provenance"],
    )


def _train(
    store: FeatureStore, config: TrainConfig, layer: str, seed: int, client: Client, name: str
) -> tuple[Head, float, list[Round]]:
    log.info("comparing: %s", name)
    started = time.monotonic()
    head, history = trainer.train(store, config, layer, seed, client)
    return head, time.monotonic() - started, history


def _name(n_shards: int, frequency: int) -> str:
    if n_shards == 1:
        return "SGD, 1 shard"
    if frequency == 1:
        return f"synchronous SGD, {n_shards} shards"
    return f"averaged every {frequency}, {n_shards} shards"


def _scores(store: FeatureStore, head: Head, l2: float, client: Client) -> dict[str, Any]:
    scores = scoring.evaluate(store, head, client, n_mistakes=0).scores
    return {
        "accuracy": {name: s.accuracy for name, s in scores.items()},
        "log_loss": {name: s.log_loss for name, s in scores.items()},
        "objective": scores[SPLITS[TRAIN]].log_loss + 0.5 * l2 * _norm(head.kernel) ** 2,
    }


def _norm(kernel: NDArray[Any]) -> float:
    return float(np.linalg.norm(kernel.astype(np.float64)))


def _curve(history: list[Round], seconds: float, l2: float) -> tuple[tuple[float, float], ...]:
    """The objective on the way; loading the features comes before the first round."""
    took = np.cumsum([r.step_s + r.average_s + r.wait_s for r in history])
    return tuple(
        (float(at), r.train_loss + 0.5 * l2 * r.kernel_norm**2)
        for at, r in zip(took + (seconds - took[-1]), history, strict=True)
        if np.isfinite(r.train_loss)
    )


# --- bytes ---------------------------------------------------------------------------------------


def _pass_bytes(head: Head, n_tasks: int) -> int:
    """Of a step of L-BFGS: float32 parameters to all tasks, float64 gradients back."""
    n = head.kernel.size + head.bias.size
    return n * (4 * (1 + n_tasks) + 8 * (tree_inputs(n_tasks) + 1))


def _round_bytes(head: Head, n_tasks: int, config: TrainConfig) -> int:
    """Of a round: parameters and state, float32, to all tasks and to the last average, and from
    all that are averaged.
    """
    n = (head.kernel.size + head.bias.size) * (1 + len(descent.STATE[config.optimizer]))
    return 4 * n * (n_tasks + 1 + tree_inputs(n_tasks, config.aggregation_depth))


# --- scikit-learn --------------------------------------------------------------------------------


def _pull(
    store: FeatureStore, layer: str, head: Head
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The training rows, standardised as for `head`."""
    rows = store.read("split") == TRAIN
    features = np.empty((int(rows.sum()), store.n_features(layer)), np.float32)
    start = 0
    for chunk in range(store.n_chunks):
        part = store.read(layer, chunk)[rows[store.rows(chunk)]]
        features[start : start + len(part)] = (part - head.mean) / head.scale
        start += len(part)
    return features, store.read("label")[rows]


def _solve_by_sklearn(
    features: NDArray[np.float32], labels: NDArray[np.int32], like: Head, l2: float
) -> Head:
    """What ``LogisticRegression`` makes of the training rows, as a head like the optimum's."""
    from sklearn.linear_model import LogisticRegression

    n, present = len(labels), np.unique(labels)
    # Of two classes it learns one kernel w, their difference: ours are -w/2 and w/2, whose
    # penalty is half of w's.
    penalty = l2 / 2 if len(present) == 2 else l2
    model = LogisticRegression(
        C=1 / (penalty * n) if l2 else np.inf, max_iter=_SKLEARN_ITERATIONS
    ).fit(features, labels)
    coef, intercept = model.coef_, model.intercept_
    if len(present) == 2:
        coef = np.concatenate([-coef, coef]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    kernel = np.zeros_like(like.kernel)
    # A class without training rows is out of reach: so improbable that no loss shows it.
    bias = np.full_like(like.bias, intercept.min() - 30)
    kernel[:, present], bias[present] = coef.T, intercept
    return replace(like, kernel=kernel, bias=bias)
