"""Softmax regression: its loss and gradient."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Params = dict[str, NDArray[np.float32]]
"""Weights by name: ``kernel`` (n_features, n_classes) and ``bias`` (n_classes,), or all of
`model.WEIGHTS` for a head with a hidden layer. All else that passes from round to round has names
that begin with theirs: the optimizer's state, and the velocities of `averaging.outer_step`. Missing
ones are zeros."""


class Rows(Protocol):
    """Source of a batch's features: an array, or a reader of the store.

    ``rows[i]`` of (batch_size,) int gives a new array (batch_size, n_features), float32.
    """

    def __getitem__(self, rows: NDArray[np.intp], /) -> NDArray[np.float32]: ...


def zero_params(n_features: int, n_classes: int) -> Params:
    """Return zeros to start training from; the problem is convex, so no noise is needed."""
    return {
        "kernel": np.zeros((n_features, n_classes), np.float32),
        "bias": np.zeros(n_classes, np.float32),
    }


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Return logarithms of the probabilities (n, n_classes), safe for logits of any size.

    Examples
    --------
    >>> log_softmax(np.array([[1e4, 0.0]]))
    array([[     0., -10000.]])
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def residuals(
    log_probabilities: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    label_smoothing: float = 0.0,
    class_weights: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the derivative of the rows' summed loss by their logits: probabilities less targets.

    A target is ``1 - label_smoothing`` for the row's class, and ``label_smoothing / n_classes``
    more for every class.

    Parameters
    ----------
    log_probabilities : (n, n_classes) float
    class_weights : (n_classes,) float, optional
        The weight of a row of each class; 1 for all if left out.

    Returns
    -------
    (n, n_classes) float
        Of the dtype of `log_probabilities`. The sum of each row is 0.

    References
    ----------
    Szegedy et al. (2016), "Rethinking the Inception architecture for computer vision", section 7.

    Examples
    --------
    >>> residuals(np.log([[0.5, 0.5]]), np.array([1]), label_smoothing=0.2).round(6)
    array([[ 0.4, -0.4]])
    """
    residual: NDArray[Any] = np.exp(log_probabilities)
    if label_smoothing:
        residual -= label_smoothing / residual.shape[1]
    residual[np.arange(len(labels)), labels] -= 1 - label_smoothing
    if class_weights is not None:
        residual *= class_weights[labels, None]
    return residual


def balanced_weights(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return class weights that make all classes count alike, and leave the sum over rows as it is.

    They are ``n_rows / (n_classes * counts)``, where `n_classes` counts those that have rows, as
    scikit-learn's ``class_weight="balanced"``; 0 for a class without.

    Examples
    --------
    >>> balanced_weights(np.array([1, 3, 0]))
    array([2.        , 0.66666667, 0.        ])
    """
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights
