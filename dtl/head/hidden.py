"""A hidden layer of ReLU units: ``max(0, features @ hidden_kernel + hidden_bias)``.

The softmax layer takes units as it would take features. The problem is not convex any more: the
result depends on the start.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.head import softmax
from dtl.head.softmax import Params

_START = 2
"""Keeps the random numbers of the start apart from those of the rows' order and of dropout."""


def random_params(n_features: int, n_units: int, n_classes: int, seed: int) -> Params:
    r"""Return random hidden units below a softmax layer of zeros: all classes are equally probable.

    The kernel is uniform in :math:`\pm\sqrt{6 / n_{features}}`, so that units of standardised
    features have a second moment of 1. Uniform numbers need no logarithm, so they have the same
    bits on any machine.

    References
    ----------
    He et al. (2015), "Delving deep into rectifiers".

    Examples
    --------
    >>> {name: value.shape for name, value in random_params(6, 4, 3, seed=0).items()}
    {'hidden_kernel': (6, 4), 'hidden_bias': (4,), 'kernel': (4, 3), 'bias': (3,)}
    """
    rng = np.random.default_rng([seed, 0, 0, _START])
    kernel = rng.random((n_features, n_units), np.float32)
    kernel -= np.float32(0.5)
    kernel *= np.float32(2 * math.sqrt(6 / n_features))
    hidden = {"hidden_kernel": kernel, "hidden_bias": np.zeros(n_units, np.float32)}
    return hidden | softmax.zero_params(n_units, n_classes)


def units(kernel: NDArray[Any], bias: NDArray[Any], features: NDArray[Any]) -> NDArray[Any]:
    """Return the hidden units (n, n_units) of features (n, n_features)."""
    sums: NDArray[Any] = features @ kernel
    sums += bias
    np.maximum(sums, 0, out=sums)
    return sums


def residuals(
    residual: NDArray[Any], kernel: NDArray[Any], units: NDArray[Any], dropout: float = 0.0
) -> NDArray[Any]:
    """Return the derivative of the rows' loss by the sums that the units were made of.

    Parameters
    ----------
    residual : (n, n_classes) float
        The derivative by the logits, as `softmax.residuals` has it.
    kernel : (n_units, n_classes) float
        Of the softmax layer.
    units : (n, n_units) float
        The softmax layer's inputs: 0 where dropout left a unit out.
    dropout : float
        The share of units that it left out; the others count ``1 / (1 - dropout)``.

    Returns
    -------
    (n, n_units) float
        The gradient of the hidden kernel is ``features.T @`` this, that of its bias the sum over
        rows.
    """
    back: NDArray[Any] = residual @ kernel.T
    back *= units > 0
    if dropout:
        back *= 1 / (1 - dropout)
    return back


def logits(params: Params, features: NDArray[Any]) -> NDArray[Any]:
    """Return scores (n, n_classes) of standardised features, with a hidden layer or without."""
    inputs = features
    if "hidden_kernel" in params:
        inputs = units(params["hidden_kernel"], params["hidden_bias"], features)
    scores: NDArray[Any] = inputs @ params["kernel"] + params["bias"]
    return scores
