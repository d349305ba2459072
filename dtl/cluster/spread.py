"""The spread of a training over workers: groups of shards, and a tree that merges their results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distributed import Client, Future, wait

from dtl.cluster.workers import known_workers


def submit_value(client: Client, value: Any, key: str) -> Future:
    """A value of the driver's as a task: unlike scattered data, it outlives a lost worker."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # it is sent once, on purpose
        return client.submit(_identity, value, key=key)


def _identity(value: Any) -> Any:
    return value


def wait_for(client: Client, futures: Iterable[Future]) -> None:
    """Wait until all are computed, or have failed, which those say who ask for their results."""
    with client.as_current():  # it need not be the default one
        wait(list(futures))


def tree_reduce(
    client: Client,
    parts: Sequence[Future],
    combine: Callable[[list[Any]], Any],
    *,
    name: str,
    depth: int = 2,
    last: Callable[..., Any] | None = None,
    arguments: Sequence[Any] = (),
) -> Future:
    """Combine futures in `depth` levels, neighbours first; nothing passes through the driver.

    The shape depends on the number of parts alone, and each task but the last of a level combines
    a power of two of them: what `averaging.pairwise` combines has the same bits in any such tree.

    Parameters
    ----------
    combine : callable
        Takes a list of values, returns a value of the same kind.
    name : str
        Of the tasks, in the dashboard; must be unique to this reduction.
    last : callable, optional
        Takes the place of `combine` at the root, with these `arguments` after the list.
    """
    fan_in = _fan_in(len(parts), depth)
    level, parts = 0, list(parts)
    while len(parts) > 1 or level == 0:
        groups = [parts[i : i + fan_in] for i in range(0, len(parts), fan_in)]
        if last is not None and len(groups) == 1:
            return client.submit(last, *groups, *arguments, key=f"{name}-{level}-0")
        parts = [
            client.submit(combine, group, key=f"{name}-{level}-{i}")
            for i, group in enumerate(groups)
        ]
        level += 1
    return parts[0]


def tree_inputs(n_parts: int, depth: int = 2) -> int:
    """How many values the tasks of a `tree_reduce` take in all.

    Examples
    --------
    >>> tree_inputs(8, depth=2)  # two sums of four; then one of these two
    10
    """
    fan_in, total = _fan_in(n_parts, depth), n_parts
    while n_parts > 1:
        n_parts = -(-n_parts // fan_in)
        total += n_parts if n_parts > 1 else 0
    return total


def _fan_in(n: int, depth: int) -> int:
    """The smallest power of two whose tree of `depth` levels holds n leaves."""
    fan_in = 2
    while fan_in**depth < n:
        fan_in *= 2
    return fan_in


_MOST_IN_A_GROUP = 4


def group_shards(client: Client, n_parts: int, size: int = 0) -> list[range]:
    """Runs of neighbouring parts, for a task each.

    What is computed does not depend on it, only how much the tasks cost beside it.

    Parameters
    ----------
    size : int
        A power of two, as `tree_reduce` wants it; 0: the largest, up to 4, that leaves no thread
        idle which would otherwise work. Workers that join later may find nothing to do.
    """
    n_threads = sum(worker["nthreads"] for worker in known_workers(client).values())
    size = size or group_size(n_parts, n_threads or n_parts)
    return [range(i, min(i + size, n_parts)) for i in range(0, n_parts, size)]


def group_size(n_parts: int, n_threads: int) -> int:
    """The largest size of groups with which threads are done as early as with groups of one.

    Examples
    --------
    >>> [group_size(8, n_threads) for n_threads in (1, 2, 3, 4, 8)]
    [4, 4, 1, 2, 1]
    """

    def in_turn(size: int) -> int:
        """Parts that the busiest thread takes: only the last group may be smaller."""
        n_full, rest = divmod(n_parts - 1, size)
        n_turns, others = divmod(n_full, n_threads)
        return n_turns * size + (size if others else rest + 1)

    size = _MOST_IN_A_GROUP
    while in_turn(size) > in_turn(1):
        size //= 2
    return size
