r"""Answers only where a head may answer: a threshold on confidence that bounds mistakes.

An image is answered if the probability of its likeliest class is above the threshold. Among answers
at most a share of `max_error` is wrong, for 19 of 20 draws of held-out images; the other images are
left to a person.

References
----------
Geifman, El-Yaniv (2017), "Selective classification for deep neural networks", with the bound of
Clopper and Pearson; Angelopoulos et al. (2021), "Learn then test", section 3.2 (fixed sequences).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from dtl.config.errors import UserError

LEVEL = 0.05
"""Probability that more of the answers than `max_error` are wrong."""


def count_needed(max_error: float, level: float = LEVEL) -> int:
    """Return the fewest held-out rows, all of them right, that show a share of mistakes.

    Examples
    --------
    >>> count_needed(0.01), count_needed(0.05)
    (299, 59)
    """
    return math.ceil(round(math.log(level) / math.log1p(-max_error), 9))


def check_max_error(max_error: float, n_rows: int) -> None:
    """Refuse a share of mistakes that is none, or that so few held-out rows cannot show."""
    if not 0 < max_error < 1:
        raise UserError(
            f"max_error must be above 0 and below 1, such as 0.01. Received: {max_error:g}."
        )
    if n_rows < count_needed(max_error):
        least = math.ceil(-math.expm1(math.log(LEVEL) / n_rows) * 1000) / 1000
        raise UserError(
            f"That at most {max_error:g} of the answers are wrong takes at least "
            f"{count_needed(max_error):,} validation images to show, even without a mistake. The "
            f"head was held against {n_rows:,}. Ask for at least {least:g}, or train with more of "
            "them (`split.validation`)."
        )


def find_threshold(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], max_error: float
) -> float:
    r"""Return the confidence above which a head answers; infinite where it must not at all.

    Rows are taken from the most confident one on. Whether so many answers have too many mistakes is
    tested by the binomial distribution for one number of them after another, up to the first
    that fails. That is begun at several numbers, each twice the one before, which share the level.
    Given the first confidence below, the rows above it are a sample of all images above it, so the
    test is exact; where the share of mistakes rises with the share of answers, so is all of it.

    Parameters
    ----------
    confidence : (n,) float64
        Of held-out rows.
    right : (n,) bool
        Whether their likeliest class is the right one.
    max_error : float
        Above 0 and below 1.

    Raises
    ------
    UserError
        For another `max_error`, or one for which there are too few rows.

    Examples
    --------
    >>> confidence = np.linspace(1, 0, 200)
    >>> find_threshold(confidence, confidence > 0.5, max_error=0.05) > 0.4
    True
    """
    check_max_error(max_error, len(confidence))
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    n_wrong = np.cumsum(~right[order])
    n_rows = np.arange(1, len(order) + 1)
    # Rows of equal confidence are answered together.
    is_cut = np.append(falling[:-1] > falling[1:], True)
    following = np.append(falling[1:], 0.0)
    starts = _list_starts(max_error, len(order))
    passes = bdtr(n_wrong.astype(float), n_rows, max_error) <= LEVEL / len(starts)
    stops = np.flatnonzero(is_cut & ~passes)
    best = -1
    for start in starts:
        first = np.searchsorted(stops, start - 1)
        end = stops[first] if first < len(stops) else len(order)
        accepted = np.flatnonzero(is_cut[start - 1 : end]) + start - 1
        best = max(best, int(accepted[-1]) if len(accepted) else -1)
    return float(following[best]) if best >= 0 else math.inf


def _list_starts(max_error: float, n_rows: int) -> list[int]:
    n_starts = 1
    while count_needed(max_error, LEVEL / (n_starts + 1)) << n_starts <= n_rows:
        n_starts += 1
    least = count_needed(max_error, LEVEL / n_starts)
    return [least << k for k in range(n_starts)]


def select_answers(confidence: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
    """Return which rows (n,) are answered."""
    chosen: NDArray[Any] = confidence > threshold
    return chosen
