"""Averages of replicas that have been trained apart, and moments of features, as data that adds up.

A distributed mean is a weighted sum, a combination of sums and a division at the end. Everything
here is exact in the order in which it is combined; a tree of fixed shape gives the same bits on any
number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl import buffers
from dtl.types import KERNELS, WEIGHTS

OUTER = "_outer_velocity"
"""Ends the names of the outer momentum's velocities, which no replica changes."""


_BLOCK = 1 << 13
"""Numbers that are added up at a time: 64 KiB in float64, so that all but the parts themselves
stays in a core's cache."""


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """Parameters of one or more replicas, weighted and summed.

    Parameters
    ----------
    n_samples : int
        The sum of the weights: the training rows of the replicas.
    values : dict of str to array
        Of one replica, its float32 parameters as they are; of more, their float64 sums, ``sum(
        n_samples * parameter)``; empty for replicas without rows. So what leaves a replica is as
        small as it can be, and what adds up is exact.
    squares : float, optional
        ``sum(n_samples * sum(kernel ** 2))`` over all kernels, for the spread of the replicas; None
        for one replica.
    """

    n_samples: int = 0
    values: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    squares: float | None = None

    @classmethod
    def of(cls, params: Mapping[str, NDArray[Any]], n_samples: int) -> WeightedSum:
        """One replica, whose parameters must not change any more; without samples it is nothing."""
        return cls(n_samples, params) if n_samples else cls()


def combine(parts: Sequence[WeightedSum]) -> WeightedSum:
    """Add weighted sums up, from the first to the last."""
    parts = [part for part in parts if part.n_samples]
    if not parts:
        return WeightedSum()
    sums, squares = {}, 0.0
    for name, value in parts[0].values.items():
        total = buffers.empty(value.shape, np.float64)
        flat = total.reshape(-1)
        for here, block, block_squares in _sum_blocks(parts, name):
            flat[here] = block
            squares += block_squares
        sums[name] = total
    return WeightedSum(sum(part.n_samples for part in parts), sums, squares)


def average(parts: Sequence[WeightedSum]) -> tuple[dict[str, NDArray[np.float32]], float]:
    """The averaged parameters, and how far the replicas were apart.

    Parameters
    ----------
    parts : sequence of WeightedSum
        They are added up on the way.

    Returns
    -------
    params : dict of str to float32 array
    spread : float
        Root of the weighted mean of ``norm(kernel - average) ** 2``, over the average's norm; of
        all kernels as one.

    Raises
    ------
    ValueError
        If no replica had samples.

    References
    ----------
    McMahan et al. (2017), "Communication-efficient learning of deep networks from decentralized
    data", algorithm 1; Zinkevich et al. (2010), "Parallelized stochastic gradient descent".

    Examples
    --------
    >>> one, three = ({"kernel": np.full((1, 1), v)} for v in (1.0, 3.0))
    >>> params, spread = average([WeightedSum.of(one, 1), WeightedSum.of(three, 3)])
    >>> params["kernel"].item(), round(spread, 3)
    (2.5, 0.346)
    """
    parts = [part for part in parts if part.n_samples]
    n_samples = sum(part.n_samples for part in parts)
    if n_samples == 0:
        raise ValueError("No replica had training rows to learn from. Check the split.")
    params, squares, norm2 = {}, 0.0, 0.0
    for name, value in parts[0].values.items():
        mean = buffers.empty(value.shape, np.float32)
        flat = mean.reshape(-1)
        for here, block, block_squares in _sum_blocks(parts, name):
            block /= n_samples
            flat[here] = block
            squares += block_squares
            if name in KERNELS:
                norm2 += float(block @ block)
        params[name] = mean
    spread2 = max(squares / n_samples - norm2, 0.0)
    return params, float(np.sqrt(spread2 / norm2)) if norm2 else 0.0


def _sum_blocks(
    parts: Sequence[WeightedSum], name: str
) -> Iterator[tuple[slice, NDArray[np.float64], float]]:
    """Block after block of the flat sum of a parameter, with what each adds to the squares."""
    flats = [part.values[name].reshape(-1) for part in parts]
    single = [flat for part, flat in zip(parts, flats, strict=True) if part.squares is None]
    sums = [flat for part, flat in zip(parts, flats, strict=True) if part.squares is not None]
    weights = np.array([part.n_samples for part in parts if part.squares is None], np.float64)
    known = sum(part.squares for part in parts if part.squares is not None)
    n = len(flats[0])
    exact, total = np.empty((len(single), min(n, _BLOCK))), np.empty(min(n, _BLOCK))
    for start in range(0, n, _BLOCK):
        here = slice(start, min(start + _BLOCK, n))
        rows, block = exact[:, : here.stop - start], total[: here.stop - start]
        for row, flat in zip(rows, single, strict=True):
            row[:] = flat[here]
        np.matmul(weights, rows, out=block)
        for flat in sums:
            block += flat[here]
        squares = 0.0
        if name in KERNELS:
            squares = sum(w * float(row @ row) for w, row in zip(weights, rows, strict=True))
        if name == KERNELS[-1] and start == 0:  # once: they are of all kernels
            squares += known
        yield here, block, squares


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
        for start in range(0, len(flat), _BLOCK):
            here = slice(start, start + _BLOCK)
            change = flat[here] - other[here]
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
    """Moments of all rows from those of parts.

    References
    ----------
    Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances".

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
