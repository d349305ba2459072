from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dtl.head.fitting import fit_softmax


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_equals_scikit_learn(l2: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    features = (rng.normal(size=(60, 8)) + rng.normal(size=(4, 8))[labels]).astype(np.float32)
    model = LogisticRegression(C=1 / (l2 * 60), max_iter=1000, tol=1e-8).fit(features, labels)
    found = fit_softmax(features, labels, 4, l2)
    np.testing.assert_allclose(found["kernel"], model.coef_.T, atol=0.01)
    stronger = fit_softmax(features, labels, 4, 2 * l2)
    again = fit_softmax(features, labels, 4, l2, start=stronger)
    np.testing.assert_allclose(again["kernel"], found["kernel"], atol=0.01)


def test_classes_without_rows_and_a_single_row() -> None:
    found = fit_softmax(np.ones((1, 3), np.float32), np.array([1]), 3, 0.1)
    logits = np.ones(3) @ found["kernel"] + found["bias"]
    assert logits.argmax() == 1
    assert np.isfinite(logits).all()
