r"""Sets of classes that hold the right one as often as is asked for: split conformal prediction.

A class's score is the probability of all classes that are likelier, and a set has the classes whose
score is at most a threshold: the likeliest class, then as many as the image is hard. The threshold
is an order statistic of the scores that the right classes of held-out images have. So if these
images and new ones are alike, a set of a new image misses its class in a share :math:`1 - c` of all
cases or less, whatever the head is.

References
----------
Romano, Sesia, Candès (2020), "Classification with valid and adaptive coverage", equations 5 and 6.
This is the paper's :math:`S(x, u; \hat\pi, \tau)` with :math:`u = 1` on every image: sets are never
empty and always have the predicted class, and the same image has the same set in every run. Random
:math:`u` would leave the predicted class out of some images' sets, where it alone is too much.

Vovk (2012), "Conditional validity of inductive conformal predictors", section 4.1 (Mondrian).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.config.errors import UserError

_ROWS_BEYOND = 5
"""Scores that lie above a class's own threshold. With fewer it is nearly the largest one: sets
would be large, and the class's coverage far from what is asked for, by chance."""


def mass_above(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability (n, n_classes) of all classes that are likelier than each.

    Of equally likely classes the first one counts as likelier.

    Examples
    --------
    >>> mass_above(np.array([[0.25, 0.5, 0.25]]))
    array([[0.5 , 0.  , 0.75]])
    """
    order = np.argsort(-p, axis=1, kind="stable")
    falling = np.take_along_axis(p, order, axis=1)
    above = np.zeros_like(p)
    np.cumsum(falling[:, :-1], axis=1, out=above[:, 1:])
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.minimum(above, 1.0), axis=1)
    return found


def count_needed(coverage: float) -> int:
    """Return the fewest held-out rows with which sets can have a coverage.

    Examples
    --------
    >>> count_needed(0.95), count_needed(0.9)
    (19, 9)
    """
    return math.ceil(round(coverage / (1 - coverage), 9))


def rank(n_rows: int, coverage: float) -> int:
    """Return which of `n_rows` scores in rising order, from 1 on, is the threshold."""
    return math.ceil(round((n_rows + 1) * coverage, 9))


def check_coverage(coverage: float, n_rows: int) -> None:
    """Refuse a coverage that is none, or that so few held-out rows cannot show."""
    if not 0 < coverage < 1:
        raise UserError(
            f"coverage must be above 0 and below 1, such as 0.95. Received: {coverage:g}."
        )
    if n_rows < count_needed(coverage):
        most = math.floor(n_rows / (n_rows + 1) * 1000) / 1000
        raise UserError(
            f"A coverage of {coverage:g} needs at least {count_needed(coverage):,} validation "
            f"images, and the head was held against {n_rows:,}. Ask for at most {most:g}, or train "
            "with more of them (`split.validation`)."
        )


def group_classes(labels: NDArray[np.integer[Any]], n_classes: int, coverage: float) -> Any:
    """Group classes so that each group has rows enough for a threshold of its own.

    A class is a group where so many rows have it that five lie above its threshold; all others are
    one group, which takes in the smallest of those until it has as many, too.

    Parameters
    ----------
    labels : (n,) int
        The classes of held-out rows.

    Returns
    -------
    (n_classes,) int64
        Each class's group: its own index, or -1 for the group of all others.

    Examples
    --------
    >>> group_classes(np.repeat([0, 1, 2], [60, 50, 10]), 4, coverage=0.9)
    array([ 0, -1, -1, -1])
    """
    n_rows = np.bincount(labels, minlength=n_classes)
    enough = math.ceil(round(_ROWS_BEYOND / (1 - coverage), 9))
    group = np.where(n_rows >= enough, np.arange(n_classes), -1)
    if (group == -1).any():
        for k in np.argsort(n_rows, kind="stable"):
            if n_rows[group == -1].sum() >= enough:
                break
            group[k] = -1
    return group


def find_thresholds(
    scores: NDArray[np.float64],
    labels: NDArray[np.integer[Any]],
    n_classes: int,
    coverage: float,
) -> NDArray[np.float64]:
    """Return the largest score (n_classes,) with which each class is in a set.

    Parameters
    ----------
    scores : (n,) float64
        Of the right classes of held-out rows, as `mass_above` has them.
    labels : (n,) int
        These classes.
    coverage : float
        Above 0 and below 1; it holds in each group of `group_classes`.

    Raises
    ------
    UserError
        For another coverage, or one for which there are too few rows.

    Examples
    --------
    >>> find_thresholds(np.arange(9) / 10, np.zeros(9, int), n_classes=2, coverage=0.5)
    array([0.4, 0.4])
    """
    check_coverage(coverage, len(scores))
    group = group_classes(labels, n_classes, coverage)
    thresholds = np.empty(n_classes)
    for number in np.unique(group):
        members = group == number
        rising = np.sort(scores[members[labels]])
        thresholds[members] = rising[rank(len(rising), coverage) - 1]
    return thresholds


def select_sets(p: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which classes (n, n_classes) are in the sets of rows with probabilities `p`.

    Examples
    --------
    >>> select_sets(np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]), np.full(3, 0.6))
    array([[ True,  True, False],
           [ True, False, False]])
    """
    chosen: NDArray[np.bool_] = mass_above(p) <= thresholds
    return chosen
