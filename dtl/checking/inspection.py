"""The check of a store: what is probably wrong with its images and labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from dtl.checking import classes, duplicates, folds, judging, label_errors, listing, odd, spec
from dtl.checking.duplicates import Duplicates
from dtl.checking.folds import NO_FOLD
from dtl.checking.listing import Rows
from dtl.checking.values import ALL, CLEAN, Accuracy, Check, Issue, Overlap, count_kinds
from dtl.cluster.chunks import map_chunks
from dtl.cluster.spread import Session
from dtl.config import CheckConfig, ImagesConfig
from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.head import blas
from dtl.head.model import Head
from dtl.neighbours import search

log = logging.getLogger(__name__)

_N_NEIGHBOURS = 10


def check(
    store: FeatureStore,
    layer: str,
    config: CheckConfig,
    seed: int,
    client: Client,
    root: str,
    images: ImagesConfig | None = None,
    *,
    features_in: Literal["memory", "store"] = "memory",
) -> tuple[Check, list[Issue]]:
    """Look for faults of a store's images.

    Images of any split take part, and those of none; skipped and removed ones do not.

    Parameters
    ----------
    store : FeatureStore
        Finished. It may have no split; then there are no leaks to find.
    root : str
        Where the images lie: those that may be twins are read again.
    images : ImagesConfig, optional
        How they are read.
    features_in : {"memory", "store"}
        As `train.features_in`.

    Raises
    ------
    UserError
        If a feature is not finite, or there is no image.
    """
    rows = Rows.read(store)
    if not rows.usable.any():
        raise UserError(f"No image of {store.url} has features, so there is nothing to check.")
    neighbours = search.find_neighbours(store, layer, client, _N_NEIGHBOURS)
    twins = duplicates.find_duplicates(store, neighbours, client, root, images or ImagesConfig())
    labels = check_labels(
        store, layer, rows, twins.group, config, seed, client, features_in=features_in
    )
    issues = [
        *labels.issues,
        *listing.list_twins(rows, twins),
        *listing.list_odd(rows, odd.find_odd(store, neighbours)),
    ]
    labelled = rows.labelled
    small = classes.find_small(rows.label[labelled], labels.judged[labelled], rows.names)
    return Check(
        n_images=int(rows.usable.sum()),
        n_labelled=int(labelled.sum()),
        n_judged=int(labels.judged.sum()),
        n_issues=count_kinds(issues),
        n_wrong=round(labels.n_wrong, 1),
        held_out=labels.held_out,
        overlaps=labels.overlaps,
        small=small,
        double=classes.find_double(neighbours, rows.label, rows.path, rows.names),
        twins=_describe(twins),
        n_unread=twins.n_unread,
        neighbours=listing.show_neighbours(rows, issues, neighbours),
        provenance=spec.provenance(store, layer, config, seed),
    ), issues


def _describe(twins: Duplicates) -> str:
    if not twins.n_unread:
        return twins.reason
    return (
        f"{twins.reason} {twins.n_unread:,} pairs were not compared, for an image of theirs could "
        "not be read any more."
    )


@dataclass(frozen=True, eq=False)
class Labels:
    """What was found out about the labels.

    Parameters
    ----------
    judged : (n_images,) bool
        Rows whose class has others in another fold.
    n_wrong, held_out, overlaps
        As `Check` has them.
    """

    judged: NDArray[np.bool_]
    issues: Sequence[Issue] = ()
    n_wrong: float = 0.0
    held_out: tuple[Accuracy, ...] = ()
    overlaps: tuple[Overlap, ...] = ()


def check_labels(
    store: FeatureStore,
    layer: str,
    rows: Rows,
    group: NDArray[np.int64],
    config: CheckConfig,
    seed: int,
    client: Client,
    *,
    features_in: Literal["memory", "store"] = "memory",
) -> Labels:
    """Look for wrong labels.

    Parameters
    ----------
    group : (n_images,) int
        Equal for rows that must lie in one fold.
    """
    label, names = rows.label, rows.names
    fold = folds.assign_folds(rows.path, label, group, rows.labelled, config.folds, seed)
    judged = folds.find_judged(label, fold)
    if len(np.unique(label[judged])) < 2:
        log.warning("Labels are not judged: fewer than two classes have several different images.")
        return Labels(judged)
    heads = folds.fit_heads(store, layer, fold, config, client, features_in=features_in)
    judged_fold = np.where(judged, fold, NO_FOLD).astype(np.int8)
    verdicts = judging.judge_rows(heads, judged_fold, client)
    own = label[judged]
    suspects = label_errors.find_suspects(own, verdicts)
    joint = label_errors.estimate_joint(own, verdicts.counted, len(names))
    return Labels(
        judged,
        listing.list_suspects(rows, np.flatnonzero(judged), verdicts, suspects),
        float(joint.sum() - joint.diagonal().sum()),
        listing.count_right(verdicts.likeliest == own, {ALL: own >= 0, CLEAN: ~suspects}),
        classes.find_overlaps(joint, names),
    )


def measure(
    store: FeatureStore, head: Head, issues: Sequence[Issue], client: Client
) -> dict[str, tuple[Accuracy, ...]]:
    """Return a head's accuracy on each split, on all images and without those with issues."""
    right = np.zeros(store.n_images, bool)
    for chunk, found in map_chunks(client, _score_chunk, range(store.n_chunks), store=store,
                                   head=Session(client).submit_value(head, "head")):  # fmt: skip
        right[store.rows(chunk)] = found
    return listing.compare_accuracies(right, Rows.read(store), issues)


def _score_chunk(chunk: int, *, store: FeatureStore, head: Head) -> tuple[int, NDArray[np.bool_]]:
    features = store.read(head.provenance["layer"], chunk)
    with blas.one_blas_thread():
        predicted = head.logits(features).argmax(axis=1)
    return chunk, predicted == store.read("label", chunk)
