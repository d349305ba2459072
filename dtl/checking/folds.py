"""Held-out class probabilities: each row's by a head that was trained on other folds' rows.

A head is solved for each fold to its optimum by L-BFGS, on the workers. Probabilities never leave
them: a task computes those of a chunk anew wherever they are needed, which costs one product. So
nothing is held that grows with rows times classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from distributed import Client, Future
from numpy.typing import NDArray

from dtl.cluster.progress import track
from dtl.cluster.spread import Session
from dtl.config import CheckConfig, TrainConfig
from dtl.features.store import FeatureStore
from dtl.head import blas, softmax
from dtl.head.scaling import Scaling
from dtl.head.softmax import Params
from dtl.images.split import hash_keys
from dtl.images.values import NO_SPLIT, TRAIN
from dtl.training import lbfgs, trainer
from dtl.training.spec import MOST_SHARDS, Inputs, count_train

log = logging.getLogger(__name__)

NO_FOLD = -1
"""The fold of a row that takes no part."""

_TOLERANCE = 1e-3
"""Of a head's gradient. On real photographs probabilities are then 0.02 from those at 1e-5 at most,
after a third of the passes; one label of 80 more or less is suspected."""


def assign_folds(
    path: NDArray[Any],
    label: NDArray[np.integer[Any]],
    group: NDArray[np.integer[Any]],
    takes_part: NDArray[np.bool_],
    n_folds: int,
    seed: int,
) -> NDArray[np.int8]:
    """Assign rows to folds: whole groups, each class spread evenly over the folds.

    It follows from hashes of (seed, path), as a split does.

    Parameters
    ----------
    path : (n,) StringDType
    label : (n,) int
    group : (n,) int
        Equal for rows that must not be parted, such as copies of one image.
    takes_part : (n,) bool

    Returns
    -------
    (n,) int8
        Fold, or `NO_FOLD`. Fewer groups than folds fill fewer folds.

    Examples
    --------
    >>> path = np.array(["a", "b", "c", "d", "e"], np.dtypes.StringDType())
    >>> label, group = np.zeros(5, int), np.array([7, 8, 7, 9, 3])
    >>> fold = assign_folds(path, label, group, np.array([True] * 4 + [False]), 2, seed=0)
    >>> fold[0] == fold[2], fold[4] == NO_FOLD
    (np.True_, np.True_)
    """
    rows = np.flatnonzero(takes_part)
    rows = rows[np.argsort(hash_keys(path[rows], seed, "fold"), kind="stable")]
    _, first, unit = np.unique(group[rows], return_index=True, return_inverse=True)
    order = np.lexsort((first, label[rows[first]]))  # units by class, then as they come
    fold_of_unit = np.empty(len(first), np.int8)
    fold_of_unit[order] = np.arange(len(first)) % n_folds
    fold = np.full(len(label), NO_FOLD, np.int8)
    fold[rows] = fold_of_unit[unit]
    return fold


def find_judged(
    label: NDArray[np.integer[Any]], fold: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Return which rows have others of their class outside their fold, (n,).

    The head that judges another row has never seen its class.
    """
    judged: NDArray[np.bool_] = fold != NO_FOLD
    n_folds = int(fold.max(initial=0)) + 1
    rows = np.flatnonzero(judged)
    pairs, inverse, n = np.unique(
        label[rows].astype(np.int64) * n_folds + fold[rows], return_inverse=True, return_counts=True
    )
    n_of_label = np.bincount(pairs // n_folds, n)
    judged[rows] = n_of_label[label[rows]] > n[inverse]
    return judged


@dataclass(frozen=True, eq=False)
class FoldHeads:
    """Heads that were each trained without the rows of one fold; all is on the workers.

    Parameters
    ----------
    params : future of list of Params
        By fold.
    scaling : future of Scaling
        Of all rows that take part, without a look at labels.
    fold : future of (n_images,) int8
    """

    store: FeatureStore
    layer: str
    params: Future
    scaling: Future
    fold: Future


def fit_heads(
    store: FeatureStore,
    layer: str,
    fold: NDArray[np.int8],
    config: CheckConfig,
    client: Client,
    *,
    features_in: Literal["memory", "store"] = "memory",
) -> FoldHeads:
    """Fit a head without each fold, one after the other.

    Parameters
    ----------
    fold : (n_images,) int8
        Of `assign_folds`, with two folds or more.
    features_in : {"memory", "store"}
        As `train.features_in`: memory holds the rows of one head at a time.

    Raises
    ------
    UserError
        If a feature is not finite.
    """
    session = Session(client)
    everything = session.submit_value(_as_split(fold, NO_FOLD), "rows")
    scaling = trainer.submit_scaling(session, store, layer, config.normalize, everything)
    solver = TrainConfig(solver="lbfgs", l2=config.l2, features_in=features_in)
    n_folds = int(fold.max()) + 1
    found: list[Params] = []
    with track("held-out heads", n_folds, "folds") as advance:
        for k in range(n_folds):
            inputs = _load(store, layer, _as_split(fold, k), scaling, solver, client)
            fitted = lbfgs.solve(inputs, solver, Session(client), tolerance=_TOLERANCE, show=False)
            found.append(fitted.last)
            advance(1)
    return FoldHeads(
        store, layer, session.submit_value(found, "heads"), scaling,
        session.submit_value(fold, "folds"),
    )  # fmt: skip


def _as_split(fold: NDArray[np.int8], left_out: int) -> NDArray[np.int8]:
    """Return the split of each row where all folds but one are trained on."""
    return np.where((fold == NO_FOLD) | (fold == left_out), NO_SPLIT, TRAIN).astype(np.int8)


def _load(
    store: FeatureStore,
    layer: str,
    split: NDArray[np.int8],
    scaling: Future,
    solver: TrainConfig,
    client: Client,
) -> Inputs:
    session, n_shards = Session(client), min(MOST_SHARDS, store.n_chunks)
    rows = session.submit_value(split, "rows")
    groups = trainer.submit_groups(session, store, layer, n_shards, scaling, solver, rows)
    shape = store.n_features(layer), len(store.class_names)
    start = session.submit(softmax.zero_params, *shape, name="start")
    return Inputs(groups, count_train(store, split, n_shards), False, start, scaling)


def compute_chunk(
    chunk: int,
    store: FeatureStore,
    layer: str,
    params: Sequence[Params],
    scaling: Scaling,
    fold: NDArray[np.int8],
) -> NDArray[np.float64]:
    """Return logarithms of held-out probabilities (n, n_classes) of a chunk's rows with a fold."""
    fold = fold[store.rows(chunk)]
    features = scaling.apply(store.read(layer, chunk))
    found = np.empty((len(fold), len(params[0]["bias"])))
    with blas.one_blas_thread():
        for k, head in enumerate(params):
            if (rows := fold == k).any():
                logits = features[rows] @ head["kernel"] + head["bias"]
                found[rows] = softmax.log_softmax(logits.astype(np.float64))
    held_out: NDArray[np.float64] = found[fold != NO_FOLD]
    return held_out
