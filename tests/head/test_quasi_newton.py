"""L-BFGS against problems whose minimum is known, and against rounding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
from helpers import loss_and_gradient

from dtl.head.quasi_newton import Array, Point, minimise

rng = np.random.default_rng(0)
X = rng.normal(size=(400, 12)) * rng.uniform(0.1, 5, 12)
Y = (X @ rng.normal(size=(12, 4)) + rng.gumbel(size=(400, 4))).argmax(axis=1)
L2 = 0.01


def softmax(x: np.ndarray) -> tuple[float, np.ndarray]:
    """A softmax layer's objective and gradient, in float64."""
    kernel, bias = x[:48].astype(np.float64).reshape(12, 4), x[48:].astype(np.float64)
    value, *gradients = loss_and_gradient(kernel, bias, X, Y, L2)
    return value, np.concatenate([g.ravel() for g in gradients])


def evaluate(x: Array) -> Point:
    value, gradient = softmax(x)
    return Point(x, value, gradient.astype(np.float32))


def test_finds_the_minimum_that_scipy_finds_in_as_many_steps() -> None:
    expected = scipy.optimize.minimize(
        softmax, np.zeros(52), jac=True, method="L-BFGS-B", options={"gtol": 1e-5, "ftol": 0}
    )
    n_evaluations = 0

    def counted(x: Array) -> Point:
        nonlocal n_evaluations
        n_evaluations += 1
        return evaluate(x)

    points = []
    for point in minimise(counted, np.zeros(52, np.float32)):
        points.append(point)
        if point.steepness <= 1e-5:
            break
    assert points[-1].value == pytest.approx(expected.fun, rel=1e-7)
    np.testing.assert_allclose(points[-1].x, expected.x, atol=2e-3)
    values = [point.value for point in points]
    assert all(b <= a * (1 + 1e-7) for a, b in itertools.pairwise(values))
    assert n_evaluations <= 1.3 * expected.nfev
    assert n_evaluations < 1.4 * len(points)


@pytest.mark.parametrize("noise", [1e-9, 1e-7])
def test_values_that_are_rounded_do_not_stop_it(noise: float) -> None:
    """SciPy's ends here with a gradient that is above the tolerance."""
    disturbed = np.random.default_rng(1)

    def rounded(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = softmax(x)
        return value * (1 + noise * disturbed.uniform(-1, 1)), gradient

    def evaluate(x: Array) -> Point:
        value, gradient = rounded(x)
        return Point(x, value, gradient.astype(np.float32))

    points = itertools.islice(minimise(evaluate, np.zeros(52, np.float32)), 200)
    assert min(point.steepness for point in points) <= 2e-6
    theirs = scipy.optimize.minimize(
        rounded, np.zeros(52), jac=True, method="L-BFGS-B", options={"gtol": 2e-6, "ftol": 0}
    )
    assert np.abs(theirs.jac).max() > 2e-6


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_finds_its_steps_at_any_scale(scale: float) -> None:
    weights = np.geomspace(1, 100, 30)

    def evaluate(x: Array) -> Point:
        away = x.astype(np.float64) - 3
        value = float(weights @ away**2) * scale / 2
        return Point(x, value, (scale * weights * away).astype(np.float32))

    points = list(itertools.islice(minimise(evaluate, np.zeros(30, np.float32)), 60))
    np.testing.assert_allclose(points[-1].x, 3, rtol=1e-4)


def test_ends_where_no_step_is_found() -> None:
    at_minimum = [Point(np.ones(3, np.float32), 0.0, np.zeros(3, np.float32))]
    assert len(list(minimise(lambda x: at_minimum[0], np.ones(3, np.float32)))) == 1

    def rising(x: Array) -> Point:  # its gradient is wrong
        return Point(x, float(x.sum()), -np.ones(3, np.float32))

    assert len(list(minimise(rising, np.zeros(3, np.float32)))) == 1


def test_values_that_are_not_finite_shorten_a_step() -> None:
    def evaluate(x: Array) -> Point:
        at = float(x[0])
        with np.errstate(all="ignore"):
            value = -np.log(np.float64(1 - at)) - 2 * np.log(np.float64(at))
        return Point(x, float(value), np.float32([1 / (1 - at) - 2 / at]))

    points = list(itertools.islice(minimise(evaluate, np.array([0.01], np.float32)), 30))
    assert points[-1].x[0] == pytest.approx(2 / 3, abs=1e-4)
