"""Averages of replicas that have been trained apart, and moments of features, as data that merges.

A mean with its number of samples, and the squared deviations from it, is enough to merge it with
another. Pairs of neighbours are merged, then pairs of pairs: this tree follows from the number of
leaves alone, whatever part of it a task takes, so a mean has the same bits on any workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dtl.head import buffers
from dtl.head.model import KERNELS, WEIGHTS

T = TypeVar("T")

OUTER = "_outer_velocity"
"""Ends the names of the outer momentum's velocities, which no replica changes."""


_BLOCK = 1 << 16
"""Numbers that are worked on at a time: 256 KiB, so that they stay in a core's cache. Less would
cost more: threads hand the interpreter over between any two of NumPy's calls, and two that merged
8192 numbers at a time took four times as long as one."""


def pairwise(values: Iterable[T], merge: Callable[[T, T], T]) -> T:
    """Merge values in a binary tree: neighbours, then neighbours of these, and so on.

    Values may have been merged so already, from the first one on in runs of a power of two: the
    tree is the same. Of values that are made on the way, one for every level is held.

    Raises
    ------
    ValueError
        Without values.

    Examples
    --------
    >>> pairwise("abcdefg", lambda a, b: f"({a}{b})")
    '(((ab)(cd))((ef)g))'
    """
    waiting: list[tuple[int, T]] = []  # the level of each, which falls from left to right
    for value in values:
        level = 0
        while waiting and waiting[-1][0] == level:
            value, level = merge(waiting.pop()[1], value), level + 1
        waiting.append((level, value))
    if not waiting:
        raise ValueError("There is nothing to merge.")
    _, merged = waiting.pop()
    while waiting:
        merged = merge(waiting.pop()[1], merged)
    return merged


@dataclass(frozen=True, eq=False)
class Mean:
    """Parameters of one or more replicas, averaged by their training rows.

    Parameters
    ----------
    n_samples : int
        The training rows of the replicas.
    params : dict of str to float32 array
        ``sum(n_samples * parameter) / sum(n_samples)``; empty for replicas without rows.
    scatter : float
        ``sum(n_samples * norm(kernel - mean) ** 2)`` of the replicas, of all kernels as one.
    """

    n_samples: int = 0
    params: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    scatter: float = 0.0

    @classmethod
    def of(cls, params: Mapping[str, NDArray[np.float32]], n_samples: int) -> Mean:
        """One replica, whose parameters must not change any more; without samples it is nothing."""
        return cls(n_samples, params) if n_samples else cls()


def merge(a: Mean, b: Mean) -> Mean:
    r"""The mean of two means' replicas.

    With :math:`\Delta` the second mean less the first,

    .. math:: m = m_a + \Delta \frac{n_b}{n}, \qquad S = S_a + S_b + |\Delta|^2 \frac{n_a n_b}{n}.

    Everything is as large as the parameters themselves, and rounded as they are, once a merge.

    References
    ----------
    McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized
    data", algorithm 1; Zinkevich et al. (2010), "Parallelized stochastic gradient descent"; Chan,
    Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances", equation 2.1.

    Examples
    --------
    >>> one, three = (Mean.of({"kernel": np.full((1, 1), v, "f4")}, n) for v, n in ((1, 1), (3, 3)))
    >>> both = merge(one, three)
    >>> both.n_samples, both.params["kernel"].item(), both.scatter
    (4, 2.5, 3.0)
    """
    if not (a.n_samples and b.n_samples):
        return a if a.n_samples else b
    n = a.n_samples + b.n_samples
    share = np.float32(b.n_samples / n)
    params, squares = {}, 0.0
    for name, value in a.params.items():
        mean = buffers.empty(value.shape, np.float32)
        one, other, out = (array.reshape(-1) for array in (value, b.params[name], mean))
        for start in range(0, len(out), _BLOCK):
            here = slice(start, start + _BLOCK)
            change = np.subtract(other[here], one[here], out=out[here])
            if name in KERNELS:
                squares += float(change @ change)
            change *= share
            change += one[here]
        params[name] = mean
    scatter = a.scatter + b.scatter + squares * (a.n_samples * b.n_samples / n)
    return Mean(n, params, scatter)


