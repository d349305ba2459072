"""Selection of rows that stand for many others: greedy facility location."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_POWER = 2
"""Of the cosine: what is hardly alike stands for nothing."""


def select_covering(
    unit: NDArray[np.float32],
    n: int,
    covered: NDArray[np.float32] | None = None,
    weight: NDArray[np.float32] | None = None,
) -> NDArray[np.intp]:
    """Select rows, one after the other, of which each adds most to what all are alike to.

    The value of a selection is the sum, over all rows, of the squared cosine to the selected row
    that is the nearest, times the row's weight. It is submodular: what a row adds only falls with
    others. So a bound from before tells which rows need no second look, and the greedy choice is
    within 1 - 1/e of the best.

    Parameters
    ----------
    unit : (n_rows, n_features) float32
        Of unit length, or 0.
    n : int
        Rows to select; all are, if there are fewer.
    covered : (n_others, n_features) float32, optional
        Rows that are selected already, of unit length.
    weight : (n_rows,) float32, optional
        Of each row, not negative.

    Returns
    -------
    (min(n, n_rows),) int
        Rows, the first selected first; of equals the first one.

    References
    ----------
    Minoux (1978), Accelerated greedy algorithms for maximizing submodular set functions; Wei et al.
    (2015), Submodularity in data subset selection and active learning.

    Examples
    --------
    Of three rows that are alike and one that is not, one of the former comes first:

    >>> unit = np.array([[0, 1], [0.8, 0.6], [1, 0], [0.8, -0.6]], np.float32)
    >>> select_covering(unit, 2)
    array([2, 0])
    """
    alike = _compare(unit, unit)
    best = np.zeros(len(unit), np.float32)
    if covered is not None and len(covered):
        best = _compare(unit, covered).max(axis=1)
    weight = np.ones(len(unit), np.float32) if weight is None else weight

    def measure(row: int) -> float:
        return float(np.maximum(alike[row] - best, 0).astype(np.float64) @ weight)

    bound = np.array([measure(row) for row in range(len(unit))])
    chosen: list[int] = []
    while len(chosen) < min(n, len(unit)):
        row = int(bound.argmax())
        bound[row] = value = measure(row)
        if value >= bound.max():
            chosen.append(row)
            np.maximum(best, alike[row], out=best)
            bound[row] = -1.0
    return np.array(chosen, np.intp)


def _compare(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    cosine: NDArray[np.float32] = np.maximum(rows @ others.T, 0)
    cosine **= _POWER
    return cosine
