"""The model with a hidden layer: its start, its gradient against central differences."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.head import hidden
from dtl.head.softmax import Params, log_softmax, residuals

N_CLASSES = 3


def problem(
    seed: int, n: int = 12, n_features: int = 4, n_units: int = 5
) -> tuple[Params, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = {
        name: rng.normal(size=shape)
        for name, shape in (
            ("hidden_kernel", (n_features, n_units)),
            ("hidden_bias", (n_units,)),
            ("kernel", (n_units, N_CLASSES)),
            ("bias", (N_CLASSES,)),
        )
    }
    kept = rng.random((n, n_units)) >= 0.3
    return params, rng.normal(size=(n, n_features)), rng.integers(0, N_CLASSES, n), kept


def loss(params: Params, features: np.ndarray, labels: np.ndarray, scale: Any) -> float:
    """Summed cross-entropy, where dropout multiplies the units by `scale`."""
    units = np.maximum(features @ params["hidden_kernel"] + params["hidden_bias"], 0) * scale
    log_p = log_softmax(units @ params["kernel"] + params["bias"])
    return -log_p[np.arange(len(labels)), labels].sum()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.3]))
def test_gradient_against_central_differences(seed: int, dropout: float) -> None:
    params, features, labels, kept = problem(seed)
    scale = kept / (1 - dropout) if dropout else 1.0
    taken = hidden.units(params["hidden_kernel"], params["hidden_bias"], features) * scale
    residual = residuals(log_softmax(taken @ params["kernel"] + params["bias"]), labels)
    back = hidden.residuals(residual, params["kernel"], taken, dropout)
    gradients = {
        "hidden_kernel": features.T @ back,
        "hidden_bias": back.sum(axis=0),
        "kernel": taken.T @ residual,
        "bias": residual.sum(axis=0),
    }
    h = 1e-6
    for name, gradient in gradients.items():
        values = params[name]
        assert gradient.shape == values.shape
        for index in np.ndindex(values.shape):
            value = values[index]
            values[index] = value + h
            above = loss(params, features, labels, scale)
            values[index] = value - h
            below = loss(params, features, labels, scale)
            values[index] = value
            assert gradient[index] == pytest.approx((above - below) / (2 * h), abs=1e-6)


def test_logits_with_a_hidden_layer_and_without() -> None:
    params, features, _, _ = problem(0)
    units = np.maximum(features @ params["hidden_kernel"] + params["hidden_bias"], 0)
    np.testing.assert_allclose(
        hidden.logits(params, features), units @ params["kernel"] + params["bias"]
    )
    top = {name: params[name] for name in ("kernel", "bias")}
    np.testing.assert_allclose(hidden.logits(top, units), units @ params["kernel"] + params["bias"])


def test_the_random_start_keeps_the_size_of_what_goes_through() -> None:
    params = hidden.random_params(1000, 500, N_CLASSES, seed=3)
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}
    kernel = params["hidden_kernel"]
    assert abs(kernel.mean()) < 3e-4
    assert np.abs(kernel).max() <= np.sqrt(6 / 1000) < 1.01 * np.abs(kernel).max()
    features = np.random.default_rng(0).normal(size=(200, 1000)).astype(np.float32)
    units = hidden.units(kernel, params["hidden_bias"], features)
    assert (units**2).mean() == pytest.approx(1, rel=0.05)
    assert not hidden.logits(params, features).any()  # all classes are alike probable


def test_the_random_start_follows_from_the_seed_on_any_machine() -> None:
    kernel = hidden.random_params(64, 32, N_CLASSES, seed=1)["hidden_kernel"]
    assert hashlib.sha256(kernel.astype("<f4").tobytes()).hexdigest()[:16] == "f999e04692977d08"
    assert (hidden.random_params(64, 32, N_CLASSES, seed=2)["hidden_kernel"] != kernel).any()
