"""Softmax regression: its gradient against differences, its weights against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import loss_and_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from dtl.head.softmax import balanced_weights, log_softmax, residuals


def problem(
    n: int = 60, n_features: int = 5, n_classes: int = 4, seed: int = 0, dtype: Any = np.float64
) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, n_features))
    labels = rng.integers(0, n_classes, n).astype(np.int32)
    features = centres[labels] + rng.normal(size=(n, n_features))
    kernel = rng.normal(size=(n_features, n_classes))
    bias = rng.normal(size=n_classes)
    return features.astype(dtype), labels, kernel.astype(dtype), bias.astype(dtype)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 99),
    st.sampled_from([0.0, 1e-2, 1.0]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, np.array([0.2, 1.0, 3.0])]),
)
def test_gradient_against_central_differences(
    seed: int, l2: float, smoothing: float, weights: np.ndarray | None
) -> None:
    features, labels, kernel, bias = problem(n=12, n_features=3, n_classes=3, seed=seed)
    options = (l2, smoothing, weights)
    _, kernel_gradient, bias_gradient = loss_and_gradient(kernel, bias, features, labels, *options)
    h = 1e-6
    for params, gradient in ((kernel, kernel_gradient), (bias, bias_gradient)):
        assert gradient.shape == params.shape
        for index in np.ndindex(params.shape):
            value = params[index]
            params[index] = value + h
            above = loss_and_gradient(kernel, bias, features, labels, *options)[0]
            params[index] = value - h
            below = loss_and_gradient(kernel, bias, features, labels, *options)[0]
            params[index] = value
            assert gradient[index] == pytest.approx((above - below) / (2 * h), abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_ten_thousand(dtype: Any) -> None:
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [1e4, 1e4, 0]], dtype)
    log_p = log_softmax(logits)
    assert log_p.dtype == dtype
    expected = [[0, -1e4, -2e4], [-np.log(3)] * 3, [-np.log(2), -np.log(2), -1e4 - np.log(2)]]
    np.testing.assert_allclose(log_p, expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-6)


def test_loss_and_gradient_of_huge_logits_are_finite() -> None:
    features = np.array([[1e4], [-1e4]])
    kernel, bias = np.array([[1.0, -1.0]]), np.zeros(2)
    right = loss_and_gradient(kernel, bias, features, np.array([0, 1]))
    assert right[0] == 0
    assert not right[1].any()
    wrong = loss_and_gradient(kernel, bias, features, np.array([1, 0]))
    assert wrong[0] == pytest.approx(2e4)
    np.testing.assert_allclose(wrong[1], [[1e4, -1e4]])


def test_smoothed_and_weighted_loss_is_the_mean_of_targets_times_logarithms() -> None:
    features, labels, kernel, bias = problem()
    weights = np.array([0.5, 1, 2, 4])
    targets = 0.9 * np.eye(4)[labels] + 0.1 / 4
    losses = -(targets * log_softmax(features @ kernel + bias)).sum(axis=1)
    loss, _, _ = loss_and_gradient(kernel, bias, features, labels, 0.0, 0.1, weights)
    assert loss == pytest.approx((weights[labels] * losses).mean())


def test_residuals_of_a_row_add_up_to_zero() -> None:
    _, labels, _, _ = problem()
    log_p = log_softmax(np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    residual = residuals(log_p, labels, 0.3, np.array([0.5, 1, 2, 4], np.float32))
    assert residual.dtype == np.float32
    np.testing.assert_allclose(residual.sum(axis=1), 0, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_balanced_weights_are_scikit_learns(labels: np.ndarray) -> None:
    labels = np.array(labels)
    classes = np.unique(labels)
    expected = compute_class_weight("balanced", classes=classes, y=labels)
    weights = balanced_weights(np.bincount(labels, minlength=7))
    np.testing.assert_allclose(weights[classes], expected, rtol=1e-12)
    assert weights[labels].sum() == pytest.approx(len(labels))
    assert not np.delete(weights, classes).any()
