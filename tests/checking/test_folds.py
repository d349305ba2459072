from __future__ import annotations

import numpy as np
import pytest
from distributed import Client
from helpers import MakeStore
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dtl.checking import folds
from dtl.checking.folds import NO_FOLD
from dtl.config import CheckConfig
from dtl.config.errors import UserError
from dtl.head.scaling import Moments, Scaling, scale_rows

PATHS = np.array([f"{i}.jpg" for i in range(400)], np.dtypes.StringDType())


@given(st.integers(1, 400), st.integers(1, 6), st.integers(2, 6), st.integers(0, 9))
def test_folds_keep_groups_whole_and_classes_even(
    n: int, n_classes: int, n_folds: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, n_classes, n), rng.integers(0, n, n)
    takes_part = rng.random(n) < 0.8
    fold = folds.assign_folds(PATHS[:n], label, group, takes_part, n_folds, seed)
    np.testing.assert_array_equal(fold == NO_FOLD, ~takes_part)
    for g in np.unique(group[takes_part]):
        assert len({*fold[takes_part & (group == g)].tolist()}) == 1
    single = folds.assign_folds(PATHS[:n], label, np.arange(n), takes_part, n_folds, seed)
    for k in range(n_classes):
        counts = np.bincount(single[takes_part & (label == k)], minlength=n_folds)
        assert np.ptp(counts) <= 1
    # Neither the order of the rows nor the numbers of the groups matter.
    order = rng.permutation(n)
    again = folds.assign_folds(
        PATHS[:n][order], label[order], 7 - group[order], takes_part[order], n_folds, seed
    )
    np.testing.assert_array_equal(again, fold[order])


def test_a_row_is_judged_if_its_class_is_in_another_fold() -> None:
    label, fold = np.array([0, 0, 1, 1, 2, 0]), np.array([0, 1, 1, 1, 0, NO_FOLD], np.int8)
    expected = [True, True, False, False, False, False]
    assert folds.find_judged(label, fold).tolist() == expected


def test_probabilities_are_those_of_scikit_learn_without_the_fold(
    make_store: MakeStore, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "_TOLERANCE", 1e-5)
    store = make_store(n_images=400, distance=0.6, chunk_images=200)
    label, config = store.read("label"), CheckConfig(folds=3, l2=0.3, normalize="standardise")
    takes_part = np.arange(400) >= 20
    fold = folds.assign_folds(PATHS, label, np.arange(400), takes_part, 3, 0)
    heads = folds.fit_heads(store, "fc2", fold, config, threads)
    params, scaling = heads.params.result(), heads.scaling.result()
    found = np.concatenate(
        [
            folds.compute_chunk(chunk, store, "fc2", params, scaling, fold)
            for chunk in range(store.n_chunks)
        ]
    )
    rows = scale_rows(store.read("fc2"), "standardise")
    x = Scaling.fit(Moments.of(rows[takes_part]), "standardise").apply(store.read("fc2"))
    expected = np.empty((400, 5))
    for k in range(3):
        train = takes_part & (fold != k)
        model = LogisticRegression(C=1 / (0.3 * train.sum()), tol=1e-9, max_iter=10_000)
        expected[fold == k] = model.fit(x[train], label[train]).predict_log_proba(x[fold == k])
    np.testing.assert_allclose(found, expected[takes_part], atol=2e-3)


def test_features_that_are_not_finite_are_named(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=100)
    features = store.read("fc2", 1)
    features[3, 2] = np.nan
    hashes = store.read("content_hash", 1)
    store.write_chunk(1, {"fc2": features}, hashes, [""] * len(hashes))
    fold = (np.arange(100) % 2).astype(np.int8)
    with pytest.raises(UserError, match=r"must be finite.*chunk 1, at ./53\.jpg"):
        folds.fit_heads(store, "fc2", fold, CheckConfig(), threads)


def test_same_bits_from_the_store(make_store: MakeStore, threads: Client) -> None:
    store = make_store(n_images=200, chunk_images=60)
    fold = (np.arange(200) % 2).astype(np.int8)
    found = []
    for features_in in ("memory", "store"):
        heads = folds.fit_heads(store, "fc2", fold, CheckConfig(), threads, features_in=features_in)
        found.append([head["kernel"].tobytes() for head in heads.params.result()])
    assert found[0] == found[1]
