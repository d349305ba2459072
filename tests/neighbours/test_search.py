from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, local_cluster, write_store
from sklearn.neighbors import NearestNeighbors

from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.features.values import REMOVED
from dtl.head.scaling import NORMALISATIONS
from dtl.images.values import TEST, TRAIN
from dtl.neighbours import search
from dtl.neighbours.search import find_nearest, find_neighbours, fit_scaling, scale_to_unit


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_LEAST_ROWS", 100)


def scaled(store: FeatureStore, among: np.ndarray, normalize: str) -> np.ndarray:
    """Unit rows as the formulas of the papers have them, in float64."""
    rows = store.read("fc2").astype(np.float64)
    if normalize == "sqrt-l2":
        rows = np.sign(rows) * np.sqrt(np.abs(rows))
    if normalize in ("l2", "sqrt-l2"):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if normalize != "plain":
        rows = rows - rows[among].mean(axis=0)
    if normalize == "standardise":
        spread = rows[among].std(axis=0)
        rows /= np.where(spread < 1e-9, 1, spread)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_uneven(store: FeatureStore) -> np.ndarray:
    """Skip some rows, and remove some; return those that are left."""
    status, label = store.read("status"), store.read("label")
    status[[3, 130, 131]] = 2
    label[[7, 310]] = REMOVED
    store.arrays.write("status", slice(None), status)
    store.arrays.replace("label", label)
    store.reopen()
    usable = store.read_usable()
    assert usable.sum() == store.n_images - 5
    return usable


@pytest.mark.parametrize("normalize", ["plain", *NORMALISATIONS])
def test_equals_scikit_learn_on_the_usable_rows(
    make_store: MakeStore, threads: Client, normalize: str
) -> None:
    store, k = make_store(), 7
    usable = make_uneven(store)
    scaling = fit_scaling(store, "fc2", threads, usable, normalize)
    found = find_neighbours(store, "fc2", threads, k, scaling=scaling)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(usable))
    unit = scaled(store, usable, normalize)[usable]
    distance, index = NearestNeighbors(metric="cosine").fit(unit).kneighbors(unit, k + 1)
    np.testing.assert_array_equal(found.index, found.rows[index[:, 1:]])
    np.testing.assert_allclose(found.cosine, 1 - distance[:, 1:], atol=2e-6)


def test_test_images_among_training_images(make_store: MakeStore, threads: Client) -> None:
    store, k = make_store(), 5
    usable, split = make_uneven(store), store.read_split()
    train, test = usable & (split == TRAIN), usable & (split == TEST)
    found = find_neighbours(store, "fc2", threads, k, rows=split == TEST, among=split == TRAIN)
    np.testing.assert_array_equal(found.rows, np.flatnonzero(test))
    unit = scaled(store, train, search.NORMALIZE)
    model = NearestNeighbors(metric="cosine").fit(unit[train])
    distance, index = model.kneighbors(unit[test], k)
    np.testing.assert_array_equal(found.index, np.flatnonzero(train)[index])
    np.testing.assert_allclose(found.cosine, 1 - distance, atol=2e-6)


def test_rows_among_others_that_they_are_of(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    some = np.arange(600) % 4 == 0
    everything = np.ones(600, bool)
    scaling = fit_scaling(store, "fc2", threads, everything)
    found = find_neighbours(store, "fc2", threads, 5, rows=some, among=everything, scaling=scaling)
    whole = find_neighbours(store, "fc2", threads, 5, scaling=scaling)
    np.testing.assert_array_equal(found.index, whole.index[some])
    np.testing.assert_allclose(found.cosine, whole.cosine[some], atol=1e-6)


def test_features_that_are_not_in_the_store(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    new = store.read("fc2")[[5, 77]] * [[1.0], [1.001]]
    found = find_nearest(new, store, "fc2", threads, 4)
    np.testing.assert_array_equal(found.index[:, 0], [5, 77])  # which are no rows of the query
    whole = find_neighbours(store, "fc2", threads, 3)
    np.testing.assert_array_equal(found.index[:, 1:], whole.index[[5, 77]])
    none = find_nearest(new[:0], store, "fc2", threads, 4)
    assert none.index.shape == (0, 4)


def test_the_same_bits_on_one_worker_and_on_four(make_store: MakeStore) -> None:
    store = make_store(n_images=1500, n_features=33)
    results = []
    for n_workers in (1, 4):
        with local_cluster(n_workers=n_workers) as cluster, Client(cluster) as client:
            found = find_neighbours(store, "fc2", client, 10)
            results.append((found.index.tobytes(), found.cosine.tobytes()))
    assert results[0] == results[1]


def test_blocks_are_whole_chunks_of_bounded_size(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    rows = np.flatnonzero(np.arange(600) % 3 > 0)
    blocks = search._cut(store, "fc2", rows)
    np.testing.assert_array_equal(np.concatenate(blocks), rows)
    assert {*(blocks[0] // 50), *(blocks[1] // 50)} == {0, 1, 2, 3}
    monkeypatch.setattr(search, "_BLOCK_BYTES", 60 * 20 * 4)
    assert max(map(len, search._cut(store, "fc2", rows))) <= 60
    monkeypatch.setattr(search, "_BLOCK_BYTES", 1)  # a chunk is the least
    assert len(search._cut(store, "fc2", rows)) == store.n_chunks
    assert search._cut(store, "fc2", rows[:0]) == []


def test_features_that_are_not_finite_are_refused(tmp_path: Path, threads: Client) -> None:
    features = np.random.default_rng(0).normal(size=(120, 6))
    features[70, 2] = np.nan
    label = np.zeros(120, int)
    store = write_store(
        str(tmp_path / "store"), label, lambda _, rows: features[rows], np.zeros(120)
    )
    with pytest.raises(UserError, match=r"must be finite\. .* in chunk 1 of .*store"):
        find_neighbours(store, "fc2", threads, 3)
    plain = fit_scaling(store, "fc2", threads, store.read_usable(), "plain")
    with pytest.raises(UserError, match=r"in 1 of 50 rows of chunk 1 of .*, first in the row 20"):
        find_neighbours(store, "fc2", threads, 3, scaling=plain)
    with pytest.raises(UserError, match=r"in 1 of 120 queries, first in the row 70"):
        find_nearest(features, store, "fc2", threads, 3, scaling=plain)
    without = np.arange(120) != 70
    assert len(find_neighbours(store, "fc2", threads, 3, rows=without).rows) == 119


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_rows(make_store: MakeStore, threads: Client, n: int) -> None:
    found = find_neighbours(make_store(), "fc2", threads, 3, rows=np.arange(600) < n)
    assert found.index.shape == found.cosine.shape == (n, 3)
    expected = {0: [], 1: [[-1] * 3], 2: [[1, -1, -1], [0, -1, -1]]}[n]
    assert found.index.tolist() == expected


def test_rows_of_zeros_are_like_nothing() -> None:
    features = np.array([[0.0, 0.0], [3.0, 4.0]])
    plain = search.Scaling("l2", np.zeros(2), np.ones(2, np.float32))
    np.testing.assert_allclose(scale_to_unit(features, plain, "rows"), [[0, 0], [0.6, 0.8]])
