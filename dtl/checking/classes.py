"""Classes that overlap, that look like two, and that have too few images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, eigsh

from dtl.checking.values import DoubleClass, Overlap, SmallClass
from dtl.head import blas
from dtl.neighbours.search import Neighbours

_LEAST_EXPECTED, _LEAST_SHARE = 1.5, 0.02
"""Of images with the other class's label: below, chance names pairs of classes."""
_FEW, _FEW_OF_MEDIAN = 10, 0.1
"""Images of a class that are too few, and their share of the median class's."""

_LEAST_PART, _LEAST_PART_SHARE = 8, 0.1
"""Images of each part of a class that looks like two."""
_MOST_BETWEEN = 0.05
"""Share of the links of the smaller part that lead to the other one. In 19 classes of Caltech-256
it is 0.09 or more, and below this in 87 of 91 pairs of them put together."""
_MOST_ROWS = 20_000
"""Images of a class that are looked at."""
_N_EXAMPLES = 4


def find_overlaps(joint: sparse.csr_array, class_names: Sequence[str]) -> tuple[Overlap, ...]:
    """Find pairs of classes of which images have each other's label, the largest share first.

    Parameters
    ----------
    joint : (n_classes, n_classes)
        Of `label_errors.estimate_joint`.

    Examples
    --------
    >>> joint = sparse.csr_array([[16.0, 4.0, 0.0], [1.0, 39.0, 0.0], [1.0, 0.0, 9.0]])
    >>> find_overlaps(joint, ["ant", "bee", "cat"])
    (Overlap(one='ant', other='bee', n_expected=5.0, share=0.25),)
    """
    both = sparse.triu(joint + joint.T, k=1).tocoo()
    n_labels = np.asarray(joint.sum(axis=1)).ravel()
    smaller = np.minimum(n_labels[both.row], n_labels[both.col])
    share = both.data / np.maximum(smaller, 1)
    found = np.flatnonzero((both.data >= _LEAST_EXPECTED) & (share >= _LEAST_SHARE))
    return tuple(
        Overlap(
            class_names[both.row[k]], class_names[both.col[k]], round(float(both.data[k]), 2),
            round(float(share[k]), 4),
        )
        for k in sorted(found.tolist(), key=lambda k: (-share[k], both.row[k], both.col[k]))
    )  # fmt: skip


def find_small(
    label: NDArray[np.integer], judged: NDArray[np.bool_], class_names: Sequence[str]
) -> tuple[SmallClass, ...]:
    """Find classes of few images, the smallest first.

    Parameters
    ----------
    label : (n,) int
        Of the images with a class.
    judged : (n,) bool
        As `folds.find_judged`.

    Examples
    --------
    >>> find_small(np.array([0] * 30 + [1]), np.array([True] * 30 + [False]), ["ant", "bee"])
    (SmallClass(name='bee', n_images=1, judged=False),)
    """
    n = np.bincount(label, minlength=len(class_names))
    n_judged = np.bincount(label[judged], minlength=len(class_names))
    present = n > 0
    limit = max(_FEW, _FEW_OF_MEDIAN * float(np.median(n[present]))) if present.any() else 0
    small = np.flatnonzero(present & ((n < limit) | (n_judged == 0)))
    return tuple(
        SmallClass(class_names[k], int(n[k]), bool(n_judged[k]))
        for k in sorted(small.tolist(), key=lambda k: (n[k], k))
    )


