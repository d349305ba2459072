"""L-BFGS for convex functions whose values and gradients have float32's rounding.

SciPy's takes 0.1 s or more for each step of a million parameters, which is a third of a pass over
20,000 rows. Its line search compares values alone, and near the optimum these differ by less than
they are rounded by: it then stops short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_N_PAIRS = 10
"""Steps that the curvature is known of, as SciPy's default."""

_MOST_TRIALS = 20
"""Of one line search."""

_STEEPEST, _RISE = 0.9, 0.8
"""The slope at a step's end, over that at its start: from minus the first to the second."""

_ROUNDING = 1e-7
"""Of values, as a share of them: float32's."""


@dataclass(frozen=True, eq=False)
class Point:
    """Parameters with the function's value and gradient there.

    Parameters
    ----------
    x, gradient : (n,) float32
    value : float
    detail : object
        What else the caller found there.
    """

    x: Array
    value: float
    gradient: Array
    detail: Any = None

    @property
    def steepness(self) -> float:
        """The largest part of the gradient."""
        return float(np.abs(self.gradient).max())


def minimise(evaluate: Callable[[Array], Point], x: Array) -> Iterator[Point]:
    """Yield the start, and then the point after each step, as long as any step is found.

    Parameters
    ----------
    evaluate : callable
        Takes parameters (n,) float32. It is called once per step, and again where the first length
        tried is no good.
    x : (n,) float32
        The start.

    References
    ----------
    Nocedal, Wright (2006), "Numerical optimization", algorithms 7.4 and 7.5.

    Examples
    --------
    >>> scale = np.array([1, 10], "f4")
    >>> def evaluate(x):
    ...     return Point(x, float(scale @ (x - 1) ** 2 / 2), scale * (x - 1))
    >>> points = minimise(evaluate, np.zeros(2, "f4"))
    >>> next(p for p in points if p.steepness < 1e-5).x.round(4)
    array([1., 1.], dtype=float32)
    """
    point = evaluate(x)
    pairs: deque[tuple[Array, Array, float]] = deque(maxlen=_N_PAIRS)
    while True:
        yield point
        direction = _descend(point.gradient, pairs)
        # Of the first direction no length is known: it moves the parameters by 1 at most.
        length = 1.0 if pairs else min(1.0, 1.0 / float(np.linalg.norm(direction) or 1.0))
        found = _search(evaluate, point, direction, length)
        if found is None:
            if not pairs:
                return
            pairs.clear()  # curvature of rounded gradients may mislead
            continue
        step, change = found.x - point.x, found.gradient - point.gradient
        curvature = float(step @ change)
        if curvature > np.finfo(np.float32).eps * float(change @ change):
            pairs.append((step, change, curvature))
        point = found


def _descend(gradient: Array, pairs: deque[tuple[Array, Array, float]]) -> Array:
    """Return minus the inverse Hessian's approximation times the gradient."""
    direction: Array = -gradient
    weights = []
    for step, change, curvature in reversed(pairs):
        weights.append(float(step @ direction) / curvature)
        direction -= np.float32(weights[-1]) * change
    if pairs:
        _, change, curvature = pairs[-1]
        direction *= np.float32(curvature / float(change @ change))
    for (step, change, curvature), weight in zip(pairs, reversed(weights), strict=True):
        direction += np.float32(weight - float(change @ direction) / curvature) * step
    return direction


def _search(
    evaluate: Callable[[Array], Point], start: Point, direction: Array, length: float
) -> Point | None:
    """Return a point along a direction where the slope is small enough, or None.

    The slope of a convex function grows along a line, so its sign tells on which side of the
    minimum a point lies. It is exact to float32's rounding where values are too near each other to
    be compared. A value counts only where it is higher by more than its rounding.

    References
    ----------
    Hager, Zhang (2005), "A new conjugate gradient method with guaranteed descent and an efficient
    line search": the approximate Wolfe conditions, 4.1, with other constants.
    """
    first = float(start.gradient @ direction)
    if not first < 0:
        return None
    low, low_slope, high, high_slope = 0.0, first, np.inf, np.nan
    for _ in range(_MOST_TRIALS):
        point = evaluate(start.x + np.float32(length) * direction)
        slope = float(point.gradient @ direction) if np.isfinite(point.value) else np.nan
        is_lower = point.value <= start.value + _ROUNDING * abs(start.value)
        if is_lower and _STEEPEST * first <= slope <= -_RISE * first:
            return point
        if slope < 0:
            low, low_slope = length, slope
        else:
            high, high_slope = length, slope
        if np.isinf(high):
            length *= 4
            continue
        # Where a line through both slopes is 0, but well within; half-way if one is infinite.
        share = low_slope / (low_slope - high_slope)
        share = min(max(share, 0.1), 0.9) if np.isfinite(share) else 0.5
        length = low + share * (high - low)
    return None
