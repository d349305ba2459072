"""Clocks of workers against the driver's: Kerberos, TLS and S3 refuse whoever is minutes off."""

from __future__ import annotations

import time
from collections.abc import Mapping

from distributed import Client

from dtl.cluster.workers import run_on_each_worker
from dtl.config.errors import Fault, refuse

MOST_S = 5.0
"""Difference that is refused. Times of files, and the timeline of a report, are off by as much."""


def check_clocks(client: Client) -> float:
    """Refuse workers whose clock is seconds off; return the largest difference that is certain.

    Raises
    ------
    FaultsError
        With the check ``clocks``, a fault for each worker.
    """
    run_on_each_worker(client, time.time)  # now that connections are made, it is quick
    before = time.time()
    there = run_on_each_worker(client, time.time)
    after = time.time()
    offsets = {worker: find_offset(before, t, after) for worker, t in there.items()}
    check_offsets(offsets)
    return max(map(abs, offsets.values()), default=0.0)


def find_offset(before: float, there: float, after: float) -> float:
    """Return how far a clock that was read in between is ahead, for certain.

    Examples
    --------
    >>> find_offset(10.0, 10.5, 11.0), find_offset(10.0, 13.0, 11.0), find_offset(10.0, 9.0, 11.0)
    (0.0, 2.0, -1.0)
    """
    return max(there - after, 0.0) + min(there - before, 0.0)


def check_offsets(offsets: Mapping[str, float]) -> None:
    """Raise a `FaultsError` for workers whose clock is too many seconds ahead or behind."""
    refuse([
        Fault(
            "clocks",
            f"Its clock is {abs(offset):,.0f} s {'ahead of' if offset > 0 else 'behind'} the "
            "driver's.",
            "Set both by NTP. On the one that is wrong, type: sudo chronyc makestep", worker,
        )
        for worker, offset in sorted(offsets.items()) if abs(offset) > MOST_S
    ])  # fmt: skip
