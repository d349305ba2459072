from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from dtl.checking import label_errors
from dtl.checking.label_errors import NO_CLASS, Calibration, Verdicts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what cleanlab imports
    from cleanlab.count import compute_confident_joint, get_confident_thresholds, num_label_issues
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores


def make_rows(
    seed: int, n: int, n_classes: int, sharpness: float, noise: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of rows of Gaussian logits, and labels of which some are of another class."""
    rng = np.random.default_rng(seed)
    true = np.r_[np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)]
    logits = rng.normal(size=(n, n_classes)) * 2
    logits[np.arange(n), true] += sharpness
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    flipped = rng.random(n) < noise
    flipped[:n_classes] = False  # cleanlab wants a row of each class
    return p, np.where(flipped, rng.integers(0, n_classes, n), true)


PLAIN = Calibration(1.0, 1.0, 0.0)


def judge(p: np.ndarray, labels: np.ndarray, calibration: Calibration = PLAIN) -> Verdicts:
    q = np.exp(label_errors.raise_to(np.log(p), calibration.power))
    thresholds = label_errors.find_thresholds(label_errors.sum_classes(q, labels))
    return label_errors.judge(np.log(p), labels, thresholds, calibration)


CASES = [(0, 60, 2, 1.0), (1, 500, 5, 3.0), (2, 800, 40, 4.0), (3, 300, 3, 8.0), (4, 100, 90, 2.0)]


@pytest.mark.parametrize("case", CASES)
def test_flags_and_thresholds_are_cleanlabs(case: tuple[int, int, int, float]) -> None:
    p, labels = make_rows(*case)
    sums = label_errors.sum_classes(p, labels)
    np.testing.assert_allclose(
        label_errors.find_thresholds(sums), get_confident_thresholds(labels, p), rtol=1e-12
    )
    found = judge(p, labels)
    assert label_errors.count_errors(labels, found) == num_label_issues(labels, p) > 0
    expected = find_label_issues(labels, p, filter_by="low_self_confidence", n_jobs=1)
    expected &= p.argmax(axis=1) != labels
    np.testing.assert_array_equal(label_errors.find_suspects(labels, found), expected)
    quality = get_label_quality_scores(labels, p, method="self_confidence")
    np.testing.assert_allclose(found.own, quality, rtol=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_calibration_is_the_optimum(power: float) -> None:
    """Of labels that were drawn by the probabilities, and some by lot."""
    rng = np.random.default_rng(0)
    p, _ = make_rows(0, 20_000, 5, 3.0)
    cumulated = p.cumsum(axis=1)
    true = (rng.random((len(p), 1)) > cumulated[:, :-1]).sum(axis=1)
    given_ = np.log(p) / power
    plain = label_errors.calibrate(label_errors.sum_likelihoods(given_, true))
    assert plain.power == plain.true_power == pytest.approx(power, rel=0.05)
    assert plain.share < 0.005

    def loss(t: float) -> float:
        log_q = label_errors.raise_to(given_, t)
        return -log_q[np.arange(len(true)), true].mean()

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    assert plain.power == pytest.approx(best, rel=0.05)
    by_lot = rng.random(len(p)) < 0.1
    noisy = np.where(by_lot, rng.integers(0, 5, len(p)), true)
    found = label_errors.calibrate(label_errors.sum_likelihoods(given_, noisy))
    assert found.true_power == pytest.approx(power, rel=0.1)
    assert found.share == pytest.approx(0.1, abs=0.02)
    assert found.power < 0.95 * found.true_power  # which takes them for right


def test_labels_drawn_by_lot_are_suspects_beyond_cleanlabs() -> None:
    p, labels = make_rows(5, 2000, 5, 6.0, noise=0.1)
    calibration = label_errors.calibrate(label_errors.sum_likelihoods(np.log(p), labels))
    assert calibration.share == pytest.approx(0.1, abs=0.03)
    found = judge(p, labels, calibration)
    suspects = label_errors.find_suspects(labels, found)
    assert suspects.sum() > label_errors.count_errors(labels, found)
    assert suspects[found.chance > 0.5].all()


@pytest.mark.parametrize("case", CASES)
def test_joint_is_cleanlabs(case: tuple[int, int, int, float]) -> None:
    p, labels = make_rows(*case)
    joint = label_errors.estimate_joint(labels, judge(p, labels).counted, p.shape[1]).toarray()
    # cleanlab rounds to whole rows, and keeps the number of rows of each label.
    expected = compute_confident_joint(labels, p)
    np.testing.assert_allclose(joint, expected, atol=1)
    np.testing.assert_allclose(joint.sum(axis=1), np.bincount(labels), atol=1e-9)


@given(st.integers(0, 1000), st.lists(st.integers(0, 200), max_size=4))
def test_rows_in_any_parts_get_the_same_verdicts(seed: int, cuts: list[int]) -> None:
    p, labels = make_rows(seed, 200, 4, 3.0)
    whole = judge(p, labels)
    parts = list(zip(np.split(p, sorted(cuts)), np.split(labels, sorted(cuts)), strict=True))
    sums = label_errors.add_sums([label_errors.sum_classes(*part) for part in parts])
    thresholds = label_errors.find_thresholds(sums)
    joined = label_errors.join_verdicts(
        [label_errors.judge(np.log(q), own, thresholds, PLAIN) for q, own in parts]
    )
    for name in ("counted", "likeliest", "other", "own", "best_other", "chance"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


def test_a_class_without_rows_is_no_rows_class() -> None:
    p = np.array([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    found = judge(p, np.array([0, 0, 1]))
    assert 2 not in found.counted
    assert found.counted.tolist() == [NO_CLASS, 0, 1]
    assert not label_errors.find_suspects(np.array([0, 0, 1]), found).any()
    joint = label_errors.estimate_joint(np.array([0, 0, 1]), found.counted, 3).toarray()
    assert joint.sum() == pytest.approx(3)
    assert not joint[2].any()


def test_equal_probabilities_are_no_suspects() -> None:
    p = np.full((6, 3), 1 / 3)
    labels = np.array([0, 1, 2, 0, 1, 2])
    calibration = label_errors.calibrate(label_errors.sum_likelihoods(np.log(p), labels))
    assert not label_errors.find_suspects(labels, judge(p, labels, calibration)).any()
