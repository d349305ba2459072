"""Softmax regression: its gradient, and SGD against ten lines of NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dtl.softmax import log_softmax, loss_and_gradient, sgd, zeros


def problem(n=60, n_features=5, n_classes=4, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, n_features))
    labels = rng.integers(0, n_classes, n).astype(np.int32)
    features = centres[labels] + rng.normal(size=(n, n_features))
    kernel = rng.normal(size=(n_features, n_classes))
    bias = rng.normal(size=n_classes)
    return features.astype(dtype), labels, kernel.astype(dtype), bias.astype(dtype)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.sampled_from([0.0, 1e-2, 1.0]))
def test_gradient_against_central_differences(seed, l2):
    features, labels, kernel, bias = problem(n=12, n_features=3, n_classes=3, seed=seed)
    _, kernel_gradient, bias_gradient = loss_and_gradient(kernel, bias, features, labels, l2)
    h = 1e-6
    for params, gradient in ((kernel, kernel_gradient), (bias, bias_gradient)):
        assert gradient.shape == params.shape
        for index in np.ndindex(params.shape):
            value = params[index]
            params[index] = value + h
            above = loss_and_gradient(kernel, bias, features, labels, l2)[0]
            params[index] = value - h
            below = loss_and_gradient(kernel, bias, features, labels, l2)[0]
            params[index] = value
            assert gradient[index] == pytest.approx((above - below) / (2 * h), abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_ten_thousand(dtype):
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4], [1e4, 1e4, 0]], dtype)
    log_p = log_softmax(logits)
    assert log_p.dtype == dtype
    expected = [[0, -1e4, -2e4], [-np.log(3)] * 3, [-np.log(2), -np.log(2), -1e4 - np.log(2)]]
    np.testing.assert_allclose(log_p, expected, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-6)


def test_loss_and_gradient_of_huge_logits_are_finite():
    features = np.array([[1e4], [-1e4]])
    kernel, bias = np.array([[1.0, -1.0]]), np.zeros(2)
    right = loss_and_gradient(kernel, bias, features, np.array([0, 1]))
    assert right[0] == 0
    assert not right[1].any()
    wrong = loss_and_gradient(kernel, bias, features, np.array([1, 0]))
    assert wrong[0] == pytest.approx(2e4)
    np.testing.assert_allclose(wrong[1], [[1e4, -1e4]])


def plain_sgd(kernel, bias, features, labels, batches, learning_rates, momentum, l2):
    """As Keras' SGD(nesterov=True): v = m v - eta g; w = w + m v - eta g."""
    kernel_velocity, bias_velocity, losses = 0 * kernel, 0 * bias, []
    for rows, eta in zip(batches, learning_rates, strict=True):
        x, y = features[rows], labels[rows]
        p = np.exp(x @ kernel + bias)
        p /= p.sum(axis=1, keepdims=True)
        losses += [-np.log(p[np.arange(len(y)), y])]
        residual = (p - np.eye(len(bias))[y]) / len(y)
        kernel_gradient, bias_gradient = x.T @ residual + l2 * kernel, residual.sum(axis=0)
        kernel_velocity = momentum * kernel_velocity - eta * kernel_gradient
        bias_velocity = momentum * bias_velocity - eta * bias_gradient
        kernel = kernel + momentum * kernel_velocity - eta * kernel_gradient
        bias = bias + momentum * bias_velocity - eta * bias_gradient
    return kernel, bias, kernel_velocity, bias_velocity, np.concatenate(losses).mean()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("l2", [0.0, 1e-2])
@pytest.mark.parametrize("shape", [(5, 4), (1, 2), (33, 17)])
def test_sgd_equals_plain_numpy(momentum, l2, shape):
    features, labels, kernel, bias = problem(60, *shape)
    rng = np.random.default_rng(1)
    # Batches of different sizes: the mean loss is over rows, not over batches.
    batches = [rng.permutation(60)[:size] for size in [16] * 40 + [1, 7, 60]]
    rates = np.linspace(0.1, 0.01, len(batches)).tolist()
    expected = plain_sgd(kernel, bias, features, labels, batches, rates, momentum, l2)
    params = zeros(*shape)
    params["kernel"][:], params["bias"][:] = kernel, bias
    before = dict(params)
    loss = sgd(
        params, features.astype(np.float32), labels, batches, rates, momentum=momentum, l2=l2
    )
    assert all(params[name] is before[name] for name in params)  # in place
    names = ("kernel", "bias", "kernel_velocity", "bias_velocity")
    for name, value in zip(names, expected, strict=False):
        assert params[name].dtype == np.float32
        np.testing.assert_allclose(params[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert loss == pytest.approx(expected[-1], rel=1e-5)


def test_sgd_goes_on_where_it_stopped():
    features, labels, _, _ = problem(dtype=np.float32)
    batches = [np.arange(k, k + 10) for k in range(0, 50, 10)]
    whole, parts = zeros(5, 4), zeros(5, 4)
    sgd(whole, features, labels, batches, [0.1] * 5, momentum=0.9, l2=1e-3)
    sgd(parts, features, labels, batches[:2], [0.1] * 2, momentum=0.9, l2=1e-3)
    sgd(parts, features, labels, batches[2:], [0.1] * 3, momentum=0.9, l2=1e-3)
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])


def test_sgd_of_no_batches_changes_nothing():
    features, labels, _, _ = problem(dtype=np.float32)
    params = zeros(5, 4)
    assert np.isnan(sgd(params, features, labels, [], [], momentum=0.9, l2=0.1))
    assert not any(value.any() for value in params.values())


def test_every_batch_needs_its_learning_rate():
    features, labels, _, _ = problem(dtype=np.float32)
    with pytest.raises(ValueError, match="shorter"):
        sgd(zeros(5, 4), features, labels, [np.arange(3)] * 2, [0.1], momentum=0.0, l2=0.0)


@pytest.mark.parametrize("l2", [1e-2, 1e-1])
def test_converges_to_logistic_regression(l2):
    n = 200
    features, labels, _, _ = problem(n, seed=3, dtype=np.float32)
    params = zeros(5, 4)
    steps = 1500
    sgd(
        params, features, labels, [np.arange(n)] * steps, [0.3] * steps, momentum=0.9, l2=l2
    )  # fmt: skip
    best = LogisticRegression(C=1 / (l2 * n), tol=1e-8, max_iter=1000).fit(
        features.astype(np.float64), labels
    )
    np.testing.assert_allclose(params["kernel"], best.coef_.T, atol=2e-4)
    bias = params["bias"] - params["bias"].mean()  # the optimum's bias is free up to a constant
    np.testing.assert_allclose(bias, best.intercept_ - best.intercept_.mean(), atol=2e-4)
    objective, kernel_gradient, bias_gradient = loss_and_gradient(
        params["kernel"].astype(np.float64), params["bias"].astype(np.float64), features, labels, l2
    )
    at_best = loss_and_gradient(best.coef_.T, best.intercept_, features, labels, l2)[0]
    assert objective == pytest.approx(at_best, abs=1e-7)
    assert max(np.abs(kernel_gradient).max(), np.abs(bias_gradient).max()) < 1e-4
