"""The spread of a training over workers: groups of shards, and a tree that merges their results."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future, wait

from dtl.cluster.waits import wait_watched
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
        """Wait until all are computed or have failed; a failed one raises when it is read.

        Where no task of the cluster begins or ends for a minute, a warning names those that run.
        """
        futures = list(futures)
        with self.client.as_current():  # it need not be the default one
            wait_watched(self.client, futures, lambda timeout: wait(futures, timeout=timeout))

    def result(self, future: Future) -> Any:
        """Return a task's result, or raise its error; warns as `wait` does."""
        return wait_watched(self.client, [future], lambda timeout: future.result(timeout=timeout))

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
        fan_in = _choose_fan_in(len(values), depth)
        function, *arguments = root or (merge,)
        level, values = 0, list(values)
        while len(values) > fan_in:
            values = [
                self.submit(merge, values[i : i + fan_in], name=f"{name}-{level}-{i // fan_in}")
                for i in range(0, len(values), fan_in)
            ]
            level += 1
        return self.submit(function, values, *arguments, name=f"{name}-{level}-0")

    def map_reduce(
        self,
        function: Callable[..., Any],
        n_values: int,
        *arguments: Any,
        merge: Callable[[list[Any]], Any],
        name: str,
    ) -> Future:
        """Compute ``function(i, *arguments)`` for each i below `n_values`, and merge the results.

        Results are merged as `reduce` does. Of more than 8192 values a task computes and merges all
        that one task of the tree's first level takes: the scheduler keeps some kilobytes per task.
        The result has the same bits either way.
        """
        fan_in = _choose_fan_in(n_values, 2)
        if n_values <= _MOST_TASKS:
            values = self._map(function, range(n_values), *arguments, name=name)
            return self.reduce(values, merge, name=f"merge-{name}")
        runs = [range(i, min(i + fan_in, n_values)) for i in range(0, n_values, fan_in)]
        values = self._map(_merge_run, runs, function, merge, *arguments, name=name)
        return self.submit(merge, values, name=f"merge-{name}")

    def _map(
        self, function: Callable[..., Any], values: Sequence[Any], *arguments: Any, name: str
    ) -> list[Future]:
        # In one graph: a call of `submit` for each costs the driver half as much again.
        repeated = ([argument] * len(values) for argument in arguments)
        keys = [f"{name}-{k}-{self.token}" for k in range(len(values))]
        return list(self.client.map(function, values, *repeated, key=keys))


_MOST_TASKS = 8192
"""Tasks of `Session.map_reduce`, where each has one value."""


def _merge_run(
    run: range, function: Callable[..., Any], merge: Callable[[list[Any]], Any], *arguments: Any
) -> Any:
    return merge([function(i, *arguments) for i in run])


def _return(value: Any) -> Any:
    return value


def count_tree_inputs(n_values: int, depth: int = 2) -> int:
    """Count the values that all tasks of a `Session.reduce` take.

    Examples
    --------
    >>> count_tree_inputs(8, depth=2)  # two sums of four; then one of these two
    10
    """
    fan_in, total = _choose_fan_in(n_values, depth), 0
    while n_values > fan_in:
        total += n_values
        n_values = -(-n_values // fan_in)
    return total + n_values


def _choose_fan_in(n_values: int, depth: int) -> int:
    """Return the smallest power of two with which a tree of `depth` levels holds all values."""
    fan_in = 2
    while fan_in**depth < n_values:
        fan_in *= 2
    return fan_in


_MOST_IN_A_GROUP = 4


def group_shards(client: Client, n_shards: int, size: int = 0) -> list[range]:
    """Group neighbouring shards, for a task each.

    Groups save the cost of tasks; what is computed does not depend on them.

    Parameters
    ----------
    size : int
        A power of two, as `Session.reduce` wants it; 0: the largest, up to 4, that keeps as many
        threads busy as groups of one. Workers that join later may get no group.
    """
    n_threads = sum(worker["nthreads"] for worker in known_workers(client).values())
    size = size or choose_group_size(n_shards, n_threads or n_shards)
    return [range(i, min(i + size, n_shards)) for i in range(0, n_shards, size)]


def choose_group_size(n_shards: int, n_threads: int) -> int:
    """Return the largest size of groups with which threads end as early as with groups of one.

    Examples
    --------
    >>> [choose_group_size(8, n_threads) for n_threads in (1, 2, 3, 4, 8)]
    [4, 4, 1, 2, 1]
    """

    def count_turns(size: int) -> int:
        """Count the shards of the busiest thread; only the last group may be smaller."""
        n_full, rest = divmod(n_shards - 1, size)
        n_turns, others = divmod(n_full, n_threads)
        return n_turns * size + (size if others else rest + 1)

    size = _MOST_IN_A_GROUP
    while count_turns(size) > count_turns(1):
        size //= 2
    return size
