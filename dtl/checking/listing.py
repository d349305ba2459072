"""What was found out about a store's images, as issues and figures; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.checking.duplicates import Duplicates
from dtl.checking.label_errors import Verdicts
from dtl.checking.odd import Odd
from dtl.checking.values import (
    ALL,
    APART,
    BOTH,
    CLEAN,
    DUPLICATE,
    LABEL,
    LEAK,
    PERHAPS,
    Accuracy,
    Issue,
    Neighbour,
)
from dtl.features.store import FeatureStore
from dtl.images.values import NO_SPLIT, SPLITS, TRAIN
from dtl.neighbours.search import Neighbours

MOST_SHOWN = 60
"""Suspects that a page shows, with their neighbours."""

_N_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Rows:
    """Columns of a store, (n_images,), and the names of its classes."""

    path: NDArray[Any]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    usable: NDArray[np.bool_]
    names: tuple[str, ...]

    @classmethod
    def read(cls, store: FeatureStore) -> Rows:
        """Read the columns."""
        columns = store.read("path"), store.read("label"), store.read_split(), store.read_usable()
        return cls(*columns, store.class_names)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have features and a label."""
        return self.usable & (self.label >= 0)

    def name(self, row: int) -> str:
        """Return the class of a row; empty for none."""
        label = int(self.label[row])
        return self.names[label] if label >= 0 else ""


def list_suspects(
    rows: Rows, judged: NDArray[np.intp], verdicts: Verdicts, suspects: NDArray[np.bool_]
) -> list[Issue]:
    """List the labels that are probably wrong, the surest first.

    Parameters
    ----------
    judged : (n,) int
        Rows of the store that there are verdicts on.
    """
    found = [
        Issue(
            str(rows.path[judged[k]]), LABEL, 1 - float(verdicts.own[k]),
            given=rows.name(int(judged[k])), suggested=rows.names[verdicts.likeliest[k]],
        )
        for k in np.flatnonzero(suspects).tolist()
    ]  # fmt: skip
    return sorted(found, key=lambda issue: (-issue.score, issue.path))


def list_twins(rows: Rows, twins: Duplicates) -> list[Issue]:
    """List held-out images with a twin in training, then perhaps with one, then other twins."""
    leaked = twins.find_leaked(rows.split)
    partner: dict[int, tuple[int, float, str]] = {}
    others = []
    pairs = (x.tolist() for x in (twins.a, twins.b, twins.likeness, twins.identical))
    for a, b, likeness, identical in zip(*pairs, strict=True):
        reason = "identical files" if identical else ""
        held_out, other = (a, b) if leaked[a] else (b, a)
        if leaked[held_out] and rows.split[other] == TRAIN:
            partner.setdefault(held_out, (other, likeness, reason))
        else:
            others.append((b, a, likeness, reason))
    train = np.flatnonzero(rows.split == TRAIN)
    first_of_group = dict(zip(twins.group[train[::-1]].tolist(), train[::-1].tolist(), strict=True))
    for row in np.flatnonzero(leaked).tolist():  # a twin of a twin
        there = first_of_group[int(twins.group[row])]
        partner.setdefault(row, (there, twins.threshold, "by way of another twin"))

    def make(kind: str, row: int, other: int, likeness: float, reason: str) -> Issue:
        given, of_other = rows.name(row), rows.name(other)
        suggested = of_other if of_other != given else ""
        paths = str(rows.path[row]), str(rows.path[other])
        return Issue(paths[0], kind, likeness, paths[1], given, suggested, reason)

    perhaps: dict[int, tuple[int, float, str]] = {}
    near = (x.tolist() for x in (twins.near_a, twins.near_b, twins.near_likeness))
    for a, b, likeness in sorted(zip(*near, strict=True), key=lambda pair: -pair[2]):
        for row, there in ((a, b), (b, a)):
            is_held_out = rows.split[row] not in (TRAIN, NO_SPLIT)
            if is_held_out and rows.split[there] == TRAIN and row not in partner:
                perhaps.setdefault(row, (there, likeness, ""))
    leaks = [make(LEAK, row, *found) for row, found in partner.items()]
    doubtful = [make(PERHAPS, row, *found) for row, found in perhaps.items()]
    duplicates = [make(DUPLICATE, *found) for found in others]
    return [
        *sorted(leaks, key=lambda issue: (-issue.score, issue.path)),
        *sorted(doubtful, key=lambda issue: (-issue.score, issue.path)),
        *sorted(duplicates, key=lambda issue: (-issue.score, issue.path, issue.partner)),
    ]


def list_odd(rows: Rows, found: Sequence[Odd]) -> Iterator[Issue]:
    """Yield odd images."""
    for odd in found:
        path = str(rows.path[odd.row])
        yield Issue(path, odd.kind, odd.score, given=rows.name(odd.row), reason=odd.reason)


def show_neighbours(
    rows: Rows, issues: Sequence[Issue], neighbours: Neighbours
) -> dict[str, tuple[Neighbour, ...]]:
    """Return the nearest images of the first suspects."""
    suspects = [issue.path for issue in issues if issue.kind == LABEL][:MOST_SHOWN]
    place = {p: k for k, p in enumerate(rows.path[neighbours.rows].tolist())}
    found = {}
    for suspect in suspects:
        k = place[suspect]
        near = zip(neighbours.index[k].tolist(), neighbours.cosine[k].tolist(), strict=True)
        found[suspect] = tuple(
            Neighbour(str(rows.path[row]), rows.name(row), cosine)
            for row, cosine in [*near][:_N_SHOWN]
            if row >= 0
        )
    return found


def compare_accuracies(
    right: NDArray[np.bool_], rows: Rows, issues: Sequence[Issue]
) -> dict[str, tuple[Accuracy, ...]]:
    """Return the accuracy on each split, on all images and without those with issues.

    Parameters
    ----------
    right : (n_images,) bool
        Which images a head gets right.
    """
    paths = rows.path.tolist()
    kinds = {kind: {i.path for i in issues if i.kind == kind} for kind in (LABEL, LEAK)}
    clean, apart = (
        np.array([path not in kinds[kind] for path in paths], bool) for kind in (LABEL, LEAK)
    )
    found = {}
    for k, name in enumerate(SPLITS):
        if (rows.split == k).any():
            kept = {ALL: rows.split == k, CLEAN: clean & (rows.split == k)}
            if not apart[rows.split == k].all():
                kept |= {APART: apart & kept[ALL], BOTH: apart & kept[CLEAN]}
            found[name] = count_right(right, kept)
    return found


def count_right(
    right: NDArray[np.bool_], kept: Mapping[str, NDArray[np.bool_]]
) -> tuple[Accuracy, ...]:
    """Count what is right of several choices of rows, by their names."""
    return tuple(
        Accuracy(of, int(rows.sum()), int((right & rows).sum())) for of, rows in kept.items()
    )
