"""The answer of a head for each image that it is scored on, or was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.cluster.spread import Session
from dtl.evaluation.pairing import Outcomes
from dtl.evaluation.scoring import check_trained_on
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.model import Head
from dtl.images.values import NO_SPLIT


def find_outcomes(store: FeatureStore, head: Head, client: Client) -> Outcomes:
    """Classify the images that have a split, on the workers, where their features lie."""
    check_trained_on(store, head)
    session = Session(client)
    of_head = session.submit_value(head, "head")
    joined = session.map_reduce(
        _classify_chunk, store.n_chunks, store, of_head, merge=_join, name="outcomes"
    )
    predicted, probability = session.result(joined)
    split = store.read_split()
    rows = np.flatnonzero(split != NO_SPLIT)
    paths: Any = store.read("path")[rows]
    return Outcomes(
        tuple(map(str, paths)), store.read("content_hash")[rows], split[rows],
        store.read("label")[rows], predicted, probability, head.class_names,
    )  # fmt: skip


def _classify_chunk(
    chunk: int, store: FeatureStore, head: Head
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    rows = store.read_split(chunk) != NO_SPLIT
    with blas.one_blas_thread():  # as where they were scored: the last bits depend on it
        logits = head.logits(store.read(head.provenance["layer"], chunk))[rows]
    probability = np.exp(head.log_probabilities(logits)).max(axis=1, initial=0)
    return logits.argmax(axis=1).astype(np.int32), probability.astype(np.float32)


def _join(parts: list[tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
