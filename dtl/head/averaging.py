"""Averages of replicas that were trained apart, as data that merges.

A mean merges with another by its number of samples and the squared deviations from it. Pairs of
neighbours are merged, then pairs of pairs. This tree follows from the number of leaves alone,
whatever part of it a task takes, so a mean has the same bits on any workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from dtl.head import buffers
from dtl.head.model import KERNELS, WEIGHTS
from dtl.head.softmax import Params

T = TypeVar("T")

OUTER = "_outer_velocity"
"""Ends the names of the outer momentum's velocities, which no replica changes."""

_BLOCK = 1 << 16
"""Numbers that are merged at a time: 256 KiB stay in a core's cache. Fewer cost more: threads hand
the interpreter over after every call of NumPy, and two threads that merged 8192 numbers at a time
took four times as long as one."""


def pairwise(values: Iterable[T], merge: Callable[[T, T], T]) -> T:
    """Merge values in a binary tree: neighbours, then neighbours of these, and so on.

    The tree is the same if runs of a power of two of the values, from the first one on, were merged
    before. Of values that an iterator makes, one for every level is held in memory. Without values
    it raises a `ValueError`.

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
    params: Params = field(default_factory=dict)
    scatter: float = 0.0

    @classmethod
    def of(cls, params: Params, n_samples: int) -> Mean:
        """Return the mean of one replica; its parameters must not change any more."""
        return cls(n_samples, params) if n_samples else cls()


def merge(a: Mean, b: Mean) -> Mean:
    r"""Merge two means.

    With :math:`\Delta` the second mean less the first,

    .. math:: m = m_a + \Delta \frac{n_b}{n}, \qquad S = S_a + S_b + |\Delta|^2 \frac{n_a n_b}{n}.

    All numbers are of the parameters' size, and each merge rounds them once to float32.

    References
    ----------
    McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized
    data", algorithm 1; Zinkevich et al. (2010), "Parallelized stochastic gradient descent"; Chan,
    Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances", equation 2.1.

    Examples
    --------
    >>> one, three = (Mean.of({"kernel": np.full((1, 1), v, "f4")}, n) for v, n in ((1, 1), (3, 3)))
    >>> merged = merge(one, three)
    >>> merged.n_samples, merged.params["kernel"].item(), merged.scatter
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
        for first in range(0, len(out), _BLOCK):
            block = slice(first, first + _BLOCK)
            change = np.subtract(other[block], one[block], out=out[block])
            if name in KERNELS:
                squares += float(change @ change)
            change *= share
            change += one[block]
        params[name] = mean
    scatter = a.scatter + b.scatter + squares * (a.n_samples * b.n_samples / n)
    return Mean(n, params, scatter)


def distance_and_norm(a: Params, b: Params) -> tuple[float, float]:
    """Return the norms of ``a - b`` and of `a`, over all kernels as one vector.

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
        for first in range(0, len(flat), _BLOCK):
            block = slice(first, min(first + _BLOCK, len(flat)))
            change = np.subtract(flat[block], other[block], out=scratch[: block.stop - first])
            squares += change @ change, flat[block] @ flat[block]
    distance, norm = np.sqrt(squares).tolist()
    return distance, norm


def outer_step(params: Params, before: Params, momentum: float) -> Params:
    r"""Take a round's average as a step of an outer Nesterov momentum.

    With :math:`\Delta` the average less the parameters before the round, :math:`W`,

    .. math:: v \leftarrow m v + \Delta, \qquad W \leftarrow W + m v + \Delta.

    It takes the averages, and from before the round weights, such as ``kernel``, and velocities,
    such as ``kernel_outer_velocity``; missing ones are zeros. It returns the weights after the
    step, their velocities, and the other averages as they are.

    References
    ----------
    Chen, Huo (2016), "Scalable training of deep learning machines by incremental block training
    with intra-block parallel optimization and blockwise model-update filtering" (BMUF), with
    Nesterov block momentum; Douillard et al. (2023), "DiLoCo", algorithm 1.

    Examples
    --------
    >>> one, two = ({name: np.full(1, v, "f4") for name in ("kernel", "bias")} for v in (1, 2))
    >>> after = outer_step(two, one, momentum=0.5)
    >>> after["kernel"].item(), after["kernel_outer_velocity"].item()
    (2.5, 1.0)
    """
    after = dict(params)
    for name in [name for name in WEIGHTS if name in params]:
        step = params[name] - before[name]
        velocity = step.copy()
        if f"{name}{OUTER}" in before:
            velocity += momentum * before[f"{name}{OUTER}"]
        step += momentum * velocity
        step += before[name]
        after[name], after[f"{name}{OUTER}"] = step, velocity
    return after
