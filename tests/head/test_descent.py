"""Every optimizer against Keras' own of the same name, and what is done to its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import descend_keras_model, loss_and_gradient
from sklearn.linear_model import LogisticRegression

from dtl.config import TrainConfig
from dtl.head import hidden
from dtl.head.descent import descend, gradient_norm, stack_heads, take_head
from dtl.head.model import WEIGHTS
from dtl.head.optimizers import OPTIMIZERS
from dtl.head.schedules import Steps, stack_steps
from dtl.head.softmax import Params, balanced_weights, zero_params

DEFAULTS = TrainConfig()
RATES = {"adam": 1e-2, "rmsprop": 1e-2, "adadelta": 1.0}


def problem(
    n: int = 60, n_features: int = 5, n_classes: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, n_features))
    labels = rng.integers(0, n_classes, n).astype(np.int32)
    features = (centres[labels] + rng.normal(size=(n, n_features))).astype(np.float32)
    return features, labels


def start(n_features: int = 5, n_classes: int = 4, seed: int = 1, n_units: int = 0) -> Params:
    params = zero_params(n_features, n_classes)
    if n_units:
        params = hidden.random_params(n_features, n_units, n_classes, seed)
    params["kernel"] += np.random.default_rng(seed).normal(size=params["kernel"].shape)
    return params


def steps_of(
    rates: Sequence[float],
    config: TrainConfig = DEFAULTS,
    first: int = 0,
    seed: tuple[int, ...] = (0,),
) -> Steps:
    return Steps(config, tuple((rate,) for rate in rates), (config.l2,), first, seed)


def some_batches(n_steps: int, n: int = 60, seed: int = 1) -> list[np.ndarray]:
    # Of different sizes: the mean loss is over rows, not over batches.
    rng = np.random.default_rng(seed)
    return [rng.permutation(n)[: 16 - i % 5] for i in range(n_steps)]


def keras_optimizer(name: str, momentum: float) -> Any:
    import keras

    return {
        "nesterov": lambda: keras.optimizers.SGD(0.1, momentum, nesterov=True),
        "adam": keras.optimizers.Adam,
        "rmsprop": keras.optimizers.RMSprop,
        "adadelta": keras.optimizers.Adadelta,
    }[name]()


def descend_with_keras(
    config: TrainConfig,
    params: Params,
    features: np.ndarray,
    labels: np.ndarray,
    batches: Sequence[np.ndarray],
    rates: Sequence[float],
) -> tuple[list[np.ndarray], float]:
    """Keras' optimizer on the gradients that central differences vouch for."""
    import keras

    optimizer = keras_optimizer(config.optimizer, config.momentum)
    weights = [keras.Variable(params[name]) for name in ("kernel", "bias")]
    losses = []
    for rows, rate in zip(batches, rates, strict=True):
        kernel, bias = (w.numpy() for w in weights)
        arguments = (kernel, bias, features[rows], labels[rows])
        losses += [loss_and_gradient(*arguments)[0]] * len(rows)
        _, *gradients = loss_and_gradient(*arguments, config.l2, config.label_smoothing)
        if config.clip_norm:
            norm = np.sqrt(sum((g**2).sum() for g in gradients))
            gradients = [g * min(1.0, config.clip_norm / norm) for g in gradients]
        optimizer.learning_rate = rate
        optimizer.apply(gradients, weights)
    return [w.numpy() for w in weights], np.mean(losses)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.0}, {"l2": 0.0}, {"label_smoothing": 0.2}, {"clip_norm": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_are_kerass(optimizer: str, options: dict[str, Any]) -> None:
    config = TrainConfig(optimizer=optimizer, **options)
    features, labels = problem()
    batches = some_batches(20)
    rates = (RATES.get(optimizer, 0.1) * np.linspace(1, 0.5, 20)).tolist()
    before = start()
    expected, expected_loss = descend_with_keras(config, before, features, labels, batches, rates)
    params, loss = descend(before, features, labels, batches, steps_of(rates, config))
    assert np.abs(params["kernel"] - before["kernel"]).max() > 1e-3
    for name, value in zip(("kernel", "bias"), expected, strict=True):
        assert params[name].dtype == np.float32
        np.testing.assert_allclose(params[name], value, rtol=2e-5, atol=2e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_blocks_change_nothing(optimizer: str) -> None:
    """More rows than one block has, the last block short, and one row a block."""
    config = TrainConfig(optimizer=optimizer, clip_norm=2.0)
    for n_features, n_classes in ((600, 257), (2, 70_000)):
        features, labels = problem(60, n_features, n_classes)
        batches, rates = some_batches(5), [RATES.get(optimizer, 0.1)] * 5
        params = start(n_features, n_classes)
        expected, _ = descend_with_keras(config, params, features, labels, batches, rates)
        params, _ = descend(params, features, labels, batches, steps_of(rates, config))
        np.testing.assert_allclose(params["kernel"], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"l2": 0.0, "label_smoothing": 0.2}, {"clip_norm": 0.1}, {"clip_norm": 0.1, "l2": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_hidden_layer_learns_as_keras_model_does(optimizer: str, options: dict[str, Any]) -> None:
    config = TrainConfig(optimizer=optimizer, hidden_units=300, **options)
    # More than one block of the hidden kernel, the last one short.
    features, labels = problem(60, 500)
    batches = some_batches(10)
    rates = (RATES.get(optimizer, 0.1) * np.linspace(1, 0.5, 10)).tolist()
    weights = np.array([0.5, 1, 2, 0.7], np.float32)
    before = start(500, n_units=300)
    optimizer = keras_optimizer(optimizer, config.momentum)
    rows = features, labels, batches
    expected = descend_keras_model(optimizer, config, before, *rows, rates, class_weights=weights)
    params, _ = descend(before, *rows, steps_of(rates, config), weights)
    for name, value in zip(WEIGHTS, expected, strict=True):
        assert params[name].dtype == np.float32
        moved = np.linalg.norm(value - before[name])
        assert np.linalg.norm(params[name] - value) < 1e-3 * moved


def test_dropout_leaves_out_that_share_of_the_hidden_units() -> None:
    """A unit that is left out of the only row learns nothing, above it or below."""
    features, labels = np.ones((1, 3), np.float32), np.zeros(1, np.int32)
    config = TrainConfig(momentum=0.0, dropout=0.25, l2=0.0)
    before = start(3, n_units=20_000)
    before["hidden_kernel"] = np.abs(before["hidden_kernel"])  # so that all units are above 0
    params, _ = descend(before, features, labels, [np.arange(1)], steps_of([1e-3], config))
    above, below = (params[n] != before[n] for n in ("kernel", "hidden_kernel"))
    assert (above.any(axis=1) == below.any(axis=0)).all()
    assert above.any(axis=1).mean() == pytest.approx(0.75, abs=0.01)
    assert (features == 1).all()


@pytest.mark.parametrize("n_units", [0, 6])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_goes_on_where_it_stopped_to_the_same_bits(optimizer: str, n_units: int) -> None:
    config = TrainConfig(optimizer=optimizer, dropout=0.3)
    features, labels = problem()
    batches, rates = some_batches(7), [0.01] * 7
    params = start(n_units=n_units)
    whole, _ = descend(params, features, labels, batches, steps_of(rates, config))
    for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
        before = {name: value.copy() for name, value in params.items()}
        after, _ = descend(
            params, features, labels, batches[part],
            steps_of(rates[part], config, first=part.start),
        )  # fmt: skip
        for name, value in before.items():
            np.testing.assert_array_equal(params[name], value)  # what was given is as it was
            assert not np.shares_memory(params[name], after[name])
        params = after
    assert list(params) == list(whole)
    assert len(whole) == (4 if n_units else 2) * (1 + len(OPTIMIZERS[optimizer].state))
    for name in whole:
        np.testing.assert_array_equal(params[name], whole[name])


def test_what_is_of_no_optimizer_is_left_out() -> None:
    features, labels = problem()
    before = start() | {"kernel_outer_velocity": np.ones((5, 4), np.float32)}
    params, _ = descend(before, features, labels, some_batches(2), steps_of([0.1] * 2))
    assert list(params) == ["kernel", "bias", "kernel_velocity", "bias_velocity"]


def test_no_batches_change_nothing() -> None:
    features, labels = problem()
    params, loss = descend(start(), features, labels, [], steps_of([]))
    assert np.isnan(loss)
    for name, value in start().items():
        np.testing.assert_array_equal(params[name], value)
    assert not params["kernel_velocity"].any()


def test_every_batch_needs_its_learning_rate() -> None:
    features, labels = problem()
    with pytest.raises(ValueError, match="shorter"):
        descend(zero_params(5, 4), features, labels, [np.arange(3)] * 2, steps_of([0.1]))


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_norm_without_the_gradient(l2: float, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    features, labels = problem()
    features = features.astype(np.float64)
    kernel, bias = rng.normal(size=(5, 4)), rng.normal(size=4)
    weights = np.array([0.5, 1, 2, 4]) if weighted else None
    _, *gradients = loss_and_gradient(kernel, bias, features, labels, l2, 0.1, weights)
    logits = features @ kernel
    p = np.exp(logits + bias)
    p /= p.sum(axis=1, keepdims=True)
    residual = (p - 0.9 * np.eye(4)[labels] - 0.1 / 4) / len(labels)
    if weighted:
        residual *= weights[labels][:, None]
    expected = np.sqrt(sum((g**2).sum() for g in gradients))
    for constant in (0.0, 5.0):
        norm = gradient_norm(kernel, features, residual, logits + constant, l2)
        assert norm == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("l2", [1e-2, 1e-1])
def test_converges_to_scikit_learns_logistic_regression(
    l2: float, class_weight: str | None
) -> None:
    features, labels = problem(200, seed=3)
    kept = (labels != 2) | (np.arange(200) % 5 == 0)  # unbalanced
    features, labels = features[kept], labels[kept]
    n, steps = len(labels), 1500
    weights = None
    if class_weight:
        weights = balanced_weights(np.bincount(labels)).astype(np.float32)
    params, _ = descend(
        zero_params(5, 4), features, labels, [np.arange(n)] * steps,
        steps_of([0.3] * steps, TrainConfig(l2=l2)), weights,
    )  # fmt: skip
    best = LogisticRegression(
        C=1 / (l2 * n), class_weight=class_weight, tol=1e-8, max_iter=1000
    ).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(params["kernel"], best.coef_.T, atol=2e-4)
    bias = params["bias"] - params["bias"].mean()  # the optimum's bias is free up to a constant
    np.testing.assert_allclose(bias, best.intercept_ - best.intercept_.mean(), atol=2e-4)


def test_dropout_leaves_out_that_share_and_keeps_the_mean() -> None:
    """With one step of SGD from zeros the kernel is a known combination of the inputs."""
    n_features = 20_000
    features, labels = np.ones((4, n_features), np.float32), np.zeros(4, np.int32)
    config = TrainConfig(momentum=0.0, dropout=0.25, l2=0.0)

    def kernel(**where: Any) -> np.ndarray:
        before = zero_params(n_features, 2)
        params, _ = descend(
            before, features, labels, [np.arange(4)], steps_of([1.0], config, **where)
        )
        return params["kernel"][:, 0]

    first = kernel(first=3, seed=(0, 1))
    # Each row brings 1/2 / 4 of its input, which is 0 or 1 / 0.75.
    n_kept = first * 8 * 0.75
    np.testing.assert_allclose(n_kept, n_kept.round(), atol=1e-5)
    assert n_kept.mean() / 4 == pytest.approx(0.75, abs=0.01)
    assert set(n_kept.round()) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(first, kernel(first=3, seed=(0, 1)))
    for other in ({"first": 4, "seed": (0, 1)}, {"first": 3, "seed": (0, 2)},
                  {"first": 3, "seed": (1, 1)}):  # fmt: skip
        assert (first != kernel(**other)).any()
    assert (features == 1).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.3}, {"label_smoothing": 0.2}, {"clip_norm": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(5, 4), (300, 130)])
def test_stacked_heads_take_the_steps_that_each_takes_alone(
    shape: tuple[int, ...], optimizer: str, options: dict[str, Any]
) -> None:
    config = TrainConfig(optimizer=optimizer, **options)
    features, labels = problem(60, *shape)
    batches = some_batches(12)
    alone, rates, l2s, losses = [], [], (0.0, 0.01, 0.5), []
    for k in range(3):
        rates.append((RATES.get(optimizer, 0.1) * np.linspace(1, 0.5, 12) / (k + 1)).tolist())
        alone.append(start(*shape, seed=k))
    together = stack_heads(alone)
    weights = np.linspace(0.5, 2, shape[1]).astype(np.float32)
    steps = [steps_of(rates[k], replace(config, l2=l2), first=7) for k, l2 in enumerate(l2s)]
    rows = features, labels, batches
    for k, of_one in enumerate(steps):
        alone[k], loss = descend(alone[k], *rows, of_one, weights)
        losses.append(loss)
    params, loss = descend(together, *rows, stack_steps(steps), weights)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    for k, head in enumerate(alone):
        one = take_head(params, k, n_heads=3)
        assert one.keys() == head.keys()
        for name in head:
            np.testing.assert_allclose(one[name], head[name], rtol=1e-3, atol=1e-5)


def test_a_stacked_head_that_diverges_spoils_no_other() -> None:
    features, labels = problem()
    batches, rates = some_batches(60), (0.1, 1e9, 0.1)
    together = stack_heads([start() for _ in rates])
    with np.errstate(all="ignore"):
        steps = stack_steps([steps_of([rate] * 60) for rate in rates])
        params, _ = descend(together, features, labels, batches, steps)
    alone, _ = descend(start(), features, labels, batches, steps_of([0.1] * 60))
    assert not np.isfinite(take_head(params, 1, 3)["kernel"]).all()
    for k in (0, 2):
        np.testing.assert_allclose(
            take_head(params, k, 3)["kernel"], alone["kernel"], rtol=1e-3, atol=1e-5
        )
