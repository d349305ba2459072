"""Averages as data that adds up: the order does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtl.head.averaging import (
    Mean,
    distance_and_norm,
    merge,
    outer_step,
    pairwise,
)
from dtl.head.softmax import Params


def replicas(seed: int, n: int, shape: tuple[int, ...] = (4, 3)) -> list[Params]:
    rng = np.random.default_rng(seed)
    return [
        {
            "kernel": rng.normal(size=shape).astype(np.float32),
            "bias": rng.normal(size=shape[1]).astype(np.float32),
        }
        for _ in range(n)
    ]


def means(all_params: list[Params], weights: list[int]) -> list[Mean]:
    return [Mean.of(p, n) for p, n in zip(all_params, weights, strict=True)]


def expected_scatter(all_params: list[Params], weights: list[int]) -> float:
    """By the definition, in float64; of all kernels as one."""
    kernels = [name for name in all_params[0] if name.endswith("kernel")]
    as_one = np.array([np.concatenate([p[k].ravel() for k in kernels]) for p in all_params], "f8")
    mean = np.average(as_one, axis=0, weights=weights)
    return (((as_one - mean) ** 2).sum(axis=1) * weights).sum()


WEIGHTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=17).filter(any)


@given(st.integers(1, 40), st.integers(0, 4))
def test_the_tree_is_the_same_however_runs_were_merged(n: int, level: int) -> None:
    def join(a: Any, b: Any) -> str:
        return f"({a} {b})"

    leaves, width = [str(i) for i in range(n)], 2**level
    runs = [pairwise(leaves[k : k + width], join) for k in range(0, n, width)]
    assert pairwise(runs, join) == pairwise(leaves, join)


def test_pairs_are_merged_as_soon_as_they_are_there() -> None:
    held, most = 0, 0

    def leaves() -> Iterator[int]:
        nonlocal held, most
        for _ in range(64):
            held += 1
            most = max(most, held)
            yield 1

    def add(a: Any, b: Any) -> int:
        nonlocal held
        held -= 1
        return a + b

    assert pairwise(leaves(), add) == 64
    assert most == 7


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        pairwise([], merge)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 99))
def test_a_mean_is_weighted_by_samples(weights: list[int], seed: int) -> None:
    all_params = replicas(seed, len(weights))
    total = pairwise(means(all_params, weights), merge)
    assert total.n_samples == sum(weights)
    for name, value in total.params.items():
        assert value.dtype == np.float32
        stacked = np.stack([p[name] for p in all_params]).astype(np.float64)
        np.testing.assert_allclose(value, np.average(stacked, axis=0, weights=weights), atol=1e-6)
    scatter = expected_scatter(all_params, weights)
    assert total.scatter == pytest.approx(scatter, rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 99), st.integers(0, 4))
def test_a_mean_has_the_same_bits_whatever_a_task_takes(
    weights: list[int], seed: int, level: int
) -> None:
    parts, width = means(replicas(seed, len(weights)), weights), 2**level
    runs = [pairwise(parts[k : k + width], merge) for k in range(0, len(parts), width)]
    once, twice = pairwise(parts, merge), pairwise(runs, merge)
    assert (twice.n_samples, twice.scatter) == (once.n_samples, once.scatter)
    for name in once.params:
        np.testing.assert_array_equal(twice.params[name], once.params[name], strict=True)


def test_scatter_and_distance_are_of_both_kernels() -> None:
    rng, weights = np.random.default_rng(0), [3, 1, 0, 5]
    top = replicas(0, 4)
    below = [{"hidden_kernel": rng.normal(size=(200, 100)).astype(np.float32)} for _ in weights]
    all_params = [a | b for a, b in zip(below, top, strict=True)]
    total = pairwise(means(all_params, weights), merge)
    assert total.scatter == pytest.approx(expected_scatter(all_params, weights), rel=1e-5)
    flat, first = (
        np.concatenate([p["kernel"].ravel(), p["hidden_kernel"].ravel()]).astype(np.float64)
        for p in (total.params, all_params[0])
    )
    change, norm = distance_and_norm(total.params, all_params[0])
    assert norm == pytest.approx(np.linalg.norm(flat), rel=1e-5)
    assert change == pytest.approx(np.linalg.norm(flat - first), rel=1e-5)


def test_replicas_close_together_have_an_exact_scatter() -> None:
    (one,), far = replicas(0, 1, (300, 257)), np.float32(1e-4)
    all_params = [{name: v + far * k for name, v in one.items()} for k in range(4)]
    total = pairwise(means(all_params, [5, 5, 5, 5]), merge)
    assert total.scatter == pytest.approx(expected_scatter(all_params, [5] * 4), rel=1e-4)


def test_empty_shards_are_harmless() -> None:
    (one,) = replicas(0, 1)
    broken = {name: np.full_like(value, np.nan) for name, value in one.items()}
    empty, full = Mean.of(broken, 0), Mean.of(one, 7)
    for parts in ([empty, full], [full, empty, empty], [empty, empty, full, full]):
        total = pairwise(parts, merge)
        np.testing.assert_array_equal(total.params["kernel"], one["kernel"])
        np.testing.assert_array_equal(total.params["bias"], one["bias"])
        assert total.scatter == 0
    assert pairwise([empty, empty], merge).n_samples == 0


def test_merging_changes_no_part() -> None:
    parts = means(replicas(0, 3), [3, 3, 3])
    before = [part.params["kernel"].copy() for part in parts]
    pairwise(parts, merge)
    for part, kernel in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part.params["kernel"], kernel, strict=True)


def test_more_numbers_than_a_block_against_numpy() -> None:
    all_params, weights = replicas(1, 8, (1000, 257)), [5, 0, 7, 1, 1, 30_607, 3, 2]
    total = pairwise(means(all_params, weights), merge)
    for name, value in total.params.items():
        exact = np.stack([p[name] for p in all_params]).astype(np.float64)
        mean = np.average(exact, axis=0, weights=weights)
        np.testing.assert_allclose(value, mean, rtol=0, atol=1.5e-6)  # of numbers up to 5
    assert total.scatter == pytest.approx(expected_scatter(all_params, weights), rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_equal_replicas_come_back_bit_for_bit(n: int) -> None:
    (params,) = replicas(3, 1)
    total = pairwise([Mean.of(params, 19_607 + k) for k in range(n)], merge)
    assert total.scatter == 0
    for name in params:
        np.testing.assert_array_equal(total.params[name], params[name], strict=True)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_outer_step_is_kerass_nesterov_on_the_negative_change(momentum: float) -> None:
    import keras

    rounds = [r | {"hidden_bias": r["bias"] + 1} for r in replicas(5, 6)]
    state = replicas(9, 1)[0] | {"hidden_bias": np.ones(3, np.float32)}
    weights = {name: keras.Variable(value) for name, value in state.items()}
    keras_sgd = keras.optimizers.SGD(1.0, momentum, nesterov=True)
    for averaged in rounds:
        gradients = [weights[name] - averaged[name] for name in weights]
        keras_sgd.apply(gradients, list(weights.values()))
        state = outer_step(averaged, state, momentum)
        for name, weight in weights.items():
            assert state[name].dtype == np.float32
            np.testing.assert_allclose(state[name], weight.numpy(), rtol=1e-5, atol=1e-6)


def test_outer_step_leaves_the_optimizers_state_and_its_arguments_alone() -> None:
    before, after = replicas(0, 2)
    after["kernel_velocity"] = np.ones((4, 3), np.float32)
    copies = [{name: v.copy() for name, v in p.items()} for p in (before, after)]
    stepped = outer_step(after, before, momentum=0.9)
    outer_step(after, stepped, momentum=0.9)
    assert stepped["kernel_velocity"] is after["kernel_velocity"]
    for params, copy in zip((before, after), copies, strict=True):
        for name in copy:
            np.testing.assert_array_equal(params[name], copy[name])
