"""Scores of a classifier, from counts that add up over chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtl.evaluation.values import SplitScores
from dtl.head.softmax import log_softmax

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of some rows that their scores follow from."""

    confusion: sparse.csr_array
    """Rows by true and by predicted label. Sparse: 10,000 classes have 100 million pairs."""
    n_top5: int
    """Rows whose label is among the five most probable."""
    loss: float
    """Sum of the cross-entropy, nats."""


def count(logits: NDArray[Any], labels: NDArray[np.integer[Any]]) -> Counts:
    """Count rows of `logits` (n, n_classes) whose true classes are `labels` (n,)."""
    from scipy import sparse  # not for a finished command, which shows scores, too

    n_rows, n_classes = logits.shape
    log_p = log_softmax(logits.astype(np.float64))
    true = log_p[np.arange(n_rows), labels]
    confusion = sparse.coo_array(
        (np.ones(n_rows, np.int64), (labels, logits.argmax(axis=1))), (n_classes, n_classes)
    )
    n_top5 = int(((log_p > true[:, None]).sum(axis=1) < 5).sum())
    return Counts(confusion.tocsr(), n_top5, float(-true.sum()))


def add_counts(parts: Sequence[Counts]) -> Counts:
    """Add up the counts of several sets of rows."""
    return Counts(
        sum((part.confusion for part in parts[1:]), start=parts[0].confusion),
        sum(part.n_top5 for part in parts),
        sum(part.loss for part in parts),
    )


def score(counts: Counts, class_names: Sequence[str]) -> SplitScores:
    """Compute the scores that counts amount to.

    Means over classes are over those that the rows have; the precision of a class that was never
    predicted is 0, as scikit-learn's ``zero_division=0``.
    """
    confusion = counts.confusion
    n_true, n_predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    n_right, n_images = confusion.diagonal(), int(confusion.sum())
    recall = n_right / np.maximum(n_true, 1)
    precision = n_right / np.maximum(n_predicted, 1)
    f1 = 2 * n_right / np.maximum(n_true + n_predicted, 1)
    present = np.flatnonzero(n_true)
    pairs = confusion.tocoo()
    columns = {"n_images": n_true, "precision": precision, "recall": recall, "f1": f1}
    return SplitScores(
        n_images=n_images,
        accuracy=float(n_right.sum() / n_images),
        top5=counts.n_top5 / n_images,
        log_loss=counts.loss / n_images,
        mean_precision=float(precision[present].mean()),
        mean_recall=float(recall[present].mean()),
        mean_f1=float(f1[present].mean()),
        classes={
            class_names[k]: {name: column[k].item() for name, column in columns.items()}
            for k in present.tolist()
        },
        confusion=tuple(
            zip(*(a.tolist() for a in (pairs.row, pairs.col, pairs.data)), strict=True)
        ),
    )


def find_interval(n_right: int, n_images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy: the Wilson score interval.

    By hand, as `scipy.stats` takes half a second to import. Wilson (1927), J. Am. Stat. Assoc. 22.
    """
    z = NormalDist().inv_cdf(0.975)
    share, z2 = n_right / n_images, z * z / n_images
    middle = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt((share * (1 - share) + z2 / 4) / n_images) / (1 + z2)
    return max(middle - half, 0.0), min(middle + half, 1.0)
