"""Figures of a timeline that a reader is told in words."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dtl.cluster.timeline.record import KINDS
from dtl.cluster.timeline.values import Life, Timeline, Worker


@dataclass(frozen=True)
class Loss:
    """A worker that was lost; `at` is seconds of work, `again` tasks by kind."""

    label: str
    at: float
    again: dict[str, int]


@dataclass(frozen=True)
class Restart:
    """A driver that ended, and how many seconds later the next began; `at` is seconds of work."""

    end: str
    at: float
    gap: float


@dataclass(frozen=True)
class Figures:
    """What a timeline amounts to.

    Parameters
    ----------
    seconds : float
        In which a driver worked, all lives together.
    n_workers : int
        The most worker processes at the same time.
    shares : dict of str to float
        Share of the workers' time, by kind of task: time in which a worker had one at least.
    losses : tuple of Loss
    n_lost : int
        Of all workers, also of those that are not kept.
    restarts : tuple of Restart
    most_bytes, most_of, limit : int, str, int
        The highest memory of a worker, which one that is, and what it may use; 0 if unknown.
    """

    seconds: float
    n_workers: int
    shares: dict[str, float]
    losses: tuple[Loss, ...]
    n_lost: int
    restarts: tuple[Restart, ...]
    most_bytes: int
    most_of: str
    limit: int


def list_lives(timeline: Timeline) -> Iterator[tuple[float, Life]]:
    """Yield each life, and the seconds of work of those before it."""
    before = 0.0
    for life in timeline.lives:
        yield before, life
        before += life.seconds


def find_hosts(timeline: Timeline) -> set[str]:
    """Find the machines that the workers ran on."""
    workers = (worker for life in timeline.lives for worker in life.workers)
    return {_split_address(worker.address)[0] for worker in workers}


def label(worker: Worker, *, with_host: bool) -> str:
    """Name a worker so that one that was started again in its place has the same name."""
    host, port = _split_address(worker.address)
    if worker.name and worker.name != worker.address:
        return f"{host}, {worker.name}" if with_host else f"worker {worker.name}"
    return f"{host}:{port}" if with_host else f"worker :{port}"


def _split_address(address: str) -> tuple[str, str]:
    """Return a worker's host and port.

    Examples
    --------
    >>> _split_address("tls://10.0.0.1:40123"), _split_address("inproc://10.0.0.1/77/4")
    (('10.0.0.1', '40123'), ('10.0.0.1', '77/4'))
    """
    place = address.rpartition("://")[2]
    host, _, port = place.partition("/") if "/" in place else place.rpartition(":")
    return host, port


def count(timeline: Timeline) -> Figures:
    """Count what a reader is told."""
    with_host = len(find_hosts(timeline)) > 1
    n_workers, present, busy = 0, 0.0, defaultdict[str, float](float)
    losses: list[Loss] = []
    restarts: list[Restart] = []
    most_bytes, most_of, limit = 0, "", 0
    for before, life in list_lives(timeline):
        n_workers = max(n_workers, _count_most(life))
        for worker in life.workers:
            name = label(worker, with_host=with_host)
            present += max(min(worker.end, life.seconds) - worker.begin, 0.0)
            for kind, spans in worker.busy.items():
                busy[kind] += sum(span[2] for span in spans)
            if worker.fate == "lost":
                losses.append(Loss(name, before + worker.end, dict(worker.again)))
            highest = max((n_bytes for _, n_bytes in worker.memory), default=0)
            if highest > most_bytes:
                most_bytes, most_of, limit = highest, name, worker.limit
    for (before, life), (_, after) in itertools.pairwise(list_lives(timeline)):
        gap = max(after.began - life.began - life.seconds, 0.0)
        restarts.append(Restart(life.end, before + life.seconds, gap))
    return Figures(
        seconds=sum(life.seconds for life in timeline.lives),
        n_workers=n_workers,
        shares={kind: busy[kind] / present for kind in KINDS if busy[kind] and present},
        losses=tuple(sorted(losses, key=lambda loss: loss.at)),
        n_lost=sum(life.n_lost for life in timeline.lives),
        restarts=tuple(restarts),
        most_bytes=most_bytes,
        most_of=most_of,
        limit=limit,
    )


def _count_most(life: Life) -> int:
    """Count the most workers at the same time."""
    changes = [(worker.begin, 1) for worker in life.workers]
    changes += [(worker.end, -1) for worker in life.workers]
    most = here = 0
    for _, n in sorted(changes):  # who goes at a moment goes before who comes
        here += n
        most = max(most, here)
    return most
