from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from dtl.features.network import guard


def draw(n_images: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features in clusters of ten, others that are some noise away, and the clusters."""
    rng = np.random.default_rng(seed)
    label = np.arange(n_images) // 10
    exact = rng.normal(size=(n_images, 40)) + 1.2 * rng.normal(size=(n_images, 40))[label]
    return exact, exact + noise * rng.normal(size=exact.shape), label


def test_scores_are_scikit_learns() -> None:
    exact, other, label = draw(200, 0.7)
    found = guard.measure_distance({"a": exact}, {"a": other}, label)
    assert (found["n_images"], found["n_classes"]) == (200, 20)
    cosine = np.diag(cosine_similarity(exact, other))
    assert found["layers"]["a"]["cosine_mean"] == pytest.approx(cosine.mean())
    assert found["layers"]["a"]["cosine_least"] == pytest.approx(cosine.min())
    nearest = KNeighborsClassifier(1, metric="cosine", algorithm="brute")
    right = [
        cross_val_predict(nearest, x, label, cv=LeaveOneOut()) == label for x in (exact, other)
    ]
    assert found["layers"]["a"]["accuracy_exact"] == pytest.approx(right[0].mean())
    assert found["layers"]["a"]["accuracy_int8"] == pytest.approx(right[1].mean())
    change = right[1].mean() - right[0].mean()
    assert found["layers"]["a"]["change"] == pytest.approx(change)
    low, high = found["layers"]["a"]["interval"]
    assert low < change < high


def test_the_same_features_are_not_refused() -> None:
    exact, _, label = draw(200, 0)
    exact[3] = 0
    found = guard.measure_distance({"a": exact}, {"a": exact}, label)
    assert found["layers"]["a"]["cosine_least"] == pytest.approx(1)
    assert found["layers"]["a"]["change"] == 0
    assert guard.find_refusal(found) == ""


def test_features_that_are_far_away_are_refused() -> None:
    exact, other, label = draw(200, 1.0)
    found = guard.measure_distance({"a": exact, "b": exact}, {"a": exact, "b": other}, label)
    assert guard.find_refusal(found).startswith("features of b have a mean cosine of 0.")


def test_a_loss_is_refused_where_its_interval_excludes_none() -> None:
    exact, _, label = draw(300, 0)
    worse = exact.copy()
    # A direction of its own for each row: far too little to turn it, enough for its neighbours.
    worse[:30] = exact[[*range(150, 180)]] + 1e-3
    found = guard.measure_distance({"a": exact}, {"a": worse}, label)
    found["layers"]["a"]["cosine_mean"] = 1.0
    assert found["layers"]["a"]["change"] < -0.05
    assert "the accuracy of 1-NN on a changes by -" in guard.find_refusal(found)
    one = {"layers": {"a": {"cosine_mean": 1.0, "change": -1 / 300, "interval": [-0.012, 0.004]}}}
    assert guard.find_refusal(one) == ""


def test_too_few_images_are_told_apart_by_cosine_alone() -> None:
    exact, other, label = draw(200, 0.1)
    alone = guard.measure_distance({"a": exact}, {"a": other}, np.arange(200))
    assert alone["layers"]["a"].keys() == {"cosine_mean", "cosine_least"}
    few = guard.measure_distance({"a": exact[:90]}, {"a": other[:90]}, label[:90])
    assert few["layers"]["a"].keys() == {"cosine_mean", "cosine_least"}
    assert guard.describe(few).startswith("On 90 images held out, against float32: a: cosine 0.99")


def test_rows_of_zeros() -> None:
    exact = np.eye(4)
    other = exact.copy()
    other[0] = exact[1] = other[1] = 0
    found = guard.measure_distance({"a": exact}, {"a": other}, np.arange(4))["layers"]["a"]
    assert found == {"cosine_mean": 0.75, "cosine_least": 0.0}
