"""Classification by the nearest training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def vote(labels: ArrayLike, cosine: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Return the class that most neighbours have; of equally many, the one that is nearer.

    Nearer is the class whose neighbours' cosines have the larger sum.

    Parameters
    ----------
    labels : (n, k) int
        Classes of each row's neighbours; negative ones do not count.
    cosine : (n, k) float
    n_classes : int

    Returns
    -------
    (n,) int64
        -1 for a row without neighbours.

    Examples
    --------
    >>> vote([[0, 1, 1], [0, 1, -1]], [[0.9, 0.3, 0.2], [0.5, 0.6, -np.inf]], 2)
    array([1, 1])
    """
    labels, cosine = np.asarray(labels, np.int64), np.asarray(cosine, np.float64)
    row, rank = np.nonzero(labels >= 0)
    at = row, labels[row, rank]
    votes = np.zeros((len(labels), n_classes))
    sums = np.zeros_like(votes)
    np.add.at(votes, at, 1)
    np.add.at(sums, at, cosine[row, rank])
    best = votes == votes.max(axis=1, keepdims=True)
    chosen = np.where(best, sums, -np.inf).argmax(axis=1)
    return np.where(votes.any(axis=1), chosen, -1)
