"""Scaling of features before a head is trained on them: rows first, then columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

NORMALISATIONS = ("standardise", "l2", "sqrt-l2")
"""Ways to scale: values of `train.normalize`."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and sum of squared deviations of rows, (n_features,) float64."""

    n: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Moments:
        """Return the moments of rows (n, n_features)."""
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0))

    def scale(self) -> NDArray[np.float32]:
        """Return the population's standard deviation, and 1 for a constant feature."""
        deviation = np.sqrt(self.m2 / max(self.n, 1))
        # The rounding of a mean leaves a constant feature a deviation of some ulps.
        constant = deviation <= 1e-7 * np.abs(self.mean)
        return np.where(constant, 1.0, deviation).astype(np.float32)

    def common_scale(self) -> NDArray[np.float32]:
        """Return the root of the features' mean variance, for each; 1 if all are constant."""
        deviation = np.sqrt(self.m2.sum() / max(self.n, 1) / len(self.m2))
        constant = deviation <= 1e-7 * np.abs(self.mean).max(initial=0)
        return np.full(len(self.m2), 1.0 if constant else deviation, np.float32)


def merge_moments(parts: Sequence[Moments]) -> Moments:
    """Merge the moments of parts of the rows, from the first to the last.

    Examples
    --------
    >>> a, b = np.array([[1.0], [3.0]]), np.array([[8.0]])
    >>> merge_moments([Moments.of(a), Moments.of(b)]).m2.round(6)
    array([26.])
    """
    total = parts[0]
    for part in parts[1:]:
        if part.n == 0:
            continue
        n, delta = total.n + part.n, part.mean - total.mean
        m2 = total.m2 + part.m2 + delta**2 * (total.n * part.n / n)
        total = Moments(n, total.mean + delta * (part.n / n), m2)
    return total


@dataclass(frozen=True, eq=False)
class Scaling:
    """Scaling of rows, and then of columns by the training rows.

    ``standardise`` leaves rows as they are, and gives every feature the deviation 1. ``l2`` gives
    rows unit length, ``sqrt-l2`` takes signed square roots before. Both then divide all features by
    one number, so that their mean variance is 1: learning rates and penalties mean the same.

    Parameters
    ----------
    normalize : str
        One of `NORMALISATIONS`.
    mean : (n_features,) float
        Of the training rows, after the scaling of rows.
    scale : (n_features,) float32
        Above 0.

    References
    ----------
    Perronnin, Sánchez, Mensink (2010), "Improving the Fisher kernel for large-scale image
    classification", sections 3.1 and 3.2.
    """

    normalize: str
    mean: NDArray[Any]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, moments: Moments, normalize: str) -> Scaling:
        """Return the scaling by the moments of training rows, which `scale_rows` has scaled.

        Examples
        --------
        >>> rows = scale_rows(np.array([[3.0, 4.0], [0.0, 0.0]]), "l2")
        >>> Scaling.fit(Moments.of(rows), "l2").scale
        array([0.35355338, 0.35355338], dtype=float32)
        """
        scale = moments.scale() if normalize == "standardise" else moments.common_scale()
        return cls(normalize, moments.mean, scale)

    def apply(self, features: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return scaled features (n, n_features), computed in `dtype`."""
        scaled = scale_rows(features, self.normalize, dtype)
        scaled -= self.mean.astype(dtype)
        scaled /= self.scale
        return scaled


def scale_rows(
    features: NDArray[Any], normalize: str, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Return a copy of features (n, n_features) in `dtype`, each row scaled by itself.

    A row of zeros stays one.

    Examples
    --------
    >>> scale_rows(np.array([[9, -16], [0, 0]]), "sqrt-l2").round(2)
    array([[ 0.6, -0.8],
           [ 0. ,  0. ]], dtype=float32)
    """
    rows: NDArray[Any] = features.astype(dtype)
    if normalize == "standardise":
        return rows
    if normalize == "sqrt-l2":
        rows = np.copysign(np.sqrt(np.abs(rows)), rows)
    # In float32, the squares of large or small numbers would be infinite or 0.
    lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    rows /= np.where(lengths == 0, 1, lengths)
    return rows
