"""A softmax layer fitted to a few rows in memory, to the optimum."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from dtl.head import blas
from dtl.head.quasi_newton import Point, minimise
from dtl.head.softmax import Params, log_softmax, residuals, zero_params

_TOLERANCE = 1e-4
_MOST_STEPS = 300


def fit_softmax(
    features: NDArray[np.float32],
    labels: NDArray[np.integer],
    n_classes: int,
    l2: float,
    start: Params | None = None,
) -> Params:
    """Minimise the mean cross-entropy of rows plus ``l2 / 2 * sum(kernel ** 2)`` by L-BFGS.

    Parameters
    ----------
    features : (n, n_features) float32
        Scaled.
    labels : (n,) int
    start : Params, optional
        Nearer ones take fewer steps.

    Examples
    --------
    >>> params = fit_softmax(np.array([[1.0], [-1.0]], np.float32), np.array([0, 1]), 2, l2=0.1)
    >>> params["kernel"].round(2)
    array([[ 1.06, -1.06]], dtype=float32)
    """
    n_features = features.shape[1]
    size = n_features * n_classes
    start = start or zero_params(n_features, n_classes)

    def evaluate(x: NDArray[np.float32]) -> Point:
        kernel = x[:size].reshape(n_features, n_classes)
        log_p = log_softmax((features @ kernel + x[size:]).astype(np.float64))
        residual = residuals(log_p, labels) / len(labels)
        loss = -log_p[np.arange(len(labels)), labels].mean()
        gradient = features.T @ residual.astype(np.float32) + np.float32(l2) * kernel
        bias = residual.sum(axis=0).astype(np.float32)
        value = loss + 0.5 * l2 * float(np.square(kernel, dtype=np.float64).sum())
        return Point(x, float(value), np.concatenate([gradient.ravel(), bias]))

    x = np.concatenate([start["kernel"].ravel(), start["bias"]])
    with blas.one_blas_thread():
        for point in itertools.islice(minimise(evaluate, x), _MOST_STEPS):
            if point.steepness <= _TOLERANCE:
                break
    return {"kernel": point.x[:size].reshape(n_features, n_classes), "bias": point.x[size:]}
