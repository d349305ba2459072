"""Scaling of features: moments by chunk, rows of unit length, scales as scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import Normalizer, StandardScaler

from dtl.head.scaling import NORMALISATIONS, Moments, Scaling, merge_moments, scale_rows


def rows_of(seed: int, n: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 5)) * [1, 10, 0.1, 3, 1e3] + offset).astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 30), max_size=5), st.floats(-1e3, 1e3))
def test_moments_do_not_depend_on_chunks(seed: int, cuts: list[int], offset: float) -> None:
    rows = rows_of(seed, 30, offset)
    chunks = np.split(rows, sorted(cuts))
    moments = merge_moments([Moments.of(chunk) for chunk in chunks])
    exact = rows.astype(np.float64)
    assert moments.n == len(rows)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.m2, ((exact - exact.mean(0)) ** 2).sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments.scale(), exact.std(axis=0), rtol=1e-6)
    assert moments.scale().dtype == np.float32


def test_standardised_as_scikit_learn_does() -> None:
    rows = rows_of(0, 500, offset=7)
    rows[:, 2] = 0.3  # a constant feature
    moments = merge_moments([Moments.of(chunk) for chunk in np.array_split(rows, 7)])
    scaler = StandardScaler().fit(rows.astype(np.float64))
    np.testing.assert_allclose(moments.mean, scaler.mean_, rtol=1e-9)
    np.testing.assert_allclose(moments.scale(), scaler.scale_, rtol=1e-6)
    assert moments.scale()[2] == 1


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 40))
def test_a_constant_feature_has_scale_one(value: float, n: int) -> None:
    rows = np.full((n, 1), value, np.float32)
    for parts in ([rows], np.array_split(rows, 3)):
        assert merge_moments([Moments.of(part) for part in parts]).scale().tolist() == [1]


def test_large_numbers_with_small_deviations() -> None:
    # The textbook formula, mean of squares minus square of the mean, is left with no digit here.
    rows = 1e8 + np.tile([[-1.0], [1.0]], (500, 1))
    moments = merge_moments([Moments.of(chunk) for chunk in np.array_split(rows, 9)])
    assert moments.m2[0] == pytest.approx(1000)


def test_moments_of_no_rows() -> None:
    moments = Moments.of(np.zeros((0, 3), np.float32))
    assert moments.n == 0
    assert moments.scale().tolist() == [1, 1, 1]
    rows = rows_of(1, 4)[:, :3]
    both = merge_moments([moments, Moments.of(rows), moments])
    assert both.n == 4
    np.testing.assert_allclose(both.mean, rows.astype(np.float64).mean(axis=0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_standardise_has_the_bits_that_it_always_had(dtype: type) -> None:
    rows = rows_of(0, 40).astype(dtype)
    moments = Moments.of(rows)
    before = rows.astype(np.float32)
    before -= moments.mean.astype(np.float32)
    before /= moments.scale()
    scaled = Scaling.fit(Moments.of(scale_rows(rows, "standardise")), "standardise").apply(rows)
    assert scaled.tobytes() == before.tobytes()


def scaled_by_scikit_learn(rows: np.ndarray, normalize: str) -> np.ndarray:
    if normalize == "sqrt-l2":
        rows = np.sign(rows) * np.sqrt(np.abs(rows))
    return Normalizer().fit_transform(rows)


@pytest.mark.parametrize("normalize", ["l2", "sqrt-l2"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_unit_length_are_scikit_learns(normalize: str, dtype: type) -> None:
    rows = rows_of(0, 50).astype(dtype)
    rows[3] = 0
    wide = np.float64 if dtype == np.float64 else np.float32
    found = scale_rows(rows, normalize, wide)
    assert found.dtype == wide
    expected = scaled_by_scikit_learn(rows.astype(np.float64), normalize)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[3] == 0).all()
    assert (rows[3:] == rows_of(0, 50).astype(dtype)[3:])[1:].all()  # the rows given stay
    scaling = Scaling.fit(Moments.of(found), normalize)
    scaled = scaling.apply(rows, wide)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    assert scaled.var() == pytest.approx(1, rel=1e-5)
    assert (scaling.scale == scaling.scale[0]).all()
    ratio = scaled.std(axis=0) / expected.std(axis=0)  # all features are divided by one number
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


@settings(deadline=None)
@given(
    st.integers(0, 99), st.sampled_from(NORMALISATIONS), st.lists(st.integers(0, 20), max_size=4)
)
def test_a_row_is_scaled_alike_in_any_chunk(seed: int, normalize: str, cuts: list[int]) -> None:
    rows = rows_of(seed, 20)
    parts = [scale_rows(part, normalize) for part in np.split(rows, sorted(cuts))]
    assert np.concatenate(parts).tobytes() == scale_rows(rows, normalize).tobytes()


@pytest.mark.parametrize("normalize", NORMALISATIONS)
def test_extreme_rows_stay_finite(normalize: str) -> None:
    rows = np.array([[0, 0], [1e38, -1e38], [1e-45, 0], [0, -0.0]], np.float32)
    scaling = Scaling.fit(Moments.of(scale_rows(rows, normalize)), normalize)
    assert np.isfinite(scaling.apply(rows)).all()
    if normalize != "standardise":
        lengths = np.linalg.norm(scale_rows(rows, normalize), axis=1)
        np.testing.assert_allclose(lengths, [0, 1, 1, 0], rtol=1e-6)


@pytest.mark.parametrize("normalize", NORMALISATIONS)
@pytest.mark.parametrize("rows", [np.zeros((0, 3)), np.zeros((4, 3)), np.full((4, 3), 0.1)])
def test_rows_that_are_all_alike_become_zeros(normalize: str, rows: np.ndarray) -> None:
    scaled = Moments.of(scale_rows(rows, normalize))
    scaling = Scaling.fit(scaled, normalize)
    assert scaling.scale.tolist() == [1, 1, 1]
    np.testing.assert_allclose(scaling.apply(rows), 0, atol=1e-7)
