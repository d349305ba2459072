"""Rules of gradient descent: one per optimizer, as Keras has it with its defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_EPSILON = 1e-7
"""Keras' default, as are the decays in the rules below."""


@dataclass(frozen=True)
class Step:
    """Numbers of one step that rules read.

    The factor is of the change, as `Optimizer.split_rate` has it; for a stack of heads one for each
    column. The count is of steps that the optimizer's state has seen, with this one.
    """

    factor: float | Array
    momentum: float
    count: int


@dataclass(frozen=True)
class Optimizer:
    """The rule of an optimizer.

    Parameters
    ----------
    update : callable
        Takes weights, gradient, state, a scratch array and the `Step`. It changes weights and state
        in place, and may write over the gradient and the scratch array.
    state : tuple of str
        Names of the arrays that it keeps per kernel and bias: ``kernel_velocity`` and so on.
    is_linear : bool
        Whether a step is linear in the gradient.
    """

    update: Callable[[Array, Array, Sequence[Array], Array, Step], None]
    state: tuple[str, ...]
    is_linear: bool = False

    def split_rate(self, learning_rate: float) -> tuple[float, float]:
        """Return the factors of the gradient and of the change, one of which holds the rate.

        A linear rule takes the gradient times minus the learning rate: that multiplies the small
        residuals that a gradient is made of, and saves a pass over the kernel.
        """
        return (-learning_rate, 1.0) if self.is_linear else (1.0, learning_rate)


def _nesterov(w: Array, g: Array, state: Sequence[Array], _scratch: Array, step: Step) -> None:
    (velocity,) = state
    velocity *= step.momentum
    velocity += g
    w += g
    w += np.multiply(velocity, step.momentum, out=g)


def _adam(w: Array, g: Array, state: Sequence[Array], scratch: Array, step: Step) -> None:
    mean, square = state
    beta1, beta2 = 0.9, 0.999
    _decay(mean, g, beta1, scratch)
    g *= g
    _decay(square, g, beta2, scratch)
    bias = math.sqrt(1 - beta2**step.count) / (1 - beta1**step.count)
    np.sqrt(square, out=scratch)
    scratch += _EPSILON
    np.multiply(mean, step.factor * bias, out=g)
    g /= scratch
    w -= g


def _rmsprop(w: Array, g: Array, state: Sequence[Array], scratch: Array, step: Step) -> None:
    (square,) = state
    _decay_square(square, g, 0.9, scratch)
    g *= step.factor
    g /= _root(square, scratch)
    w -= g


def _adadelta(w: Array, g: Array, state: Sequence[Array], scratch: Array, step: Step) -> None:
    square, change_square = state
    _decay_square(square, g, 0.95, scratch)
    g *= _root(change_square, scratch)
    g /= _root(square, scratch)
    _decay_square(change_square, g, 0.95, scratch)
    g *= step.factor
    w -= g


def _decay(mean: Array, value: Array, rate: float, scratch: Array) -> None:
    mean *= rate
    mean += np.multiply(value, 1 - rate, out=scratch)


def _decay_square(mean: Array, value: Array, rate: float, scratch: Array) -> None:
    np.multiply(value, value, out=scratch)
    _decay(mean, scratch, rate, scratch)


def _root(square: Array, out: Array) -> Array:
    np.add(square, _EPSILON, out=out)
    return np.sqrt(out, out=out)


OPTIMIZERS: Mapping[str, Optimizer] = {
    "nesterov": Optimizer(_nesterov, ("velocity",), is_linear=True),
    "adam": Optimizer(_adam, ("mean", "square")),
    "rmsprop": Optimizer(_rmsprop, ("square",)),
    "adadelta": Optimizer(_adadelta, ("square", "change_square")),
}
