"""Softmax regression: its loss and gradient, and SGD on it, in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

Params = dict[str, NDArray[np.float32]]
"""``kernel`` (n_features, n_classes), ``bias`` (n_classes,), and of each its ``_velocity``."""


def zeros(n_features: int, n_classes: int) -> Params:
    """The parameters that training starts from; the problem is convex, so no noise is needed."""
    return {
        "kernel": np.zeros((n_features, n_classes), np.float32),
        "bias": np.zeros(n_classes, np.float32),
        "kernel_velocity": np.zeros((n_features, n_classes), np.float32),
        "bias_velocity": np.zeros(n_classes, np.float32),
    }


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Logarithms of the probabilities, safe for logits of any size.

    Parameters
    ----------
    logits : (n, n_classes) float

    Examples
    --------
    >>> log_softmax(np.array([[1e4, 0.0]]))
    array([[     0., -10000.]])
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def loss_and_gradient(
    kernel: NDArray[Any],
    bias: NDArray[Any],
    features: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    l2: float = 0.0,
) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """The objective, ``mean cross-entropy + l2 / 2 * sum(kernel ** 2)``, and its gradient.

    scikit-learn's ``LogisticRegression(C=1 / (l2 * n))`` minimises the same.

    Parameters
    ----------
    kernel : (n_features, n_classes) float
    bias : (n_classes,) float
    features : (n, n_features) float
    labels : (n,) int

    Returns
    -------
    loss : float
    kernel_gradient, bias_gradient
        Of the shapes of `kernel` and `bias`.
    """
    n = len(labels)
    log_p = log_softmax(features @ kernel + bias)
    loss = -log_p[np.arange(n), labels].mean() + 0.5 * l2 * (kernel * kernel).sum()
    residual = np.exp(log_p)
    residual[np.arange(n), labels] -= 1
    residual /= n
    return float(loss), features.T @ residual + l2 * kernel, residual.sum(axis=0)


def sgd(
    params: Params,
    features: NDArray[np.float32],
    labels: NDArray[np.int32],
    batches: Iterable[NDArray[np.intp]],
    learning_rates: Iterable[float],
    *,
    momentum: float,
    l2: float,
) -> float:
    r"""Steps of SGD with Nesterov momentum, changing the parameters in place.

    With the gradient :math:`g` of `loss_and_gradient` on a batch, as Keras' ``SGD(nesterov=True)``,

    .. math:: v \leftarrow m v - \eta g, \qquad W \leftarrow W + m v - \eta g.

    Parameters
    ----------
    params : Params
    features : (n, n_features) float32, C order
    labels : (n,) int32
    batches : iterable of (batch_size,) int
        The rows of each step.
    learning_rates : iterable of float
        One for each step.

    Returns
    -------
    float
        Mean cross-entropy of the batches, each before its step and weighted by its rows; NaN if
        there were none.

    References
    ----------
    Sutskever et al. (2013), "On the importance of initialization and momentum in deep learning",
    with the parameters at the look-ahead point, as Bengio et al. (2012), section 3.5.
    """
    kernel, bias = params["kernel"], params["bias"]
    velocity, bias_velocity = params["kernel_velocity"], params["bias_velocity"]
    flat_kernel, flat_velocity = kernel.reshape(-1), velocity.reshape(-1)
    total, n_rows = 0.0, 0
    for rows, learning_rate in zip(batches, learning_rates, strict=True):
        x = features[rows]
        log_p = log_softmax(x @ kernel + bias)
        positions = np.arange(len(rows))
        total -= float(log_p[positions, labels[rows]].sum(dtype=np.float64))
        n_rows += len(rows)
        step = np.exp(log_p)
        step[positions, labels[rows]] -= 1
        step *= learning_rate / len(rows)
        # The kernel is as large as the processor's cache and the rest is small, so what counts is
        # how often it is passed over: twice, and once more for l2. With u = W - m v, the two
        # updates are v' = m (1 - a) v - eta g - a u and W' = u + (1 + m) v', a = eta l2; the
        # product adds to what is there. BLAS is column-major: it sees all arrays transposed.
        decay = learning_rate * l2
        if momentum:
            blas.saxpy(flat_velocity, flat_kernel, a=-momentum)
        blas.sgemm(
            -1.0, step.T, x.T, beta=momentum * (1 - decay), c=velocity.T, trans_b=1, overwrite_c=1
        )
        if decay:
            blas.saxpy(flat_kernel, flat_velocity, a=-decay)
        blas.saxpy(flat_velocity, flat_kernel, a=1 + momentum)
        bias_step = step.sum(axis=0)
        bias_velocity *= momentum
        bias_velocity -= bias_step
        bias += momentum * bias_velocity - bias_step
    return total / n_rows if n_rows else float("nan")
