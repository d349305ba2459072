"""Scores by chunk equal those of the whole, and scikit-learn's."""

from __future__ import annotations

import dataclasses
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk

from dtl.evaluation.metrics import add_counts, count, find_interval, score

N_CLASSES = 9
NAMES = [f"{k:03}.class" for k in range(N_CLASSES)]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels; some classes have no image, some are never predicted."""
    seed = draw(st.integers(0, 10_000))
    n = draw(st.integers(1, 80))
    present = draw(st.lists(st.integers(0, N_CLASSES - 1), min_size=1, max_size=N_CLASSES))
    rng = np.random.default_rng(seed)
    labels = rng.choice(present, n).astype(np.int32)
    logits = rng.normal(size=(n, N_CLASSES)).astype(np.float32)
    logits[:, draw(st.integers(0, N_CLASSES - 1))] -= 20
    logits[np.arange(n), labels] += draw(st.sampled_from([0, 1, 3]))
    return logits, labels


@settings(deadline=None)
@given(predictions(), st.lists(st.integers(0, 80), max_size=5))
def test_by_chunk_equals_the_whole(made: tuple[np.ndarray, np.ndarray], cuts: list[int]) -> None:
    logits, labels = made
    whole = count(logits, labels)
    pieces = zip(np.split(logits, sorted(cuts)), np.split(labels, sorted(cuts)), strict=True)
    parts = add_counts([count(a, b) for a, b in pieces])
    assert (parts.confusion != whole.confusion).nnz == 0
    assert parts.n_top5 == whole.n_top5
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    one, other = score(whole, NAMES), score(parts, NAMES)
    assert dataclasses.replace(other, log_loss=one.log_loss) == one


@settings(deadline=None)
@given(predictions())
def test_equals_scikit_learn(made: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = made
    found = score(count(logits, labels), NAMES)
    predicted = logits.argmax(axis=1)
    everything = np.arange(N_CLASSES)
    exact = np.exp(logits.astype(np.float64))
    probabilities = exact / exact.sum(axis=1, keepdims=True)
    assert found.n_images == len(labels)
    assert found.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    top5 = sk.top_k_accuracy_score(labels, logits, k=5, labels=everything)
    assert found.top5 == pytest.approx(top5)
    loss = sk.log_loss(labels, probabilities, labels=everything)
    assert found.log_loss == pytest.approx(loss, rel=1e-6)
    with warnings.catch_warnings():
        # Predicted classes that no image has, and a single class: both meant to be here.
        warnings.simplefilter("ignore", UserWarning)
        balanced = sk.balanced_accuracy_score(labels, predicted)
    assert found.mean_recall == pytest.approx(balanced)
    present = np.unique(labels)
    each = sk.precision_recall_fscore_support(labels, predicted, labels=present, zero_division=0)
    assert list(found.classes) == [NAMES[k] for k in present]
    for k, precision, recall, f1, n_images in zip(present, *each, strict=True):
        assert found.classes[NAMES[k]] == pytest.approx(
            {"n_images": n_images, "precision": precision, "recall": recall, "f1": f1}
        )
    means = [values.mean() for values in each[:3]]
    assert [found.mean_precision, found.mean_recall, found.mean_f1] == pytest.approx(means)
    confusion = np.zeros((N_CLASSES, N_CLASSES), int)
    for true, guess, n in found.confusion:
        assert n > 0
        confusion[true, guess] = n
    np.testing.assert_array_equal(
        confusion, sk.confusion_matrix(labels, predicted, labels=everything)
    )
    assert list(found.confusion) == sorted(found.confusion)


def test_huge_logits_have_a_finite_loss() -> None:
    logits = np.array([[1e4, 0], [1e4, 0]], np.float32)
    counts = count(logits, np.array([0, 1]))
    assert counts.loss == pytest.approx(1e4)
    assert score(counts, ["a", "b"]).accuracy == 0.5


def test_fewer_than_five_classes() -> None:
    counts = count(np.array([[3.0, 1, 2], [3, 2, 1]]), np.array([1, 2]))
    found = score(counts, ["a", "b", "c"])
    assert (found.accuracy, found.top5) == (0, 1)
    assert found.mean_precision == found.mean_f1 == 0


def test_counts_stay_small_with_many_classes() -> None:
    labels = np.arange(0, 10_000, 1000)
    logits = np.zeros((10, 10_000), np.float32)
    logits[np.arange(10), labels] = 1
    counts = count(logits, labels)
    assert counts.confusion.nnz == 10
    assert len(pickle.dumps(counts)) < 100_000
    assert score(counts, [str(k) for k in range(10_000)]).mean_f1 == 1


def test_scores_are_json_types() -> None:
    found = score(count(np.eye(3, dtype=np.float32), np.arange(3)), ["a", "b", "c"])
    numbers = [*found.confusion[0], *found.classes["a"].values(), found.accuracy, found.log_loss]
    assert {type(number) for number in numbers} == {int, float}


@pytest.mark.parametrize(
    ("n_right", "n"), [(0, 1), (1, 1), (0, 500), (500, 500), (7, 9), (4601, 6000)]
)
def test_the_interval_is_scipys(n_right: int, n: int) -> None:
    wanted = binomtest(n_right, n).proportion_ci(method="wilson")
    assert find_interval(n_right, n) == pytest.approx(tuple(wanted), rel=1e-12, abs=1e-15)
