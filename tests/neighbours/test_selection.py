"""Greedy facility location against one that looks at every row each time."""

from __future__ import annotations

import numpy as np
import pytest

from dtl.neighbours.selection import select_covering


def draw(seed: int, n: int, n_features: int = 6) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, n_features))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def value(unit: np.ndarray, chosen: list[int], covered: np.ndarray, weight: np.ndarray) -> float:
    others = np.concatenate([unit[chosen], covered])
    if not len(others):
        return 0.0
    return float(weight @ (np.maximum(unit @ others.T, 0) ** 2).max(axis=1))


@pytest.mark.parametrize("seed", range(8))
def test_it_adds_the_row_that_adds_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    unit, covered = draw(seed, 60), draw(seed + 100, int(rng.integers(0, 5)))
    weight = rng.uniform(size=60).astype(np.float32)
    found = select_covering(unit, 10, covered, weight)
    chosen: list[int] = []
    for row in found.tolist():
        before = value(unit, chosen, covered, weight)
        gains = [value(unit, [*chosen, k], covered, weight) - before for k in range(60)]
        assert gains[row] == pytest.approx(max(gains), abs=1e-5)
        chosen.append(row)
    assert len({*chosen}) == 10


def test_groups_come_by_their_size_and_a_lone_row_late() -> None:
    centres = np.eye(4, 8)
    group = np.repeat([0, 1, 2, 3], [30, 20, 10, 1])
    rows = centres[group] + 0.1 * np.random.default_rng(0).normal(size=(61, 8))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    assert group[select_covering(unit, 3)].tolist() == [0, 1, 2]
    # What is labelled counts as chosen; what has no weight needs nobody.
    covered = centres[[0]].astype(np.float32)
    assert group[select_covering(unit, 2, covered)].tolist() == [1, 2]
    weight = (group != 1).astype(np.float32)
    assert group[select_covering(unit, 2, covered, weight)].tolist() == [2, 3]


def test_all_rows_copies_and_zeros() -> None:
    unit = draw(0, 5)
    assert sorted(select_covering(unit, 9).tolist()) == [*range(5)]
    assert select_covering(unit, 0).tolist() == []
    assert select_covering(unit[:0], 3).tolist() == []
    copies = np.concatenate([np.repeat(unit[:1], 3000, axis=0), unit[1:]])
    assert len({tuple(row) for row in copies[select_covering(copies, 5)].tolist()}) == 5
    assert select_covering(np.zeros((4, 3), np.float32), 2).tolist() == [0, 1]