def find_double(
    neighbours: Neighbours,
    label: NDArray[np.integer],
    path: NDArray[np.generic],
    class_names: Sequence[str],
) -> tuple[DoubleClass, ...]:
    """Find classes whose images fall into two parts that are hardly neighbours, the clearest first.

    Parameters
    ----------
    neighbours : Neighbours
        10 or more of each row.
    label, path : (n_images,)
        Of the store.
    """
    own, found = label[neighbours.rows], []
    place = np.full(len(label), -1)
    for k, name in enumerate(class_names):
        rows = np.flatnonzero(own == k)[:_MOST_ROWS]
        place[neighbours.rows[rows]] = np.arange(len(rows))
        index = neighbours.index[rows]
        links = np.where(index >= 0, place[index], -1)
        place[neighbours.rows[rows]] = -1
        between, order, size = part_in_two(links)
        if between <= _MOST_BETWEEN:
            sorted_paths = [str(path[row]) for row in neighbours.rows[rows[order]]]
            ends = sorted_paths[:_N_EXAMPLES], sorted_paths[-_N_EXAMPLES:]
            parts = (size, len(order) - size)
            found.append(DoubleClass(name, parts, round(between, 4), *map(tuple, ends)))
    return tuple(sorted(found, key=lambda double: (double.between, double.name)))


def part_in_two(links: NDArray[np.integer]) -> tuple[float, NDArray[np.intp], int]:
    """Part rows where least of their links are cut.

    Parameters
    ----------
    links : (n, k) int
        Rows that each row is linked to; -1 for none.

    Returns
    -------
    between : float
        Share of the links of the smaller part that lead to the other one; 1 where no parts of 8
        images and a tenth of them are found.
    order : (n_kept,) int
        Rows, one part after the other; without groups of fewer than 8 that nothing links to others.
    size : int
        Rows of the first part.

    References
    ----------
    Shi, Malik (2000), "Normalized cuts and image segmentation", IEEE Trans. PAMI 22; the cut is
    that of least conductance along the second eigenvector.

    Examples
    --------
    >>> circle = (np.arange(10)[:, None] + np.arange(1, 4)) % 10
    >>> between, order, size = part_in_two(np.concatenate([circle, circle + 10]))
    >>> between, sorted(order[:size].tolist()) in (list(range(10)), list(range(10, 20)))
    (0.0, True)
    """
    n = len(links)
    rows, at = np.nonzero(links >= 0)
    one_way = sparse.coo_array((np.ones(len(rows)), (rows, links[rows, at])), (n, n)).tocsr()
    graph = ((one_way + one_way.T) > 0).astype(np.float64).tocsr()
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component, minlength=1)
    kept = np.flatnonzero(sizes[component] >= _LEAST_PART)
    if len(kept) < 2 * _LEAST_PART:
        return 1.0, kept, 0
    linked = graph[kept][:, kept]
    vector = component[kept] == component[kept][sizes[component[kept]].argmax()]
    if vector.all():
        vector = _find_second(linked)
    order = np.argsort(vector, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    # A link is cut by each border between its ends.
    links_once = sparse.triu(linked, k=1).tocoo()
    ends = np.sort(np.stack([place[links_once.row], place[links_once.col]]), axis=0)
    begin, end = (np.bincount(at, minlength=len(kept)) for at in ends)
    cut = np.cumsum(begin - end)
    volume = np.cumsum(linked.sum(axis=1)[order])
    size = np.arange(1, len(kept) + 1)
    least = max(_LEAST_PART, _LEAST_PART_SHARE * len(kept))
    allowed = (size >= least) & (len(kept) - size >= least)
    smaller = np.maximum(np.minimum(volume, volume[-1] - volume), 1)
    between = np.where(allowed, cut / smaller, 1.0)
    best = int(between.argmin())
    return float(between[best]), kept[order], best + 1


def _find_second(linked: sparse.csr_array) -> NDArray[np.float64]:
    """Return the second eigenvector of a connected graph's normalised Laplacian, by row.

    It is 0 where none is found.
    """
    root = np.sqrt(linked.sum(axis=1))
    scaled = sparse.diags_array(1 / root) @ linked @ sparse.diags_array(1 / root)
    start = np.cos(np.arange(len(root)))  # the same in each run, and like no eigenvector
    with blas.one_blas_thread():
        try:
            values, vectors = eigsh(scaled, k=2, which="LA", v0=start, tol=1e-6)
        except ArpackError:
            return np.zeros(len(root))
    vector: NDArray[np.float64] = vectors[:, values.argmin()] / root
    return vector if vector[0] <= 0 else -vector  # an eigenvector has no sign
