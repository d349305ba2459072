"""Maps of rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import decomposition

from dtl.neighbours.projection import PCA, TSNE, choose_way, find_components, project


def groups(n_rows: int, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.arange(n_rows) % 4
    centres = rng.normal(0, 3, (4, n_features))
    return (centres[label] + rng.normal(size=(n_rows, n_features))).astype(np.float32), label


@pytest.mark.parametrize("shape", [(40, 200), (90, 7), (3, 5)])
def test_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    scale = np.arange(1, shape[1] + 1)
    rows = (np.random.default_rng(1).normal(size=shape) * scale).astype(np.float32)
    expected = decomposition.PCA(2, svd_solver="full").fit_transform(rows.astype(np.float64))
    found = find_components(rows, 2)
    signs = np.sign((found * expected).sum(axis=0))
    assert found * signs == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert (found.max(axis=0) >= -found.min(axis=0)).all()


def test_like_rows_lie_together_in_the_same_places_every_time() -> None:
    rows, label = groups(120, 60)
    assert choose_way(len(rows)) == TSNE
    places = project(rows, TSNE)
    assert (places == project(rows, TSNE)).all()
    assert (places.min(), places.max()) == (0, 1)
    nearest = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(nearest, np.inf)
    assert (label[nearest.argmin(axis=1)] == label).all()


def test_few_rows_and_equal_ones() -> None:
    assert choose_way(99) == PCA
    places = project(np.ones((5, 8), np.float32), PCA)
    assert (places == 0).all()
    assert project(groups(3, 4)[0], PCA).shape == (3, 2)
