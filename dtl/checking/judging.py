"""Verdicts on the labels of a store's rows, chunk by chunk on the workers."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.checking import folds, label_errors
from dtl.checking.folds import NO_FOLD, FoldHeads
from dtl.checking.label_errors import Calibration, ClassSums, Verdicts, raise_to
from dtl.cluster.chunks import map_chunks
from dtl.cluster.spread import Session
from dtl.features.store import FeatureStore

log = logging.getLogger(__name__)


def judge_rows(heads: FoldHeads, fold: NDArray[np.int8], client: Client) -> Verdicts:
    """Judge the rows that have a fold, in the order of the store's rows.

    Each of the three passes computes the probabilities of a chunk anew.
    """
    session, store = Session(client), heads.store
    of_fold = session.submit_value(fold, "folds")
    known = (store, heads.layer, heads.params, heads.scaling, of_fold)
    likelihoods = session.map_reduce(
        _fit_chunk, store.n_chunks, *known, merge=_add_arrays, name="calibration"
    )
    calibration = session.submit(label_errors.calibrate, likelihoods, name="calibrate")
    sums = session.map_reduce(
        _sum_chunk, store.n_chunks, *known, calibration, merge=label_errors.add_sums,
        name="thresholds",
    )  # fmt: skip
    thresholds = session.submit(label_errors.find_thresholds, sums, name="find-thresholds")
    names = ("store", "layer", "params", "scaling", "fold")
    parts: dict[int, Verdicts] = dict(
        map_chunks(
            client, _judge_chunk, range(store.n_chunks), thresholds=thresholds,
            calibration=calibration, **dict(zip(names, known, strict=True)),
        )
    )  # fmt: skip
    return label_errors.join_verdicts([parts[chunk] for chunk in sorted(parts)])


def _read_chunk(
    chunk: int, store: FeatureStore, layer: str, params: Any, scaling: Any, fold: NDArray[np.int8]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return log-probabilities and labels of a chunk's rows that have a fold."""
    rows = fold[store.rows(chunk)] != NO_FOLD
    log_p = folds.compute_chunk(chunk, store, layer, params, scaling, fold)
    return log_p, store.read("label", chunk)[rows]


def _fit_chunk(chunk: int, *known: Any) -> NDArray[np.float64]:
    return label_errors.sum_likelihoods(*_read_chunk(chunk, *known))


def _add_arrays(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return functools.reduce(np.add, parts)


def _sum_chunk(chunk: int, *known: Any) -> ClassSums:
    *known_, calibration = known
    log_p, labels = _read_chunk(chunk, *known_)
    return label_errors.sum_classes(np.exp(raise_to(log_p, calibration.power)), labels)


def _judge_chunk(
    chunk: int, *, thresholds: NDArray[Any], calibration: Calibration, **known: Any
) -> tuple[int, Verdicts]:
    return chunk, label_errors.judge(*_read_chunk(chunk, **known), thresholds, calibration)
