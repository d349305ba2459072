"""A map of rows: points of a plane, of which those of like rows lie near each other."""

from __future__ import annotations

import importlib.util

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from dtl.head import blas

TSNE, PCA = "t-SNE", "PCA"
_N_COMPONENTS = 50
"""Principal components that t-SNE takes, as in its paper."""
_PERPLEXITY = 30.0
_FEWEST = 100
"""Rows from which on t-SNE tells anything: it looks at some 90 neighbours of each."""
_N_STEPS = 500
_SEED = 0


def choose_way(n_rows: int) -> str:
    """Return the way in which so many rows are projected: t-SNE needs scikit-learn."""
    return TSNE if n_rows >= _FEWEST and importlib.util.find_spec("sklearn") else PCA


def project(rows: NDArray[np.float32], way: str) -> NDArray[np.float64]:
    """Return a place in the unit square for each row; the same rows get the same places.

    Parameters
    ----------
    rows : (n, n_features) float32
    way : {TSNE, PCA}

    Returns
    -------
    (n, 2) float

    References
    ----------
    van der Maaten, Hinton (2008), "Visualizing data using t-SNE", JMLR 9.
    """
    with blas.one_blas_thread():  # t-SNE makes much of the last bits
        places = find_components(rows, _N_COMPONENTS if way == TSNE else 2)
        if way == TSNE:
            places = _embed(places)
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: NDArray[np.float64] = (places - low) / np.where(high > low, high - low, 1)
    return scaled


def _embed(components: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn import manifold

    start = components[:, :2] / components[:, 0].std() * 1e-4  # as scikit-learn's own
    model = manifold.TSNE(
        perplexity=_PERPLEXITY, init=start.astype(np.float32), max_iter=_N_STEPS,
        random_state=_SEED,
    )  # fmt: skip
    # Its threads wait for each other after each short step. On two processors with a load of 8, two
    # threads took 14 s for 1,000 steps of 410 rows, and one took 0.7 s for 500.
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        found: NDArray[np.float64] = model.fit_transform(components.astype(np.float32))
    return found.astype(np.float64)


def find_components(rows: NDArray[np.float32], n: int) -> NDArray[np.float64]:
    """Return the first `n` principal components (n_rows, n) of rows, 0 where there are fewer.

    Of the matrix of products of rows, as there are fewer of these than features. The largest value
    of a component is positive.

    Examples
    --------
    >>> find_components(np.array([[0, 3], [0, 1], [0, -4]], "f4"), 2)
    array([[-3.,  0.],
           [-1.,  0.],
           [ 4.,  0.]])
    """
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[::-1][:n], vectors[:, ::-1][:, :n]
    kept = values > 1e-9 * max(values[0], 1e-300)
    found = np.zeros((len(rows), n))
    found[:, : len(values)] = vectors * np.sqrt(np.where(kept, values, 0.0))
    largest = np.abs(found).argmax(axis=0)
    signs = np.where(found[largest, np.arange(n)] < 0, -1.0, 1.0)
    return found * signs + 0.0
