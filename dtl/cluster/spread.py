"""The spread of a training over workers: groups of shards, and a tree that merges their results."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future, wait

from dtl.cluster.workers import known_workers


@dataclass(frozen=True, eq=False)
class Session:
    """A client, and a token that makes the names of one piece of work's tasks unique.

    A task's name is that of its kind, its numbers and the token, ``local-steps-0-5-3f2a9c01``: the
    dashboard shows tasks of a kind together, and Dask never takes one for another's.

    Parameters
    ----------
    client : distributed.Client
    token : str
    """

    client: Client
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def submit(self, function: Callable[..., Any], *arguments: Any, name: str) -> Future:
        """Submit a task; its name must be unique in the session."""
        return self.client.submit(function, *arguments, key=f"{name}-{self.token}")

    def submit_value(self, value: Any, name: str) -> Future:
        """Send a value of the driver's as a task: unlike scattered data, it outlives a worker."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")  # it is sent once, on purpose
            return self.submit(_return, value, name=name)

    def wait(self, futures: Iterable[Future]) -> None:
        """Wait until all are computed or have failed; their results raise what went wrong."""
        with self.client.as_current():  # it need not be the default one
            wait(list(futures))

    def reduce(
        self,
        values: Sequence[Future],
        merge: Callable[[list[Any]], Any],
        *,
        name: str,
        depth: int = 2,
        root: tuple[Any, ...] | None = None,
    ) -> Future:
        """Merge futures in a tree of `depth` levels, neighbours first, on the workers.

        The shape depends on the number of values alone, and each task but the last of a level
        merges a power of two of them: what `averaging.pairwise` merges has the same bits in any
        such tree.

        Parameters
        ----------
        merge : callable
            Takes a list of values, returns a value of the same kind.
        name : str
            Unique in the session.
        root : (callable, ...), optional
            Takes the place of `merge` at the root, with the further arguments after the list.
        """
        fan_in = _fan_in(len(values), depth)
        function, *arguments = root or (merge,)
        level, values = 0, list(values)
        while len(values) > fan_in:
            values = [
                self.submit(merge, values[i : i + fan_in], name=f"{name}-{level}-{i // fan_in}")
                for i in range(0, len(values), fan_in)
            ]
            level += 1
        return self.submit(function, values, *arguments, name=f"{name}-{level}-0")


def _return(value: Any) -> Any:
    return value


def tree_inputs(n_parts: int, depth: int = 2) -> int:
    """How many values the tasks of a `Session.reduce` take in all.

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
        A power of two, as `Session.reduce` wants it; 0: the largest, up to 4, that leaves no thread
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
