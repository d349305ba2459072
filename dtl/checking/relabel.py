"""A table of all labels for a person to go through, which ``images.labels`` takes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from dtl.checking.values import LABEL, Issue
from dtl.config import ImagesConfig
from dtl.features.values import REMOVED
from dtl.images.label_csv import make_label_csv
from dtl.images.values import ImageList

GIVEN, SUGGESTED = "given", "suggested"
"""Columns for the person, beside those that ``images.labels`` reads."""


def make_table(images: ImageList, issues: Sequence[Issue], config: ImagesConfig) -> bytes:
    """Return the bytes of a CSV file with a row for each image, the likeliest label errors first.

    Paths, labels and splits have the names of columns that `config` says, so that ``images.labels``
    takes the file as it is. Labels are the given ones: nothing changes before a person writes the
    right class into that column, or leaves it empty to leave the image out.

    Parameters
    ----------
    images : ImageList
        Rows of images that are gone are left out.
    """
    suspects = {issue.path: issue for issue in issues if issue.kind == LABEL}
    kinds: dict[str, dict[str, str]] = {}
    for issue in issues:
        kinds.setdefault(issue.path, {})[issue.kind] = issue.partner
    paths, labels = images.path.tolist(), images.label_names().tolist()

    def rank(row: int) -> tuple[float, bool, str]:
        suspect = suspects.get(paths[row])
        return (-suspect.score if suspect else 0.0, paths[row] not in kinds, paths[row])

    rows = sorted(np.flatnonzero(images.label != REMOVED).tolist(), key=rank)
    found = [suspects.get(paths[row]) for row in rows]
    of_row = [kinds.get(paths[row], {}) for row in rows]
    more = {
        GIVEN: [labels[row] for row in rows],
        SUGGESTED: [suspect.suggested if suspect else "" for suspect in found],
        "score": [f"{suspect.score:.4f}" if suspect else "" for suspect in found],
        "issues": [" ".join(named) for named in of_row],
        "partner": [next(filter(None, named.values()), "") for named in of_row],
    }
    return make_label_csv(images, np.array(rows, np.int64), config, more)


def is_edited(data: bytes, config: ImagesConfig) -> bool:
    r"""Return whether a person has changed labels in a table of `make_table`, or made another one.

    Examples
    --------
    >>> is_edited(b"path,label,given\na.jpg,ant,ant\n", ImagesConfig())
    False
    >>> is_edited(b"path,label,given\na.jpg,bee,ant\n", ImagesConfig())
    True
    """
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
        return any(row[config.label_column] != row[GIVEN] for row in rows)
    except (csv.Error, KeyError, UnicodeDecodeError):
        return True
