"""Images to label next, as values and as a table for ``images.labels``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtl.config import ImagesConfig
from dtl.images.label_csv import make_label_csv
from dtl.images.values import ImageList

COVERAGE, MARGIN = "coverage", "margin"
"""Ways to rank: what stands for most images; or for most that the head is unsure of."""

FEW_PER_CLASS = 4
"""Labelled images per class, on average, up to which coverage ranks better than a head's margin."""


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Unlabelled images, what to label first at the beginning.

    Parameters
    ----------
    way : str
        `COVERAGE` or `MARGIN`.
    rows : (n,) int64
        Of the store.
    paths : tuple of str
    guesses : tuple of str
        The class that the head gives each image; empty without a head.
    margins : tuple of float
        Probability of that class less that of the next one; NaN without a head.
    n_unlabelled, n_labelled, n_compared : int
        Images that have no label, and that have one; of the former those that were ranked.
    """

    way: str
    rows: NDArray[np.int64]
    paths: tuple[str, ...]
    guesses: tuple[str, ...]
    margins: tuple[float, ...]
    n_unlabelled: int
    n_labelled: int
    n_compared: int


def make_table(found: Suggestions, images: ImageList, config: ImagesConfig) -> bytes:
    """Return a table for ``images.labels``: the suggestions, without a label, then all labels.

    It has the names of columns that `config` says, and the head's guess in another one.

    Parameters
    ----------
    images : ImageList
        All rows of the store.
    """
    labelled = np.flatnonzero(images.label >= 0)
    labelled = labelled[np.argsort(images.path[labelled].astype(object), kind="stable")]
    rows = np.concatenate([found.rows, labelled])
    guesses = [*found.guesses, *[""] * len(labelled)]
    return make_label_csv(images, rows, config, {"guess": guesses})


def count_new_labels(data: bytes, labels: Mapping[str, str], config: ImagesConfig) -> int | None:
    r"""Count the labels of a table that differ from known ones; None if it is no such table.

    Parameters
    ----------
    labels : dict of path to class
        Of the store; empty where an image has none.

    Examples
    --------
    >>> count_new_labels(b"path,label\na.jpg,ant\n", {"a.jpg": ""}, ImagesConfig())
    1
    """
    try:
        table = csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
        columns = (config.path_column, config.label_column)
        if not {*columns} <= {*(table.fieldnames or ())}:
            return None
        given = [(row[columns[0]], row[columns[1]].strip()) for row in table]
    except (csv.Error, AttributeError, UnicodeDecodeError):
        return None
    return sum(bool(name) and labels.get(path) != name for path, name in given)
