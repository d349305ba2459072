"""What a file keeps of who did what when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from dtl.cluster.timeline.merging import Peak, Span, merge_peaks, merge_spans
from dtl.cluster.timeline.record import MOST_PEAKS, MOST_SPANS, MOST_WORKERS
from dtl.config.plain import from_plain

_MOST_LIVES = 50
"""Lives that are kept; the oldest give way."""

_MOST_STAGES = 200


@dataclass(frozen=True)
class Worker:
    """One worker process; its times are seconds since its life began.

    Parameters
    ----------
    fate : str
        ``stayed`` until `end`, ``left`` as it was asked to, or was ``lost``.
    limit : int
        Bytes of memory that it may use; 0 if it has no limit.
    again : dict of str to int
        Tasks that others computed in its place after it was lost, by kind.
    busy : dict of str to tuple of Span
        By kind of task, in order.
    memory : tuple of Peak
    """

    address: str
    name: str
    begin: float
    end: float
    fate: str
    limit: int
    again: dict[str, int]
    busy: dict[str, tuple[Span, ...]]
    memory: tuple[Peak, ...]


@dataclass(frozen=True)
class Stage:
    """One stage of the driver, in seconds since its life began."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Life:
    """One process that worked on a folder, with its workers.

    Parameters
    ----------
    began : float
        Seconds since 1970.
    seconds : float
        How long it is known to have worked.
    end : str
        How it ended; empty if it did not say, as one that was killed.
    stages : tuple of Stage
    memory : tuple of Peak
        Of the driver.
    n_workers, n_lost : int
        Worker processes, and those that were lost; more than `workers` if these were too many.
    problem : str
        Why the workers' part is missing; empty if it is not.
    """

    began: float
    seconds: float
    end: str
    stages: tuple[Stage, ...]
    memory: tuple[Peak, ...] = ()
    workers: tuple[Worker, ...] = ()
    n_workers: int = 0
    n_lost: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Timeline:
    """The lives of a folder, the oldest first; `n_forgotten` older ones are not kept."""

    lives: tuple[Life, ...] = ()
    n_forgotten: int = 0

    def to_json(self) -> bytes:
        """Return the timeline as JSON."""
        return json.dumps(self, default=vars, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Timeline:
        """Read what `to_json` wrote; a `ValueError` says where it is other."""
        found: Timeline = from_plain(cls, json.loads(data, parse_constant=_refuse))
        return found

    def thin(self) -> Timeline:
        """Return what is kept of it beside a life that begins.

        At most 50 lives, and no more than one `Record` may have, so that the file stays below
        2.6 MB: the oldest lives give way, spans near each other are merged, and so are peaks.
        """
        kept: list[Life] = []
        for life in reversed(self.lives[-_MOST_LIVES:]):
            n_workers = sum(len(known.workers) for known in (*kept, life))
            if kept and n_workers > MOST_WORKERS // 2:
                break
            kept.insert(0, replace(life, stages=life.stages[-_MOST_STAGES:]))
        n_forgotten = self.n_forgotten + len(self.lives) - len(kept)
        gap = width = 1.0
        longest = max((life.seconds for life in kept), default=0.0)
        while sum(map(_count_spans, kept)) > MOST_SPANS // 2 and gap < 2 * longest:
            kept = [_merge(life, gap, 0) for life in kept]
            gap *= 2
        while sum(map(_count_peaks, kept)) > MOST_PEAKS // 2 and width < 2 * longest:
            kept = [_merge(life, 0, width) for life in kept]
            width *= 2
        return Timeline(tuple(kept), n_forgotten)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no time and no size")


def _count_spans(life: Life) -> int:
    return sum(len(spans) for worker in life.workers for spans in worker.busy.values())


def _count_peaks(life: Life) -> int:
    return len(life.memory) + sum(len(worker.memory) for worker in life.workers)


def _merge(life: Life, gap: float, width: float) -> Life:
    def thin(peaks: Sequence[Peak]) -> tuple[Peak, ...]:
        return tuple(merge_peaks([*peaks], width) if width else peaks)

    workers = tuple(
        replace(
            worker,
            busy={kind: tuple(merge_spans([*spans], gap)) for kind, spans in worker.busy.items()},
            memory=thin(worker.memory),
        )
        for worker in life.workers
    )
    return replace(life, workers=workers, memory=thin(life.memory))
