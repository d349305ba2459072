"""What makes a head's probabilities hold, fitted to validation rows where they lie."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.spread import Session
from dtl.evaluation import calibration, conformal
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.held_out import HeldOut
from dtl.head.model import Head
from dtl.head.softmax import log_softmax
from dtl.images.values import VALIDATION

log = logging.getLogger(__name__)

MOST_ROWS = 1 << 18
"""Validation rows that are used. Of more, those whose files' hashes are lowest: as good as drawn at
random, and the same ones in every run."""

_MOST_LOGITS = 1 << 29
"""Logits that all workers hold together: 2 GiB."""

_MOST_RUNS = 32

_Rows = list[tuple[NDArray[np.float32], NDArray[np.int32]]]
"""Logits (n, n_classes) and labels (n,) of some chunks' validation rows."""


def calibrate(store: FeatureStore, head: Head, client: Client, *, show: bool = True) -> Head:
    """Give a head the temperature, and what it says of the validation rows of a store.

    Workers read the rows and hold their logits; the driver gets two derivatives from each task, a
    few times over, and in the end three numbers a row. Without validation rows the head is as it
    was.

    Returns
    -------
    Head
        With `temperature` and `held_out`; the same bits on any workers.
    """
    n_rows = int((store.read_split() == VALIDATION).sum())
    head = replace(head, temperature=1.0, held_out=None)
    if not n_rows:
        return head
    share = min(MOST_ROWS, _MOST_LOGITS // len(head.class_names)) / n_rows
    session = Session(client)
    head_future = session.submit_value(head, "head")
    size = 1
    while size * _MOST_RUNS < store.n_chunks:
        size *= 2
    runs = [range(i, min(i + size, store.n_chunks)) for i in range(0, store.n_chunks, size)]
    rows = [
        session.submit(_read_rows, run, store, head_future, share, name=f"held-out-{k}")
        for k, run in enumerate(runs)
    ]
    n_passes = 0

    def get_slopes(theta: float) -> NDArray[np.float64]:
        nonlocal n_passes
        n_passes += 1
        parts = [
            session.submit(_add_slopes, part, theta, name=f"slopes-{n_passes}-{k}")
            for k, part in enumerate(rows)
        ]
        total: NDArray[np.float64] = np.sum([session.result(part) for part in parts], axis=0)
        return total

    temperature, deviation = calibration.find_temperature(get_slopes)
    described = [
        session.submit(_describe, part, temperature, name=f"described-{k}")
        for k, part in enumerate(rows)
    ]
    columns = zip(*(session.result(part) for part in described), strict=True)
    held_out = HeldOut(*(np.concatenate(column) for column in columns))
    low, high = (temperature * np.exp(sign * 1.96 * deviation) for sign in (-1, 1))
    log.log(
        logging.INFO if show else logging.DEBUG,
        "temperature %.3f (95 %% interval %.3f to %.3f), of %s validation images",
        temperature, low, high, f"{len(held_out):,}",
    )  # fmt: skip
    return replace(head, temperature=temperature, held_out=held_out)


def _read_rows(run: range, store: FeatureStore, head: Head, share: float) -> _Rows:
    """Compute the logits of some chunks' validation rows, on a worker."""
    found = []
    for chunk in run:
        rows = np.flatnonzero(store.read_split(chunk) == VALIDATION)
        if share < 1:
            rows = rows[store.read("content_hash", chunk)[rows] < np.uint64(share * 2**64)]
        if len(rows):
            features = store.read(head.provenance["layer"], chunk)[rows]
            with blas.one_blas_thread():
                found.append((head.logits(features), store.read("label", chunk)[rows]))
    return found


def _add_slopes(rows: _Rows, theta: float) -> NDArray[np.float64]:
    parts = [calibration.slopes(logits, labels, theta) for logits, labels in rows]
    total: NDArray[np.float64] = np.sum([np.zeros(2), *parts], axis=0)
    return total


def _describe(rows: _Rows, temperature: float) -> Sequence[NDArray[Any]]:
    """Return the arrays of `HeldOut`."""
    parts = [(np.empty(0, np.int32), np.empty(0), np.empty(0))]
    for logits, labels in rows:
        p = np.exp(log_softmax(logits.astype(np.float64) / temperature))
        above = conformal.mass_above(p)[np.arange(len(labels)), labels]
        parts.append((labels.astype(np.int32), above, p.max(axis=1)))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
