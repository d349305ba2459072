"""Answers have no more mistakes than allowed, in all but a few draws of validation images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from dtl.config.errors import UserError
from dtl.evaluation.selective import LEVEL, count_needed, find_threshold, select_answers


def draw(n: int, rng: np.random.Generator, power: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw confidences, and whether they are right; it is known how often they are."""
    confidence = rng.random(n)
    return confidence, rng.random(n) > (1 - confidence) ** power / 2


def error_above(threshold: float, power: float = 6.0) -> float:
    rest = 1 - threshold  # the mean of (1 - c) ** power / 2 over c above the threshold
    return rest**power / (power + 1) / 2


@pytest.mark.parametrize(("n", "max_error"), [(100, 0.05), (400, 0.03), (3000, 0.01)])
def test_mistakes_are_rarer_than_allowed_in_19_of_20_draws(n: int, max_error: float) -> None:
    rng = np.random.default_rng(0)
    thresholds = [find_threshold(*draw(n, rng), max_error) for _ in range(400)]
    n_wrong = sum(math.isfinite(t) and error_above(t) > max_error for t in thresholds)
    assert n_wrong / 400 <= binomtest(round(400 * LEVEL), 400).proportion_ci().high
    # It answers about as much as it may: half of what an oracle would, or more.
    allowed = (max_error * 2 * 7) ** (1 / 6)
    answered = np.mean([1 - min(t, 1) for t in thresholds])
    assert answered > min(allowed, 1) / 2


def test_it_is_the_bound_of_clopper_and_pearson() -> None:
    rng = np.random.default_rng(1)
    confidence, right = draw(500, rng)
    threshold = find_threshold(confidence, right, 0.02)
    answered = select_answers(confidence, threshold)
    n, n_wrong = int(answered.sum()), int((~right[answered]).sum())
    bound = binomtest(n_wrong, n).proportion_ci(1 - 2 * LEVEL, "exact").high
    assert 0 < n < 500
    assert bound <= 0.02


def test_all_are_answered_where_all_may_be() -> None:
    confidence = np.random.default_rng(0).uniform(0.2, 1, 400)
    threshold = find_threshold(confidence, np.ones(400, bool), 0.05)
    assert select_answers(confidence, threshold).all()


def test_none_is_answered_where_none_may_be() -> None:
    confidence = np.linspace(0.5, 1, 400)
    assert find_threshold(confidence, np.zeros(400, bool), 0.05) == math.inf
    assert not select_answers(confidence, math.inf).any()


def test_equal_confidences_are_answered_together() -> None:
    confidence = np.repeat([0.9, 0.6], [200, 200])
    threshold = find_threshold(confidence, confidence == 0.9, 0.05)
    assert select_answers(confidence, threshold).sum() == 200
    all_equal = find_threshold(np.ones(200), np.arange(200) < 199, 0.05)
    assert select_answers(np.ones(3), all_equal).all()


@pytest.mark.parametrize("max_error", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_what_is_no_share_of_mistakes_is_refused(max_error: float) -> None:
    with pytest.raises(UserError, match="max_error must be above 0 and below 1"):
        find_threshold(np.ones(9), np.ones(9, bool), max_error)


def test_too_few_rows_are_told() -> None:
    message = r"takes at least 299 validation images .* against 246. Ask for at least 0.013"
    with pytest.raises(UserError, match=message):
        find_threshold(np.ones(246), np.ones(246, bool), 0.01)
    find_threshold(np.ones(246), np.ones(246, bool), 0.013)
    with pytest.raises(UserError, match=r"Ask for at least 0.95, or train with more of them"):
        find_threshold(np.ones(1), np.ones(1, bool), 0.5)
    assert count_needed(0.5) == 5
