"""Averages of replicas that have been trained apart, and moments of features, as data that adds up.

A distributed mean is a weighted sum, a combination of sums and a division at the end. Everything
here is exact in the order in which it is combined; a tree of fixed shape gives the same bits on any
number of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """Parameters of one or more replicas, summed.

    Parameters
    ----------
    n_samples : int
        The sum of the weights: the training rows of the replicas.
    sums : dict of str to float64 array
        ``sum(n_samples * parameter)`` of each parameter; empty for replicas without rows.
    squares : float
        ``sum(n_samples * sum(kernel ** 2))``, for the spread of the replicas.
    """

    n_samples: int = 0
    sums: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    squares: float = 0.0

    @classmethod
    def of(cls, params: Mapping[str, NDArray[Any]], n_samples: int) -> WeightedSum:
        """One replica; without samples it weighs nothing."""
        if n_samples == 0:
            return cls()
        sums = {name: value.astype(np.float64) for name, value in params.items()}
        kernel = sums["kernel"].ravel()
        squares = n_samples * float(kernel @ kernel)
        for value in sums.values():
            value *= n_samples
        return cls(n_samples, sums, squares)


def combine(parts: Sequence[WeightedSum]) -> WeightedSum:
    """Add weighted sums up, from the first to the last."""
    parts = [part for part in parts if part.n_samples]
    if not parts:
        return WeightedSum()
    sums = {name: value.copy() for name, value in parts[0].sums.items()}
    for part in parts[1:]:
        for name, value in part.sums.items():
            sums[name] += value
    return WeightedSum(
        sum(part.n_samples for part in parts), sums, sum(part.squares for part in parts)
    )


def average(total: WeightedSum) -> tuple[dict[str, NDArray[np.float32]], float]:
    """The averaged parameters, and how far the replicas were apart.

    Returns
    -------
    params : dict of str to float32 array
    spread : float
        Root of the weighted mean of ``norm(kernel - average) ** 2``, over the average's norm.

    Raises
    ------
    ValueError
        If no replica had samples.

    References
    ----------
    McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized
    data", algorithm 1; Zinkevich et al. (2010), "Parallelized stochastic gradient descent".

    Examples
    --------
    >>> one, three = ({"kernel": np.full((1, 1), v)} for v in (1.0, 3.0))
    >>> params, spread = average(combine([WeightedSum.of(one, 1), WeightedSum.of(three, 3)]))
    >>> params["kernel"].item(), round(spread, 3)
    (2.5, 0.346)
    """
    if total.n_samples == 0:
        raise ValueError("No replica had training rows to learn from. Check the split.")
    means = {name: value / total.n_samples for name, value in total.sums.items()}
    kernel = means["kernel"].ravel()
    norm2 = float(kernel @ kernel)
    spread2 = max(total.squares / total.n_samples - norm2, 0.0)
    spread = float(np.sqrt(spread2 / norm2)) if norm2 else 0.0
    return {name: value.astype(np.float32) for name, value in means.items()}, spread


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and sum of squared deviations of rows, (n_features,) float64."""

    n: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Moments:
        """Those of rows (n, n_features)."""
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0))

    def scale(self) -> NDArray[np.float32]:
        """Standard deviation (of the population), and 1 for a constant feature."""
        deviation = np.sqrt(self.m2 / max(self.n, 1))
        # The rounding of a mean leaves a constant feature a deviation of some ulps.
        constant = deviation <= 1e-7 * np.abs(self.mean)
        return np.where(constant, 1.0, deviation).astype(np.float32)


def combine_moments(parts: Sequence[Moments]) -> Moments:
    """Moments of all rows from those of parts.

    References
    ----------
    Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances".

    Examples
    --------
    >>> a, b = np.array([[1.0], [3.0]]), np.array([[8.0]])
    >>> combine_moments([Moments.of(a), Moments.of(b)]).m2.round(6)
    array([26.])
    """
    total = parts[0]
    for part in parts[1:]:
        n = total.n + part.n
        if part.n == 0:
            continue
        delta = part.mean - total.mean
        total = Moments(
            n,
            total.mean + delta * (part.n / n),
            total.m2 + part.m2 + delta**2 * (total.n * part.n / n),
        )
    return total
