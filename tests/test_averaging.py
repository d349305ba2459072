"""Averages and moments as data that adds up: the order and the chunks do not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from dtl.averaging import (
    Moments,
    WeightedSum,
    average,
    combine,
    combine_moments,
    distance_and_norm,
    outer_step,
)


def replicas(seed, n, shape=(4, 3)):
    rng = np.random.default_rng(seed)
    return [
        {
            "kernel": rng.normal(size=shape).astype(np.float32),
            "bias": rng.normal(size=shape[1]).astype(np.float32),
        }
        for _ in range(n)
    ]


def tree(parts, width):
    while len(parts) > 1:
        parts = [combine(parts[k : k + width]) for k in range(0, len(parts), width)]
    return parts[0]


WEIGHTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=9).filter(any)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 99), st.randoms(use_true_random=False), st.integers(2, 9))
def test_the_order_of_combination_does_not_matter(weights, seed, random, width):
    parts = [
        WeightedSum.of(params, n)
        for params, n in zip(replicas(seed, len(weights)), weights, strict=True)
    ]
    params, spread = average(parts)
    random.shuffle(parts)
    other_params, other_spread = average([tree(parts, width)])
    for name in params:
        np.testing.assert_allclose(other_params[name], params[name], rtol=0, atol=1e-6)
    assert other_spread == pytest.approx(spread, abs=1e-6)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 99))
def test_average_is_weighted_by_samples(weights, seed):
    all_params = replicas(seed, len(weights))
    total = combine([WeightedSum.of(p, n) for p, n in zip(all_params, weights, strict=True)])
    assert total.n_samples == sum(weights)
    params, spread = average([total])
    for name, value in params.items():
        assert value.dtype == np.float32
        stacked = np.stack([p[name] for p in all_params]).astype(np.float64)
        np.testing.assert_allclose(value, np.average(stacked, axis=0, weights=weights), atol=1e-6)
    kernels = np.stack([p["kernel"] for p in all_params]).astype(np.float64)
    mean = np.average(kernels, axis=0, weights=weights)
    distances = ((kernels - mean) ** 2).sum(axis=(1, 2))
    expected = np.sqrt(np.average(distances, weights=weights) / (mean**2).sum())
    assert spread == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("width", [2, 9])
def test_spread_and_distance_are_of_both_kernels(width):
    rng, weights = np.random.default_rng(0), [3, 1, 0, 5]
    top = replicas(0, 4)
    below = [{"hidden_kernel": rng.normal(size=(200, 100)).astype(np.float32)} for _ in weights]
    all_params = [a | b for a, b in zip(below, top, strict=True)]
    parts = [WeightedSum.of(p, n) for p, n in zip(all_params, weights, strict=True)]
    params, spread = average([tree(parts, width)])
    as_one = [np.concatenate([p["kernel"].ravel(), p["hidden_kernel"].ravel()]) for p in all_params]
    mean = np.average(as_one, axis=0, weights=weights)
    distances = ((np.array(as_one) - mean) ** 2).sum(axis=1)
    expected = np.sqrt(np.average(distances, weights=weights) / (mean**2).sum())
    assert spread == pytest.approx(expected, rel=1e-6)
    change, norm = distance_and_norm(params, all_params[0])
    assert norm == pytest.approx(np.linalg.norm(mean), rel=1e-5)
    assert change == pytest.approx(np.linalg.norm(mean - as_one[0]), rel=1e-5)


def test_empty_shards_are_harmless():
    (one,) = replicas(0, 1)
    broken = {name: np.full_like(value, np.nan) for name, value in one.items()}
    empty = WeightedSum.of(broken, 0)
    full = WeightedSum.of(one, 7)
    for parts in ([empty, full], [full, empty, empty], [combine([empty]), full], [combine([])]):
        params, spread = average([*parts, full])
        np.testing.assert_array_equal(params["kernel"], one["kernel"])
        np.testing.assert_array_equal(params["bias"], one["bias"])
        assert spread == pytest.approx(0, abs=1e-7)


def test_adding_up_changes_no_part():
    parts = [WeightedSum.of(params, 3) for params in replicas(0, 3)]
    parts.append(combine(parts[:2]))
    before = [part.values["kernel"].copy() for part in parts]
    combine(parts)
    average(parts)
    for part, kernel in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part.values["kernel"], kernel, strict=True)


def test_more_numbers_than_a_block_against_numpy():
    shape = (300, 257)  # several blocks, the last of them short
    all_params, weights = replicas(1, 8, shape), np.array([5, 0, 7, 1, 1, 30_607, 3, 2])
    leaves = [WeightedSum.of(p, n) for p, n in zip(all_params, weights.tolist(), strict=True)]
    for parts in (leaves, [combine(leaves[k : k + 3]) for k in (0, 3, 6)]):
        params, spread = average(parts)
        for name in params:
            exact = np.stack([p[name] for p in all_params]).astype(np.float64)
            mean = np.average(exact, axis=0, weights=weights)
            np.testing.assert_array_equal(params[name], mean.astype(np.float32))
        kernels = np.stack([p["kernel"] for p in all_params]).astype(np.float64)
        mean = np.average(kernels, axis=0, weights=weights)
        distances = ((kernels - mean) ** 2).sum(axis=(1, 2))
        expected = np.sqrt(np.average(distances, weights=weights) / (mean**2).sum())
        assert spread == pytest.approx(expected, rel=1e-9)


def test_one_replica_comes_back_bit_for_bit():
    (params,) = replicas(3, 1)
    averaged, _ = average([WeightedSum.of(params, 19_607)])
    for name in params:
        np.testing.assert_array_equal(averaged[name], params[name], strict=True)


@pytest.mark.parametrize(("momentum", "learning_rate"), [(0.0, 1.0), (0.9, 0.7), (0.5, 1.0)])
def test_outer_step_is_kerass_nesterov_on_the_negative_change(momentum, learning_rate):
    import keras

    rounds = [r | {"hidden_bias": r["bias"] + 1} for r in replicas(5, 6)]
    state = replicas(9, 1)[0] | {"hidden_bias": np.ones(3, np.float32)}
    weights = {name: keras.Variable(value) for name, value in state.items()}
    keras_sgd = keras.optimizers.SGD(learning_rate, momentum, nesterov=True)
    for averaged in rounds:
        gradients = [weights[name] - averaged[name] for name in weights]
        keras_sgd.apply(gradients, list(weights.values()))
        state = outer_step(averaged, state, momentum=momentum, learning_rate=learning_rate)
        for name, weight in weights.items():
            assert state[name].dtype == np.float32
            np.testing.assert_allclose(state[name], weight.numpy(), rtol=1e-5, atol=1e-6)


def test_outer_step_leaves_the_optimizers_state_and_its_arguments_alone():
    before, after = replicas(0, 2)
    after["kernel_velocity"] = np.ones((4, 3), np.float32)
    copies = [{name: v.copy() for name, v in p.items()} for p in (before, after)]
    stepped = outer_step(after, before, momentum=0.9, learning_rate=1.0)
    outer_step(after, stepped, momentum=0.9, learning_rate=1.0)
    assert stepped["kernel_velocity"] is after["kernel_velocity"]
    for params, copy in zip((before, after), copies, strict=True):
        for name in copy:
            np.testing.assert_array_equal(params[name], copy[name])


def test_zero_kernels_have_no_spread():
    params = {"kernel": np.zeros((2, 2)), "bias": np.ones(2)}
    averaged, spread = average([WeightedSum.of(params, 1)] * 2)
    assert spread == 0
    assert averaged["bias"].tolist() == [1, 1]


@pytest.mark.parametrize("parts", [[], [WeightedSum()] * 3])
def test_no_rows_at_all(parts):
    with pytest.raises(ValueError, match=r"No replica had training rows to learn from\. Check"):
        average(parts)


def rows_of(seed, n, offset=0.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 5)) * [1, 10, 0.1, 3, 1e3] + offset).astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 30), max_size=5), st.floats(-1e3, 1e3))
def test_moments_do_not_depend_on_chunks(seed, cuts, offset):
    rows = rows_of(seed, 30, offset)
    chunks = np.split(rows, sorted(cuts))
    moments = combine_moments([Moments.of(chunk) for chunk in chunks])
    exact = rows.astype(np.float64)
    assert moments.n == len(rows)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.m2, ((exact - exact.mean(0)) ** 2).sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments.scale(), exact.std(axis=0), rtol=1e-6)
    assert moments.scale().dtype == np.float32


def test_standardised_as_scikit_learn_does():
    rows = rows_of(0, 500, offset=7)
    rows[:, 2] = 0.3  # a constant feature
    moments = combine_moments([Moments.of(chunk) for chunk in np.array_split(rows, 7)])
    scaler = StandardScaler().fit(rows.astype(np.float64))
    np.testing.assert_allclose(moments.mean, scaler.mean_, rtol=1e-9)
    np.testing.assert_allclose(moments.scale(), scaler.scale_, rtol=1e-6)
    assert moments.scale()[2] == 1


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 40))
def test_a_constant_feature_has_scale_one(value, n):
    rows = np.full((n, 1), value, np.float32)
    for parts in ([rows], np.array_split(rows, 3)):
        assert combine_moments([Moments.of(part) for part in parts]).scale().tolist() == [1]


def test_large_numbers_with_small_deviations():
    # The textbook formula, mean of squares minus square of the mean, is left with no digit here.
    rows = 1e8 + np.tile([[-1.0], [1.0]], (500, 1))
    moments = combine_moments([Moments.of(chunk) for chunk in np.array_split(rows, 9)])
    assert moments.m2[0] == pytest.approx(1000)


def test_moments_of_no_rows():
    moments = Moments.of(np.zeros((0, 3), np.float32))
    assert moments.n == 0
    assert moments.scale().tolist() == [1, 1, 1]
    rows = rows_of(1, 4)[:, :3]
    both = combine_moments([moments, Moments.of(rows), moments])
    assert both.n == 4
    np.testing.assert_allclose(both.mean, rows.astype(np.float64).mean(axis=0))
