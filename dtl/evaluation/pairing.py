"""Two heads on the same images: which gets more of them right, and whether that may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtl.images.values import SPLITS


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Answers for the images of a store that have a split, in the order of its rows.

    Parameters
    ----------
    path : tuple of str
        Of each of n images, below the root of its list.
    content_hash : (n,) uint64
    split : (n,) int8
        Index into `SPLITS`.
    label, predicted : (n,) int32
        Index into `class_names`.
    probability : (n,) float32
        Of the predicted class.
    """

    path: tuple[str, ...]
    content_hash: NDArray[np.uint64]
    split: NDArray[np.int8]
    label: NDArray[np.int32]
    predicted: NDArray[np.int32]
    probability: NDArray[np.float32]
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pairing:
    """Two heads on the images of one split of both.

    Neither was trained on any of them; each has the same bytes and the same class in both runs.

    Parameters
    ----------
    split : str
    path : tuple of str
        Of each of n images.
    true : (n,) object
        Names of their classes.
    predicted : (2, n) object
        Names that the first and the second head give.
    probability : (2, n) float32
        Of what they give.
    n_scored : (int, int)
        Images of the split in each run.
    n_trained_on : (int, int)
        Those of the first run's on which the second was trained, and the other way round: files
        of the same bytes, under any path.
    n_changed, n_relabelled : int
        Common ones that are left out: their file or their class is another in the other run.
    """

    split: str
    path: tuple[str, ...]
    true: NDArray[np.object_]
    predicted: NDArray[np.object_]
    probability: NDArray[np.float32]
    n_scored: tuple[int, int]
    n_trained_on: tuple[int, int]
    n_changed: int
    n_relabelled: int

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each head is right, (2, n)."""
        found: NDArray[np.bool_] = self.predicted == self.true
        return found

    @property
    def n_common(self) -> int:
        """Images that are compared."""
        return len(self.path)

    @property
    def n_only(self) -> tuple[int, int]:
        """Images that the first head alone gets right, and the second alone."""
        first, second = self.right
        return int((first & ~second).sum()), int((second & ~first).sum())

    @property
    def n_both(self) -> int:
        """Images that both get right."""
        return int(self.right.all(axis=0).sum())

    @property
    def difference(self) -> float:
        """The second's accuracy minus the first's, on the common images."""
        first, second = self.n_only
        return (second - first) / self.n_common

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return find_difference_interval(*self.n_only, self.n_common)

    @property
    def p_value(self) -> float:
        """How likely so unequal a number is by chance: `mcnemar`."""
        return mcnemar(*self.n_only)

    def select(self, winner: int, most: int) -> list[int]:
        """Return images that only one head gets right, the other's most confident errors first."""
        right = self.right
        rows = np.flatnonzero(right[winner] & ~right[1 - winner]).tolist()
        return sorted(rows, key=lambda k: (-self.probability[1 - winner, k], self.path[k]))[:most]


class ClassChange(NamedTuple):
    """How many images of a class two heads get right."""

    name: str
    n_images: int
    n_right: tuple[int, int]
    n_only: tuple[int, int]
    p_value: float
    """Of `mcnemar`, times as many classes as Holm's method says."""

    @property
    def gain(self) -> int:
        """Images more that the second gets right."""
        return self.n_right[1] - self.n_right[0]


