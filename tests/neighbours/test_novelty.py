from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore, local_cluster, write_store
from sklearn.neighbors import NearestNeighbors

from dtl.config.errors import UserError
from dtl.features.store import FeatureStore
from dtl.head.npz import to_npz
from dtl.images.values import TEST, TRAIN, VALIDATION
from dtl.neighbours import novelty
from dtl.neighbours.novelty import K, Novelty, find_threshold, fit_novelty, take_evenly


def expected_scores(store: FeatureStore, found: Novelty, rows: np.ndarray) -> np.ndarray:
    """Distances by scikit-learn, of features scaled by hand."""
    x = store.read("fc2").astype(np.float64)
    x = np.sign(x) * np.sqrt(np.abs(x))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    train = store.read_split() == TRAIN
    x -= x[train].mean(axis=0)
    model = NearestNeighbors(n_neighbors=found.k, metric="cosine").fit(x[train])
    return model.kneighbors(x[rows])[0][:, -1]


def test_score_is_the_distance_to_the_kth_training_image(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store()
    found = fit_novelty(store, "fc2", threads)
    split = store.read_split()
    assert len(found.reference) == (split == TRAIN).sum()
    features = store.read("fc2")[split == TEST]
    np.testing.assert_allclose(
        found.score(features), expected_scores(store, found, split == TEST), atol=2e-6
    )
    held_out = expected_scores(store, found, split == VALIDATION)
    assert found.n_held_out == len(held_out) >= 100
    assert (held_out > found.threshold + 1e-5).sum() <= 0.05 * len(held_out)
    assert (held_out > found.threshold - 1e-5).sum() > 0.03 * len(held_out)


def test_images_of_no_known_class_score_higher(make_store: MakeStore, threads: Client) -> None:
    store = make_store(distance=2.0)
    found = fit_novelty(store, "fc2", threads)
    unknown = np.random.default_rng(5).normal(size=(200, 20)) * store.read("fc2").std(axis=0)
    known = store.read("fc2")[store.read_split() == TEST]
    assert found.is_unlike(found.score(known)).mean() < 0.12
    assert found.is_unlike(found.score(unknown)).mean() > 0.5


def test_without_validation_images_training_images_are_held_out(
    make_store: MakeStore, threads: Client
) -> None:
    store = make_store(shares=(0.8, 0.0, 0.2))
    found = fit_novelty(store, "fc2", threads)
    train = store.read_split() == TRAIN
    assert found.n_held_out == train.sum()
    x = found.reference.astype(np.float64)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -np.inf)
    kth = 1 - np.sort(cosine, axis=1)[:, -K]
    np.testing.assert_allclose(found.score_reference(), kth, atol=1e-6)
    test = store.read("fc2")[store.read_split() == TEST]
    assert found.is_unlike(found.score(test)).mean() < 0.15


def test_the_reference_is_an_even_sample_of_bounded_size(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novelty, "REFERENCE_BYTES", 50 * 20 * 4)
    store = make_store()
    found = fit_novelty(store, "fc2", threads)
    assert found.reference.shape == (50, 20)
    test = store.read("fc2")[store.read_split() == TEST]
    assert found.is_unlike(found.score(test)).mean() < 0.12


def test_the_same_bytes_on_one_worker_and_on_four(make_store: MakeStore) -> None:
    store = make_store()
    made = []
    for n_workers in (1, 4):
        with local_cluster(n_workers=n_workers) as cluster, Client(cluster) as client:
            made.append(fit_novelty(store, "fc2", client).to_bytes())
    assert made[0] == made[1]


def test_bytes_round_trip_and_others_are_refused(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    found = fit_novelty(store, "fc2", threads)
    again = Novelty.from_bytes(found.to_bytes())
    assert again.to_bytes() == found.to_bytes()
    assert again.provenance == novelty.describe(store, "fc2")
    features = store.read("fc2", 0)
    np.testing.assert_array_equal(again.score(features), found.score(features))
    arrays = {"reference": np.ones((3, 2)), "mean": np.ones(2), "scale": np.ones(3)}
    meta = {"k": 1, "threshold": 1, "share": 1, "n_held_out": 1, "normalize": "l2",
            "provenance": {}}  # fmt: skip
    for data in (b"", found.to_bytes()[:-300], to_npz(arrays, meta), to_npz(arrays, {})):
        with pytest.raises(UserError, match="novelty"):
            Novelty.from_bytes(data)


def test_too_few_training_images_have_no_novelty(make_store: MakeStore, threads: Client) -> None:
    store = make_store()
    split = np.full(600, TEST, np.int8)
    split[:K] = TRAIN
    store.write_split(split, {"made": "by a test"})
    assert fit_novelty(store, "fc2", threads) is None
    split[K] = TRAIN
    store.write_split(split, {"made": "by another"})
    found = fit_novelty(store, "fc2", threads)
    assert found.n_held_out == K + 1
    assert found.share == 1 / (K + 2)


def test_thousands_of_copies_of_one_image(tmp_path: Path, threads: Client) -> None:
    features = np.repeat(np.random.default_rng(0).normal(size=(1, 6)), 2000, axis=0)
    features[::10] += np.random.default_rng(1).normal(size=(200, 6))
    split = np.arange(2000) % 2
    store = write_store(
        str(tmp_path / "store"), np.zeros(2000, int), lambda _, rows: features[rows], split,
        chunk_images=500,
    )  # fmt: skip
    found = fit_novelty(store, "fc2", threads)
    assert found.is_unlike(found.score(features[1::10])).sum() == 0


def test_threshold_holds_in_its_binomial_band_over_200_resplits() -> None:
    scores = np.random.default_rng(0).gamma(2, size=2000)
    above = []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(2000)
        threshold, share = find_threshold(scores[order[:300]], 0.1)
        assert share == 0.1
        above.append((scores[order[300:]] > threshold).mean())
    assert abs(np.mean(above) - 0.1) < 0.005


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        find_threshold(np.ones(3), share)


def test_takes_all_where_there_are_no_more() -> None:
    rows = np.array([True, False, True])
    np.testing.assert_array_equal(take_evenly(rows, 5), rows)
    assert not take_evenly(np.zeros(3, bool), 5).any()
