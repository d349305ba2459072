from __future__ import annotations

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from dtl.neighbours.voting import vote


def test_equals_scikit_learn_where_no_vote_is_tied() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(300, 8)), rng.normal(size=(200, 8))
    labels = rng.integers(0, 2, 300)
    model = KNeighborsClassifier(5, metric="cosine").fit(train, labels)
    distance, index = model.kneighbors(test)
    np.testing.assert_array_equal(vote(labels[index], 1 - distance, 2), model.predict(test))


def test_a_tie_goes_to_the_nearer_class() -> None:
    cosine = np.array([[0.9, 0.5, 0.45, 0.1]])
    assert vote([[2, 0, 0, 2]], cosine, 3) == [2]
    assert vote([[0, 2, 2, 0]], cosine, 3) == [0]
    assert vote([[1, 2, 2, 0]], cosine, 3) == [2]


def test_without_neighbours_there_is_no_class() -> None:
    none = np.full((2, 3), -1)
    none[1, 0] = 1
    np.testing.assert_array_equal(vote(none, np.zeros((2, 3)), 2), [-1, 1])
    assert vote(np.empty((0, 5)), np.empty((0, 5)), 4).shape == (0,)
