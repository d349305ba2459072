"""Odd images: blurred, dark, nearly uniform, tiny, of an odd shape, or unlike their class.

What is odd follows from the other images. A figure is compared by its logarithm with the median, in
robust standard deviations of the side that it lies on: these hardly move with what is odd.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtl.features.store import FeatureStore
from dtl.neighbours.search import Neighbours

UNIFORM, DARK, BLURRED, TINY, SHAPE, UNLIKE = KINDS = (
    "uniform", "dark", "blurred", "tiny", "shape", "unlike",
)  # fmt: skip
"""Kinds of odd images: the last one is far from all of its class in the features."""

_DEVIATIONS = 3.5
"""Robust standard deviations from the median (Iglewicz & Hoaglin 1993)."""
_FACTOR = 2.0
"""Factor that a figure differs by, too: where images are all alike, a few pixels are not odd."""
_CLASS_DEVIATIONS = 3.0
"""Those of an image from its class. A class varies half as much as the average one, or more."""
_LEAST_ROWS = 20
"""Images that tell what is usual, and of a class."""
_N_OF_CLASS = 3
"""Nearest images of its class that an image is compared with: one may be its twin."""
_QUARTILE = 0.6745
"""Upper quartile of the standard normal distribution."""


class Odd(NamedTuple):
    """What is odd about an image.

    Parameters
    ----------
    row : int
        Of the store.
    kind : str
        One of `KINDS`.
    score : float
        How far beyond what is usual, 1 at the threshold.
    reason : str
        The figure and the threshold, in words.
    """

    row: int
    kind: str
    score: float
    reason: str


def find_odd(store: FeatureStore, neighbours: Neighbours | None = None) -> list[Odd]:
    """Find the odd images of a finished store, by kind, and in each the oddest first.

    Parameters
    ----------
    neighbours : Neighbours, optional
        Of some rows, 10 or more each, to find those unlike their class.
    """
    usable = store.read_usable()
    found = list(judge_figures(store.read("figures"), usable))
    if neighbours is not None:
        label = store.read("label")
        distance = measure_distance(neighbours, label)
        found += judge_distance(distance, label[neighbours.rows], neighbours.rows)
    return sorted(found, key=lambda odd: (KINDS.index(odd.kind), -odd.score, odd.row))


def judge_figures(
    figures: NDArray[np.float32], usable: NDArray[np.bool_] | None = None
) -> Iterator[Odd]:
    """Yield the images whose figures are odd among all; none of fewer than 20.

    A picture is dark if its brightness and two deviations of contrast are: one with a bright thing
    before a black wall is not. One that is nearly uniform is not judged blurred.

    Parameters
    ----------
    figures : (n, 5) float32
        `FIGURES`; rows with NaN are not judged.
    usable : (n,) bool, optional
        False for rows that take no part.

    Examples
    --------
    >>> figures = np.tile(np.float32([[640, 480, 120, 60, 0.5]]), (30, 1))
    >>> figures[7, 4] = 0.1
    >>> list(judge_figures(figures))  # doctest: +ELLIPSIS
    [Odd(row=7, kind='blurred', score=2.32..., reason='sharpness 0.1, usual from 0.25')]
    """
    known = np.isfinite(figures).all(axis=1)
    rows = np.flatnonzero(known if usable is None else known & usable)
    width, height, brightness, contrast, sharpness = figures[rows].astype(np.float64).T
    uniform = yield from _judge_low(UNIFORM, "contrast", contrast, 0.1, rows)
    light = brightness + 2 * contrast
    yield from _judge_low(DARK, "brightness of the lightest parts", light, 1.0, rows)
    sharp = np.flatnonzero(~np.isin(rows, uniform))
    yield from _judge_low(BLURRED, "sharpness", sharpness[sharp], 1e-3, rows[sharp])
    yield from _judge_low(TINY, "shorter side in pixels", np.minimum(width, height), 1.0, rows)
    shape = np.maximum(width, 1) / np.maximum(height, 1)
    wide = yield from _judge_low(SHAPE, "height per width", 1 / shape, 1e-6, rows)
    others = np.flatnonzero(~np.isin(rows, wide))
    yield from _judge_low(SHAPE, "width per height", shape[others], 1e-6, rows[others])


def _judge_low(
    kind: str, name: str, figure: NDArray[np.float64], least: float, rows: NDArray[np.intp]
) -> Generator[Odd, None, NDArray[np.intp]]:
    """Yield the rows whose figure is low; return them."""
    if len(rows) < _LEAST_ROWS:
        return np.empty(0, np.intp)
    below = -np.log(np.maximum(figure, least))
    middle, spread = _describe_above(below)
    limit = max(_DEVIATIONS * spread, np.log(_FACTOR))
    score = (below - middle) / limit
    chosen = np.flatnonzero(score > 1)
    usual = np.exp(-middle - limit)
    for k in chosen.tolist():
        reason = f"{name} {figure[k]:.3g}, usual from {usual:.3g}"
        yield Odd(int(rows[k]), kind, float(score[k]), reason)
    return rows[chosen]


def _describe_above(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the median, and the robust standard deviation of the half above it."""
    middle, quartile = np.quantile(values, [0.5, 0.75])
    return float(middle), float(quartile - middle) / _QUARTILE


# --- unlike their class --------------------------------------------------------------------------


def measure_distance(neighbours: Neighbours, label: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return how far each image is from its class, (n,): 1 - cosine, of its nearest three.

    Those that are not among its neighbours are at least as far as the last of these, and count as
    that; NaN without a label or a neighbour.

    Parameters
    ----------
    label : (n_images,) int32
        Of the store.
    """
    own = label[neighbours.rows]
    there = neighbours.index >= 0
    cosine = np.where(there, neighbours.cosine.astype(np.float64), np.nan)
    last = np.min(cosine, axis=1, where=there, initial=1.0)
    same = there & (label[neighbours.index] == own[:, None])
    rank = np.cumsum(same, axis=1)
    nearest = same & (rank <= _N_OF_CLASS)
    total = np.sum(cosine, axis=1, where=nearest) + (_N_OF_CLASS - nearest.sum(axis=1)) * last
    distance: NDArray[np.float64] = 1 - total / _N_OF_CLASS
    return np.where((own >= 0) & there.any(axis=1), distance, np.nan)


def judge_distance(
    distance: NDArray[np.float64], label: NDArray[np.int32], rows: NDArray[np.int64]
) -> Iterator[Odd]:
    """Yield the images that are far from their class, as that varies.

    Parameters
    ----------
    distance : (n,) float64
        `measure_distance`; NaN is not judged.
    label : (n,) int32
        Theirs. Classes of fewer than 20 are compared with all images.
    rows : (n,) int64
        In the store.
    """
    known = np.flatnonzero(np.isfinite(distance))
    if len(known) < _LEAST_ROWS:
        return
    middle, spread = _describe_above(distance[known])
    order = known[np.argsort(label[known], kind="stable")]
    for of_class in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        usual, deviation = middle, spread
        if len(of_class) >= _LEAST_ROWS:
            usual, deviation = _describe_above(distance[of_class])
        limit = _CLASS_DEVIATIONS * max(deviation, spread / 2)
        for k in of_class[distance[of_class] > usual + limit].tolist():
            score = float((distance[k] - usual) / limit) if limit else np.inf
            reason = f"distance from its class {distance[k]:.2f}, usual up to {usual + limit:.2f}"
            yield Odd(int(rows[k]), UNLIKE, score, reason)
