"""Probabilities that hold: the temperature, and how far probabilities are from what happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.evaluation.values import Reliability

N_BINS = 15
"""Of equal width, by the probability of the likeliest class; as in Guo et al. (2017)."""

_PRIOR_DEVIATION = 2.0
"""Of the temperature's logarithm. It moves one of 200 images by about 1 %, and keeps that of a few
images which are all classified rightly from 0, where every probability would be 1."""

_WIDEST = 6.0
"""Largest logarithm of a temperature, and of its inverse."""

_TOLERANCE = 1e-7
_MOST_STEPS = 60
_N_DRAWS = 500


def slopes(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], theta: float
) -> NDArray[np.float64]:
    r"""Return the first two derivatives of rows' summed cross-entropy by :math:`\theta`.

    The logits of a row are multiplied by :math:`\beta = e^\theta`, an inverse temperature. With
    :math:`E` and :math:`V` the mean and variance of the logits :math:`z` under the row's
    probabilities, and :math:`y` its class,

    .. math:: f' = \sum \beta (E - z_y), \qquad f'' = f' + \sum \beta^2 V.

    Parameters
    ----------
    logits : (n, n_classes) float
    labels : (n,) int

    Returns
    -------
    (2,) float64
        They add up over sets of rows.

    Examples
    --------
    >>> slopes(np.array([[0.0, 0.0]]), np.array([0]), theta=0.0)
    array([0., 0.])
    """
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    beta = math.exp(theta)
    p = np.exp(beta * z)
    p /= p.sum(axis=1, keepdims=True)
    mean = (p * z).sum(axis=1)
    variance = (p * (z - mean[:, None]) ** 2).sum(axis=1)
    first = float(beta * (mean - z[np.arange(len(z)), labels]).sum())
    return np.array([first, first + beta**2 * float(variance.sum())])


def find_temperature(get_slopes: Callable[[float], NDArray[np.float64]]) -> tuple[float, float]:
    r"""Minimise the cross-entropy of held-out rows by one number, by which logits are divided.

    The minimum over :math:`\theta = -\log T` is where the first derivative is 0: Newton's steps,
    and halves of the interval where one would leave it. A normal prior of :math:`\theta` with
    deviation 2 is added; of rows without a mistake the minimum would be at :math:`T = 0`.

    Parameters
    ----------
    get_slopes : callable
        Takes :math:`\theta`, returns the sum of `slopes` over all rows.

    Returns
    -------
    float, float
        The temperature, and the deviation of its logarithm (from the second derivative).

    References
    ----------
    Guo, Pleiss, Sun, Weinberger (2017), "On calibration of modern neural networks", section 4.2.

    Examples
    --------
    >>> sure = np.array([[3.0, 0.0]] * 4)  # 95 %, and three of four are right
    >>> temperature, _ = find_temperature(lambda theta: 1000 * slopes(sure, np.eye(4, dtype=int)[0],
    ...                                                               theta))
    >>> round(float(np.exp(3 / temperature)), 2)  # odds
    3.0
    """
    theta, low, high, second = 0.0, -_WIDEST, _WIDEST, 1.0
    for _ in range(_MOST_STEPS):
        first, second = get_slopes(theta) + np.array([theta, 1.0]) / _PRIOR_DEVIATION**2
        low, high = (low, theta) if first > 0 else (theta, high)
        following = theta - first / second if second > 0 else math.inf
        if not low < following < high:
            following = (low + high) / 2
        moved, theta = abs(following - theta), following
        if moved < _TOLERANCE:
            break
    return math.exp(-theta), 1 / math.sqrt(max(second, 1e-12))


@dataclass(frozen=True, eq=False)
class Counts:
    """Sums over rows that `score` follows from; those of several sets of rows add up.

    Parameters
    ----------
    bins : (3, N_BINS) float64
        Rows, rows that are right, and summed confidence, by the confidence.
    sums : (4,) float64
        Of the cross-entropy and the Brier score, and of their squares.
    """

    bins: NDArray[np.float64]
    sums: NDArray[np.float64]

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.bins + other.bins, self.sums + other.sums)


def count(log_p: NDArray[np.float64], labels: NDArray[np.integer[Any]]) -> Counts:
    """Count rows by the probability of their likeliest class.

    Parameters
    ----------
    log_p : (n, n_classes) float64
        Logarithms of the probabilities.
    labels : (n,) int
        The right classes.
    """
    rows, p = np.arange(len(labels)), np.exp(log_p)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    # A confidence of a boundary belongs to the bin below, as in scikit-learn's calibration_curve.
    bins = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    weights = (np.ones(len(rows)), right, confidence)
    loss = -log_p[rows, labels]
    brier = (p**2).sum(axis=1) - 2 * p[rows, labels] + 1
    return Counts(
        np.stack([np.bincount(bins, weight, N_BINS) for weight in weights]),
        np.array([values.sum() for values in (loss, brier, loss**2, brier**2)]),
    )


def score(counts: Counts) -> Reliability:
    r"""Compute what counts amount to, each with its 95 % interval.

    The expected calibration error is the mean over images of \|accuracy - confidence\| of their
    bin. Its interval is 1.96 deviations of bootstrap draws wide on each side. Bins of few images
    differ by chance: `error_by_chance` is the mean error if every probability held, and where 5 %
    of such draws have a larger error than the one found, the interval begins at 0.
    """
    n_rows, right, confidence = counts.bins
    n_images = n_rows.sum()
    drawn = n_rows > 0
    n, share = n_rows[drawn], right[drawn] / n_rows[drawn]
    mean = np.minimum(confidence[drawn] / n, 1.0)
    error = float(np.abs(right[drawn] - confidence[drawn]).sum() / n_images)
    rng = np.random.default_rng(0)
    in_bin = rng.multinomial(int(n_images), n / n_images, _N_DRAWS)
    again = np.abs(rng.binomial(in_bin, share) - in_bin * mean).sum(axis=1) / n_images
    by_chance = rng.binomial(in_bin, mean) - in_bin * mean
    chance = np.abs(by_chance).sum(axis=1) / n_images
    half = 1.96 * float(again.std())
    low = max(error - half, 0.0) if error > np.quantile(chance, 0.95) else 0.0
    log_loss, brier = (
        _interval(total, squares, n_images)
        for total, squares in zip(counts.sums[:2], counts.sums[2:], strict=True)
    )
    columns = (n.astype(int), right[drawn].astype(int), mean)
    return Reliability(
        bins=tuple(zip(*(column.tolist() for column in columns), strict=True)),
        error=error,
        error_interval=(low, min(error + half, 1.0)),
        error_by_chance=float(chance.mean()),
        brier=brier[0],
        brier_interval=brier[1:],
        log_loss=log_loss[0],
        log_loss_interval=log_loss[1:],
    )  # fmt: skip


def _interval(total: float, squares: float, n: float) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval, by the normal approximation."""
    mean = float(total / n)
    deviation = math.sqrt(max(float(squares / n) - mean**2, 0.0))
    half = 1.959964 * deviation / math.sqrt(max(n - 1, 1))
    return mean, max(mean - half, 0.0), mean + half


def add_counts(parts: Sequence[Counts]) -> Counts:
    """Add up the counts of several sets of rows."""
    return sum(parts[1:], start=parts[0])
