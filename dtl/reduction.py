"""Reductions of futures over the workers, as trees of a fixed shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client, Future


def tree_reduce(
    client: Client,
    parts: Sequence[Future],
    combine: Callable[[list[Any]], Any],
    *,
    name: str,
    depth: int = 2,
) -> Future:
    """Combine futures in `depth` levels, neighbours first; nothing passes through the driver.

    The shape depends on the number of parts alone, so floating-point sums have the same bits
    wherever the tasks run.

    Parameters
    ----------
    combine : callable
        Takes a list of values, returns a value of the same kind.
    name : str
        Of the tasks, in the dashboard; must be unique to this reduction.
    """
    fan_in = max(2, _root(len(parts), depth))
    level, parts = 0, list(parts)
    while len(parts) > 1 or level == 0:
        groups = [parts[i : i + fan_in] for i in range(0, len(parts), fan_in)]
        parts = [
            client.submit(combine, group, key=f"{name}-{level}-{i}")
            for i, group in enumerate(groups)
        ]
        level += 1
    return parts[0]


def _root(n: int, depth: int) -> int:
    """The smallest whole fan-in whose tree of `depth` levels holds n leaves."""
    fan_in = 1
    while fan_in**depth < n:
        fan_in += 1
    return fan_in