def pair(first: Outcomes, second: Outcomes, split: str) -> Pairing:
    """Find the images of a split of both runs, by their paths, and what each head says of them."""
    part, train = SPLITS.index(split), SPLITS.index("train")
    scored = [np.flatnonzero(outcomes.split == part) for outcomes in (first, second)]
    trained_on = [
        np.isin(own.content_hash, other.content_hash[other.split == train])
        for own, other in ((first, second), (second, first))
    ]
    row_of = {second.path[row]: row for row in scored[1].tolist()}
    shared = [
        (row, row_of[first.path[row]]) for row in scored[0].tolist() if first.path[row] in row_of
    ]
    rows, others = np.array(shared, np.intp).reshape(-1, 2).T
    same = first.content_hash[rows] == second.content_hash[others]
    true = _name(first, first.label[rows])
    agreed = true == _name(second, second.label[others])
    chosen = same & agreed & ~trained_on[0][rows] & ~trained_on[1][others]
    of_both = ((first, rows[chosen]), (second, others[chosen]))
    n_trained_on = [int(t[own].sum()) for t, own in zip(trained_on, scored, strict=True)]
    return Pairing(
        split=split,
        path=tuple(first.path[row] for row in rows[chosen]),
        true=true[chosen],
        predicted=np.stack([_name(o, o.predicted[at]) for o, at in of_both]),
        probability=np.stack([o.probability[at] for o, at in of_both]),
        n_scored=(len(scored[0]), len(scored[1])),
        n_trained_on=(n_trained_on[0], n_trained_on[1]),
        n_changed=int((~same).sum()),
        n_relabelled=int((same & ~agreed).sum()),
    )


def _name(outcomes: Outcomes, labels: NDArray[np.int32]) -> NDArray[np.object_]:
    return np.array(outcomes.class_names, object)[labels]


def list_changes(pairing: Pairing) -> list[ClassChange]:
    """Return the classes of which one head gets more right, the second's greatest gain first."""
    names, at = np.unique(pairing.true.astype(str), return_inverse=True)
    first, second = pairing.right
    counts = np.stack(
        [np.bincount(at, w, len(names)) for w in (np.ones(len(at)), first, second,
                                                  first & ~second, second & ~first)]
    ).astype(int).T.tolist()  # fmt: skip
    p_values = adjust([mcnemar(*row[3:]) for row in counts])
    changes = [
        ClassChange(str(name), n, (right, theirs), (lost, won), p)
        for name, (n, right, theirs, lost, won), p in zip(names, counts, p_values, strict=True)
    ]
    return sorted((c for c in changes if c.gain), key=lambda c: (-c.gain, c.p_value, c.name))


def mcnemar(n_first: int, n_second: int) -> float:
    """Return the p-value of McNemar's exact test that two classifiers err alike.

    Of the images that only one gets right, either one's number is binomial with probability 1/2.
    Two-sided, and exact for any number.

    Examples
    --------
    >>> round(mcnemar(1, 7), 4), mcnemar(0, 0)
    (0.0703, 1.0)

    References
    ----------
    McNemar (1947), Psychometrika 12. Dietterich (1998), Neural Computation 10(7), section 3.1.
    """
    from scipy.special import bdtr  # not for a finished command

    n = n_first + n_second
    return min(1.0, 2 * float(bdtr(min(n_first, n_second), n, 0.5))) if n else 1.0


def find_difference_interval(n_first: int, n_second: int, n_images: int) -> tuple[float, float]:
    """Return the 95 % interval of the second's accuracy minus the first's, on the same images.

    Wald's, after one image has been added to either number and two to the images.

    Examples
    --------
    >>> [round(end, 3) for end in find_difference_interval(7, 1, 21)]
    [-0.508, -0.013]

    References
    ----------
    Bonett and Price (2012), J. Educ. Behav. Stat. 37(4).
    """
    first, second = (n_first + 1) / (n_images + 2), (n_second + 1) / (n_images + 2)
    middle = second - first
    half = NormalDist().inv_cdf(0.975) * math.sqrt(
        max(first + second - middle**2, 0.0) / (n_images + 2)
    )
    return max(middle - half, -1.0), min(middle + half, 1.0)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return p-values of many tests, such that each holds for all of them together.

    Examples
    --------
    >>> adjust([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    References
    ----------
    Holm (1979), Scandinavian Journal of Statistics 6(2).
    """
    adjusted, reached = [1.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, p_values[k] * (len(p_values) - rank)))
        adjusted[k] = reached
    return adjusted
