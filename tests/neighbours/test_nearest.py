from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from dtl.neighbours import nearest
from dtl.neighbours.nearest import Block, Found, Nearest, compare, compare_both


def unit_rows(n: int, n_features: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, n_features)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def block(unit: np.ndarray, first: int = 0) -> Block:
    numbers = np.arange(first, first + len(unit))
    return Block(unit, numbers, np.full(len(unit), -np.inf, np.float32))


def search_by_blocks(unit: np.ndarray, k: int, ends: list[int]) -> Nearest:
    """All rows with all, by blocks that end there, each pair of blocks once."""
    best = Nearest(len(unit), k)
    blocks = [block(unit[a:b], a) for a, b in zip([0, *ends], [*ends, len(unit)], strict=True)]
    for i, one in enumerate(blocks):
        for other in (None, *blocks[i + 1 :]):
            one = one._replace(least=best.least[one.numbers])
            if other is not None:
                other = other._replace(least=best.least[other.numbers])
            found, of_other = compare_both(one, other, k)
            best.add(found._replace(row=found.row + one.numbers[0]))
            if other is not None:
                best.add(of_other._replace(row=of_other.row + other.numbers[0]))
    return best


@pytest.mark.parametrize("n_features", [3, 64])
def test_equals_scikit_learn_and_faiss(monkeypatch: pytest.MonkeyPatch, n_features: int) -> None:
    monkeypatch.setattr(nearest, "_STRIP_ROWS", 64)  # some strips of each block, the last shorter
    unit, k = unit_rows(700, n_features), 6
    best = search_by_blocks(unit, k, [200, 500])
    by_sklearn = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(unit)
    distance, index = by_sklearn.kneighbors(unit)
    np.testing.assert_array_equal(best.index, index[:, 1:])
    np.testing.assert_allclose(best.cosine, 1 - distance[:, 1:], atol=1e-6)
    by_faiss = faiss.IndexFlatIP(n_features)
    by_faiss.add(unit)
    cosine, index = by_faiss.search(unit, k + 1)
    np.testing.assert_array_equal(best.index, index[:, 1:])
    np.testing.assert_allclose(best.cosine, cosine[:, 1:], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 60), st.integers(1, 12), st.integers(1, 7), st.integers(0, 10**6),
    st.lists(st.integers(1, 59), max_size=3),
)  # fmt: skip
def test_ties_go_to_the_lower_row_whatever_the_blocks(
    n: int, k: int, n_distinct: int, seed: int, cuts: list[int]
) -> None:
    # Axes: products of 0 and 1 are exact, and nearly all cosines are equal to others.
    rng = np.random.default_rng(seed)
    unit = np.eye(8, dtype=np.float32)[rng.integers(0, n_distinct, n)]
    best = search_by_blocks(unit, k, sorted({cut for cut in cuts if cut < n}))
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(k, n - 1)]
    np.testing.assert_array_equal(best.index[:, : n - 1], order)
    assert (best.index[:, n - 1 :] == -1).all()
    assert np.isneginf(best.cosine[:, n - 1 :]).all()


def test_thousands_of_equal_rows_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    settle = nearest._Strip._settle

    def watch(strip: nearest._Strip) -> None:
        waited.append(strip._n_waiting)
        settle(strip)

    monkeypatch.setattr(nearest._Strip, "_settle", watch)
    unit = np.repeat(unit_rows(1, 16), 5000, axis=0)
    found, _ = compare_both(block(unit), None, 10)
    assert len(found.row) == 50_000
    best = Nearest(5000, 10)
    best.add(found)
    np.testing.assert_array_equal(best.index[100:], np.tile(np.arange(10), (4900, 1)))
    assert sum(waited) < 10 * 1024**2 + 200_000  # the first of each strip, not all 25 million


def test_rows_of_one_block_among_another_that_has_some_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest, "_STRIP_ROWS", 32)
    unit, k = unit_rows(200, 16), 4
    rows, among = np.arange(50, 120), np.arange(0, 200, 3)
    bounds = np.full(200, -np.inf, np.float32)
    found = compare(
        Block(unit[rows], rows, bounds[rows]), Block(unit[among], among, bounds[among]), k
    )
    best = Nearest(len(rows), k)
    best.add(found)
    cosine = unit[rows] @ unit[among].T
    cosine[rows[:, None] == among] = -np.inf
    expected = among[np.argsort(-cosine, axis=1)[:, :k]]
    np.testing.assert_array_equal(best.index, expected)


def test_only_what_reaches_its_bound_is_returned() -> None:
    unit = unit_rows(300, 8)
    cosine = unit[:100] @ unit[100:].T
    least = np.quantile(cosine, 0.99, axis=1).astype(np.float32)
    found = compare(Block(unit[:100], np.arange(100), least), block(unit[100:], 100), 5)
    assert (found.cosine >= least[found.row]).all()
    assert len(found.row) == (cosine >= least[:, None]).sum()


def test_more_neighbours_than_there_are() -> None:
    best = Nearest(2, 5)
    best.add(Found(np.array([1, 1], np.int32), np.array([4, 2]), np.array([0.1, 0.3], np.float32)))
    np.testing.assert_array_equal(best.index, [[-1] * 5, [2, 4, -1, -1, -1]])
    assert np.isneginf(best.least).all()
