from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from dtl.checking import classes
from dtl.neighbours.search import Neighbours


def make_neighbours(features: np.ndarray, k: int = 10) -> Neighbours:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    index = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(cosine, index, axis=1).astype(np.float32)
    return Neighbours(np.arange(len(features)), index.astype(np.int64), found)


def test_a_class_of_two_is_told_from_one() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 32)) * 3
    parts = np.repeat([0, 1, 2], [60, 30, 70])
    order = rng.permutation(len(parts))
    parts = parts[order]
    features = centres[parts] + rng.normal(size=(len(parts), 32))
    label = (parts == 2).astype(np.int32)  # the first class is of two
    path = np.array([f"{k}.jpg" for k in range(len(parts))], np.dtypes.StringDType())
    [double] = classes.find_double(make_neighbours(features), label, path, ("two", "one"))
    assert double.name == "two"
    assert sorted(double.parts) == [30, 60]
    part_of = {f"{k}.jpg": part for k, part in enumerate(parts.tolist())}
    sides = [{part_of[p] for p in side} for side in (double.one, double.other)]
    assert sorted(map(sorted, sides)) == [[0], [1]]


@pytest.mark.parametrize("n", [0, 1, 5, 15])
def test_few_rows_are_not_parted(n: int) -> None:
    links = np.stack([np.arange(n) ^ 1, np.arange(n)], axis=1) if n else np.empty((0, 2), int)
    links[links >= n] = -1
    between, _, size = classes.part_in_two(links)
    assert (between, size) == (1.0, 0)


def test_thousands_of_copies_of_one_image_are_one_part() -> None:
    n = 3000
    links = np.tile(np.arange(11), (n, 1))  # copies are all nearest to the first ones
    links = np.where(links == np.arange(n)[:, None], 11, links)[:, :10]
    between, _, _ = classes.part_in_two(links)
    assert between > 0.05


def test_overlaps_of_no_other_class_and_of_all() -> None:
    names = ("ant", "bee", "cat")
    assert classes.find_overlaps(sparse.csr_array(np.diag([9.0, 9.0, 0.0])), names) == ()
    found = classes.find_overlaps(sparse.csr_array(np.full((3, 3), 4.0)), names)
    assert [(o.one, o.other, o.n_expected) for o in found] == [
        ("ant", "bee", 8.0), ("ant", "cat", 8.0), ("bee", "cat", 8.0),
    ]  # fmt: skip


def test_classes_are_small_beside_the_others() -> None:
    label = np.repeat(np.arange(4), [1000, 900, 50, 8])
    found = classes.find_small(label, np.ones(len(label), bool), ("a", "b", "c", "d"))
    assert [(c.name, c.judged) for c in found] == [("d", True)]
    found = classes.find_small(np.repeat(np.arange(3), [1000, 900, 50]), np.ones(1950, bool), "abc")
    assert [c.name for c in found] == ["c"]
    assert classes.find_small(np.empty(0, int), np.empty(0, bool), "abc") == ()
