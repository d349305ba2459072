"""Sets equal MAPIE's and crepes', and hold the right class as often as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from crepes import ConformalClassifier
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import APSConformityScore
from scipy.stats import betabinom
from sklearn.base import BaseEstimator, ClassifierMixin

from dtl.config.errors import UserError
from dtl.evaluation.conformal import (
    count_needed,
    find_thresholds,
    group_classes,
    mass_above,
    rank,
    select_sets,
)
from dtl.head.softmax import log_softmax


def draw(n: int, n_classes: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw probabilities, and labels of which they are not quite the probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, n_classes))
    shares = np.exp(log_softmax(0.7 * logits)).cumsum(axis=1)
    return np.exp(log_softmax(logits)), (shares > rng.random((n, 1))).argmax(axis=1)


def own_scores(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return mass_above(p)[np.arange(len(labels)), labels]


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities are its input."""

    def __init__(self, n_classes: int = 8) -> None:
        self.n_classes = n_classes

    def fit(self, X: Any, y: Any) -> Given:
        self.classes_ = np.arange(self.n_classes)
        return self

    def predict_proba(self, X: Any) -> Any:
        return X

    def predict(self, X: Any) -> Any:
        return X.argmax(axis=1)


class Ones(np.random.RandomState):
    """Draws 1 always: the paper's u of every row."""

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return np.ones(size)


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95, 0.99])
def test_sets_are_mapies(coverage: float) -> None:
    p, labels = draw(900)
    theirs = SplitConformalClassifier(
        Given().fit(p, labels), confidence_level=coverage, prefit=True,
        conformity_score=APSConformityScore(), random_state=Ones(),
    )  # fmt: skip
    theirs.conformalize(p[:500], labels[:500])
    _, sets = theirs.predict_set(p[500:], conformity_score_params={"include_last_label": True})
    scores = own_scores(p[:500], labels[:500])
    # One group, as MAPIE has it: no class of 500 rows has rows enough for 99 % of its own.
    threshold = np.sort(scores)[rank(500, coverage) - 1]
    assert threshold == pytest.approx(
        float(theirs._mapie_classifier.conformity_score_function_.quantiles_[0]), abs=1e-6
    )
    np.testing.assert_array_equal(select_sets(p[500:], np.full(8, threshold)), sets[:, :, 0])


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_by_class_are_crepes(coverage: float) -> None:
    p, labels = draw(1500)
    labels = np.where(labels < 4, labels, labels % 2 * 4 + (labels - 4) // 3)  # some are rare
    fitted, new = slice(1000), slice(1000, 1500)
    group = group_classes(labels[fitted], 8, coverage)
    assert len(np.unique(group)) > 2
    theirs = ConformalClassifier()
    scores = own_scores(p[fitted], labels[fitted])
    theirs.fit(scores, bins=group[labels[fitted]])
    above = mass_above(p[new])
    asked = coverage - 1e-9  # crepes compares p-values with 1 - 0.9, which is below 0.1
    columns = [
        theirs.predict_set(
            above[:, [k]], bins=np.full(500, group[k]), confidence=asked, smoothing=False
        )
        for k in range(8)
    ]
    found = select_sets(p[new], find_thresholds(scores, labels[fitted], 8, coverage))
    np.testing.assert_array_equal(found, np.concatenate(columns, axis=1).astype(bool))


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
def test_the_right_class_is_held_as_often_as_it_should(coverage: float) -> None:
    covered, n_fitted, n_new = [], 200, 300
    for seed in range(200):
        p, labels = draw(n_fitted + n_new, seed=seed)
        scores = own_scores(p, labels)
        k = rank(n_fitted, coverage)
        threshold = np.sort(scores[:n_fitted])[k - 1]
        covered.append(int((scores[n_fitted:] <= threshold).sum()))
    # Exactly so where no scores are equal: those of the most likely classes are, at 0.
    law = betabinom(n_new, k, n_fitted + 1 - k)
    low, high = law.ppf([0.025, 0.975])
    if coverage > 0.8:
        assert 180 <= sum(low <= n <= high for n in covered) <= 200
        assert np.mean(covered) == pytest.approx(law.mean(), abs=4 * law.std() / np.sqrt(200))
    assert np.mean(covered) >= law.mean() - 4 * law.std() / np.sqrt(200)


def test_every_group_is_covered() -> None:
    covered = np.zeros((60, 8))
    for seed in range(60):
        p, labels = draw(3000, seed=seed)
        thresholds = find_thresholds(own_scores(p[:2000], labels[:2000]), labels[:2000], 8, 0.9)
        assert len({*thresholds}) == 8
        held = select_sets(p[2000:], thresholds)[np.arange(1000), labels[2000:]]
        covered[seed] = [held[labels[2000:] == k].mean() for k in range(8)]
    assert covered.mean(axis=0) == pytest.approx(np.full(8, 0.9), abs=0.02)


def test_sets_have_the_likeliest_class_and_are_never_empty() -> None:
    p, labels = draw(300)
    for coverage in (0.01, 0.5, 0.99):
        sets = select_sets(p, find_thresholds(own_scores(p, labels), labels, 8, coverage))
        assert sets[np.arange(300), p.argmax(axis=1)].all()


def test_equally_likely_classes_come_in_their_order() -> None:
    np.testing.assert_allclose(mass_above(np.full((1, 4), 0.25)), [[0, 0.25, 0.5, 0.75]])
    assert mass_above(np.array([[1.0, 0, 0]])).tolist() == [[0, 1, 1]]


def test_two_classes() -> None:
    p, labels = draw(100, n_classes=2)
    sets = select_sets(p, find_thresholds(own_scores(p, labels), labels, 2, 0.95))
    assert sets.sum(axis=1).max() == 2


def test_few_rows_are_one_group() -> None:
    # One row of each class, and a class without any.
    assert group_classes(np.arange(19), 20, 0.9).tolist() == [-1] * 20
    thresholds = find_thresholds(np.linspace(0, 0.9, 19), np.arange(19), 20, 0.9)
    np.testing.assert_allclose(thresholds, 0.85)


def test_the_smallest_groups_come_together() -> None:
    labels = np.repeat(np.arange(4), [500, 400, 200, 3])
    # Five of 100 lie above the threshold of 95 %; with the third class the others have 203.
    assert group_classes(labels, 4, 0.95).tolist() == [0, 1, -1, -1]
    assert group_classes(labels[:1100], 3, 0.95).tolist() == [0, 1, 2]


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 95.0, float("nan")])
def test_what_is_no_coverage_is_refused(coverage: float) -> None:
    with pytest.raises(UserError, match="coverage must be above 0 and below 1"):
        find_thresholds(np.zeros(9), np.zeros(9, int), 2, coverage)


@pytest.mark.parametrize(("n", "coverage", "most"), [(18, 0.95, 0.947), (246, 0.999, 0.995)])
def test_too_few_rows_are_told(n: int, coverage: float, most: float) -> None:
    scores, labels = np.linspace(0, 1, n), np.zeros(n, int)
    message = rf"A coverage of {coverage} needs at least {count_needed(coverage)} .* at most {most}"
    with pytest.raises(UserError, match=message):
        find_thresholds(scores, labels, 2, coverage)
    find_thresholds(scores, labels, 2, most)
    find_thresholds(np.linspace(0, 1, count_needed(0.95)), np.zeros(19, int), 2, 0.95)
