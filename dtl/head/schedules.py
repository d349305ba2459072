"""What changes from step to step: the learning rate, and the number of steps between averages.

Pure functions of numbers; steps are counted from 0 over the whole training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def cosine(progress: float) -> float:
    """Half a cosine, from 1 to 0.

    References
    ----------
    Loshchilov, Hutter (2017), "SGDR: Stochastic gradient descent with warm restarts", without the
    restarts.

    Examples
    --------
    >>> [round(cosine(p), 3) for p in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * progress))


def exponential(progress: float, decay: float) -> float:
    """From 1 to `decay`, by the same factor in every step.

    Examples
    --------
    >>> [round(exponential(p, 0.01), 3) for p in (0, 0.5, 1)]
    [1.0, 0.1, 0.01]
    """
    return float(decay**progress)


def stepwise(epoch: float, first: float, steps: Sequence[tuple[float, float]]) -> float:
    """The last rate given by hand whose epoch has come; `first` before all of them.

    Examples
    --------
    >>> [stepwise(e, 0.1, [(10, 0.01), (20, 0.001)]) for e in (0, 9.9, 10, 25)]
    [0.1, 0.1, 0.01, 0.001]
    """
    rate = first
    for start, value in steps:
        if epoch >= start:
            rate = value
    return rate


def warmup(step: int, n_steps: float) -> float:
    """From near 0 to 1 along a line; 1 from step `n_steps` on.

    References
    ----------
    Goyal et al. (2017), "Accurate, large minibatch SGD", section 2.2.

    Examples
    --------
    >>> [warmup(s, 4) for s in (0, 1, 3, 4, 9)]
    [0.25, 0.5, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / n_steps) if step < n_steps else 1.0


def round_lengths(n_steps: int, first: int, last: int) -> list[int]:
    """The local steps of each round, which add up to `n_steps` exactly.

    A round that starts at the share p of all steps has ``first * (last / first) ** p`` of them,
    rounded. The very last round has what is left.

    Replicas drift apart while they are alone, and the point where their average comes to rest is
    off by more the longer they are: a fixed `first` converges fast to somewhere near the optimum,
    and fewer steps towards the end take that bias away.

    Parameters
    ----------
    n_steps : int
    first, last : int
        Steps of a round at the start and at the end of training; the same for a fixed number.

    References
    ----------
    Wang, Joshi (2019), "Adaptive communication strategies to achieve the best error-runtime
    trade-off in local-update SGD".

    Examples
    --------
    >>> round_lengths(25, 10, 10)
    [10, 10, 5]
    >>> round_lengths(25, 10, 1)
    [10, 4, 3, 2, 2, 1, 1, 1, 1]
    """
    lengths: list[int] = []
    done = 0
    while done < n_steps:
        length = round(first * (last / first) ** (done / n_steps))
        lengths.append(min(length, n_steps - done))
        done += lengths[-1]
    return lengths