def distance_and_norm(
    a: Mapping[str, NDArray[np.float32]], b: Mapping[str, NDArray[np.float32]]
) -> tuple[float, float]:
    """Norm of ``a - b``, and of `a`, of the kernels of parameters as one.

    Examples
    --------
    >>> distance_and_norm({"kernel": np.array([3, 4], "f4")}, {"kernel": np.array([3, 0], "f4")})
    (4.0, 5.0)
    """
    squares = np.zeros(2)
    for name in KERNELS:
        if name not in a:
            continue
        flat, other = a[name].reshape(-1), b[name].reshape(-1)
        scratch = np.empty(min(len(flat), _BLOCK), np.float32)
        for start in range(0, len(flat), _BLOCK):
            here = slice(start, min(start + _BLOCK, len(flat)))
            change = np.subtract(flat[here], other[here], out=scratch[: here.stop - start])
            squares += change @ change, flat[here] @ flat[here]
    distance, norm = np.sqrt(squares).tolist()
    return distance, norm


def outer_step(
    params: dict[str, NDArray[np.float32]],
    before: Mapping[str, NDArray[np.float32]],
    *,
    momentum: float,
    learning_rate: float,
) -> dict[str, NDArray[np.float32]]:
    r"""What a round ends with where its average is a step of an outer Nesterov momentum.

    With :math:`\Delta` the average less what the round started from, :math:`W`,

    .. math:: v \leftarrow m v + \eta \Delta, \qquad W \leftarrow W + m v + \eta \Delta.

    Parameters
    ----------
    params : dict of str to float32 array
        The averages.
    before : dict of str to float32 array
        What the round started from: weights, such as ``kernel``, and their velocities, such as
        ``kernel_outer_velocity``, which are zeros if they are missing.

    Returns
    -------
    dict of str to float32 array
        The weights after the step, their velocities, and the other averages as they are.

    References
    ----------
    Chen, Huo (2016), "Scalable training of deep learning machines by incremental block training
    with intra-block parallel optimization and blockwise model-update filtering" (BMUF), with
    Nesterov block momentum; Douillard et al. (2023), "DiLoCo", algorithm 1.

    Examples
    --------
    >>> one, two = ({name: np.full(1, v, "f4") for name in ("kernel", "bias")} for v in (1, 2))
    >>> after = outer_step(two, one, momentum=0.5, learning_rate=1.0)
    >>> after["kernel"].item(), after["kernel_outer_velocity"].item()
    (2.5, 1.0)
    """
    after = dict(params)
    for name in [name for name in WEIGHTS if name in params]:
        step = learning_rate * (params[name] - before[name])
        velocity = step.copy()
        if f"{name}{OUTER}" in before:
            velocity += momentum * before[f"{name}{OUTER}"]
        step += momentum * velocity
        step += before[name]
        after[name], after[f"{name}{OUTER}"] = step, velocity
    return after


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and sum of squared deviations of rows, (n_features,) float64."""

    n: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Moments:
        """Those of rows (n, n_features)."""
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0))

    def scale(self) -> NDArray[np.float32]:
        """Standard deviation (of the population), and 1 for a constant feature."""
        deviation = np.sqrt(self.m2 / max(self.n, 1))
        # The rounding of a mean leaves a constant feature a deviation of some ulps.
        constant = deviation <= 1e-7 * np.abs(self.mean)
        return np.where(constant, 1.0, deviation).astype(np.float32)


def combine_moments(parts: Sequence[Moments]) -> Moments:
    """Moments of all rows from those of parts, from the first to the last, as `merge` has it.

    Examples
    --------
    >>> a, b = np.array([[1.0], [3.0]]), np.array([[8.0]])
    >>> combine_moments([Moments.of(a), Moments.of(b)]).m2.round(6)
    array([26.])
    """
    total = parts[0]
    for part in parts[1:]:
        n = total.n + part.n
        if part.n == 0:
            continue
        delta = part.mean - total.mean
        total = Moments(
            n,
            total.mean + delta * (part.n / n),
            total.m2 + part.m2 + delta**2 * (total.n * part.n / n),
        )
    return total
