"""Scores of a classifier as counts that add up over chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.evaluation.values import SplitScores
from dtl.head.softmax import log_softmax


@dataclass(frozen=True, eq=False)
class Counts:
    """What the scores of some rows follow from.

    Parameters
    ----------
    pairs : (n_pairs,) int64
        ``true label * n_classes + predicted label``, sorted, each once.
    n_images : (n_pairs,) int64
        Rows of each pair. Only pairs that occur: 10,000 classes have 100 million.
    n_top5 : int
        Rows whose label is among the five most probable.
    loss : float
        Sum of the cross-entropy, nats.
    """

    pairs: NDArray[np.int64]
    n_images: NDArray[np.int64]
    n_top5: int
    loss: float

    @classmethod
    def of(cls, logits: NDArray[Any], labels: NDArray[np.integer[Any]]) -> Counts:
        """Those of rows with `logits` (n, n_classes) and `labels` (n,)."""
        n_classes = logits.shape[1]
        rows = np.arange(len(labels))
        log_p = log_softmax(logits.astype(np.float64))
        true = log_p[rows, labels]
        pairs, n_images = np.unique(
            labels.astype(np.int64) * n_classes + logits.argmax(axis=1), return_counts=True
        )
        n_top5 = int(((log_p > true[:, None]).sum(axis=1) < 5).sum())
        return cls(pairs, n_images, n_top5, float(-true.sum()))


def combine(parts: Sequence[Counts]) -> Counts:
    """Add counts up."""
    pairs, where = np.unique(np.concatenate([part.pairs for part in parts]), return_inverse=True)
    n_images = np.zeros(len(pairs), np.int64)
    np.add.at(n_images, where, np.concatenate([part.n_images for part in parts]))
    return Counts(
        pairs, n_images, sum(part.n_top5 for part in parts), sum(part.loss for part in parts)
    )


def scores(counts: Counts, class_names: Sequence[str]) -> SplitScores:
    """The scores that counts amount to.

    Means over classes are over those that the rows have; the precision of a class that was never
    predicted is 0, as scikit-learn's ``zero_division=0``.
    """
    n_classes = len(class_names)
    true, predicted = np.divmod(counts.pairs, n_classes)
    total = int(counts.n_images.sum())
    n_true = np.bincount(true, counts.n_images, n_classes)
    n_predicted = np.bincount(predicted, counts.n_images, n_classes)
    right = true == predicted
    n_right = np.bincount(true[right], counts.n_images[right], n_classes)
    recall = n_right / np.maximum(n_true, 1)
    precision = n_right / np.maximum(n_predicted, 1)
    f1 = 2 * n_right / np.maximum(n_true + n_predicted, 1)
    present = np.flatnonzero(n_true)
    return SplitScores(
        n_images=total,
        accuracy=float(n_right.sum() / total),
        top5=counts.n_top5 / total,
        log_loss=counts.loss / total,
        mean_precision=float(precision[present].mean()),
        mean_recall=float(recall[present].mean()),
        mean_f1=float(f1[present].mean()),
        classes={
            class_names[k]: {
                "n_images": int(n_true[k]),
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
            }
            for k in present.tolist()
        },
        confusion=tuple(
            (int(t), int(p), int(n))
            for t, p, n in zip(true, predicted, counts.n_images, strict=True)
        ),
    )
