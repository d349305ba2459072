"""The fourth stage: score a head on every split, by chunks on the workers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client

from dtl.cluster.spread import Session
from dtl.config.provenance import check_same
from dtl.evaluation import certainty, metrics
from dtl.evaluation.certainty import Measured
from dtl.evaluation.metrics import Counts
from dtl.evaluation.values import N_MISTAKES, Evaluation, Mistake
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.model import Head
from dtl.images.values import SPLITS

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Tally:
    """Counts and mistakes of some chunks."""

    counts: Mapping[int, Counts]
    """By index of the split."""
    certainty: Mapping[int, certainty.Counts]
    mistakes: tuple[Mistake, ...]
    differ: bool
    """Whether any image's logits differ from the bias, which a dead hidden layer gives to all."""


def evaluate(
    store: FeatureStore, head: Head, client: Client, *, n_mistakes: int = N_MISTAKES
) -> Evaluation:
    """Score a head on every split of the store that it was trained on.

    It keeps the `n_mistakes` most confident mistakes outside the training split, or on it if there
    are no others.
    """
    check_trained_on(store, head)
    session = Session(client)
    head_future, measured = session.submit_value(head, "head"), Measured.of(head)
    measured_future = session.submit_value(measured, "measured")
    add = functools.partial(_add_tallies, n_mistakes=n_mistakes)
    added = session.map_reduce(
        _score_chunk, store.n_chunks, store, head_future, measured_future, n_mistakes,
        merge=add, name="scores",
    )  # fmt: skip
    tally: _Tally = session.result(added)
    if head.n_units and not tally.differ:
        log.warning(
            "The hidden layer is dead: all %d units are 0 for every image, so all images get the "
            "same scores, and no further training would change that. Most likely steps were too "
            "long: train with a lower train.learning_rate.",
            head.n_units,
        )
    scores = {
        SPLITS[index]: measured.score(
            metrics.score(counts, head.class_names), tally.certainty[index]
        )
        for index, counts in sorted(tally.counts.items())
    }
    held_out = [m for m in tally.mistakes if m.split != SPLITS[0]]
    return Evaluation(
        scores=scores,
        mistakes=tuple((held_out or list(tally.mistakes))[:n_mistakes]),
        class_names=head.class_names,
        provenance={"head_sha256": head.fingerprint, "n_mistakes": n_mistakes},
        temperature=head.temperature,
        n_held_out=0 if head.held_out is None else len(head.held_out),
    )


def check_trained_on(store: FeatureStore, head: Head) -> None:
    """Refuse a head of features that were made otherwise, or of another split than is stored.

    `compare`, `tune` and an interrupted training may have stored another split since.
    """
    check_same(
        head.provenance["features"], store.fingerprint,
        f"The head was not trained on the features of {store.url}",
    )  # fmt: skip
    check_same(
        {"split": head.provenance["split"]}, {"split": store.split_fingerprint},
        f"The head was not trained on the split that {store.url} has now, so images that it was "
        "trained on would count as ones that it has not seen",
        "Run the train stage again: with `seed` and all of [split] as they were it keeps the head, "
        "and with others it trains another.",
    )  # fmt: skip


def _score_chunk(
    chunk: int, store: FeatureStore, head: Head, measured: Measured, n_mistakes: int
) -> _Tally:
    split, labels = store.read_split(chunk), store.read("label", chunk)
    features = store.read(head.provenance["layer"], chunk)
    with blas.one_blas_thread():
        logits = head.logits(features)
    rows_of = {k: split == k for k in range(len(SPLITS)) if (split == k).any()}
    counts = {
        k: metrics.count(logits[rows] / np.float64(head.temperature), labels[rows])
        for k, rows in rows_of.items()
    }
    sure = {k: measured.count(logits[rows], labels[rows]) for k, rows in rows_of.items()}
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero((predicted != labels) & (split >= 0))
    probability = np.exp(head.log_probabilities(logits[wrong])).max(axis=1, initial=0)
    paths: Any = store.read("path", chunk) if len(wrong) else ()
    names = head.class_names
    mistakes = [
        Mistake(
            path=str(paths[row]),
            split=SPLITS[split[row]],
            true=names[labels[row]],
            predicted=names[predicted[row]],
            probability=p,
        )
        for row, p in zip(wrong, probability.tolist(), strict=True)
    ]
    differ = bool((logits[split >= 0] != head.bias).any())
    return _Tally(counts, sure, _select_most_confident(mistakes, n_mistakes), differ)


def _add_tallies(tallies: list[_Tally], n_mistakes: int) -> _Tally:
    indices = {index for tally in tallies for index in tally.counts}
    return _Tally(
        {i: metrics.add_counts([t.counts[i] for t in tallies if i in t.counts]) for i in indices},
        {
            i: certainty.add_counts([t.certainty[i] for t in tallies if i in t.certainty])
            for i in indices
        },
        _select_most_confident([m for t in tallies for m in t.mistakes], n_mistakes),
        any(t.differ for t in tallies),
    )


def _select_most_confident(mistakes: list[Mistake], n: int) -> tuple[Mistake, ...]:
    def rank(mistake: Mistake) -> tuple[Any, ...]:
        return mistake.split == SPLITS[0], -mistake.probability, mistake.path

    return tuple(sorted(mistakes, key=rank)[:n])
