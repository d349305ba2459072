"""What workers did, kept in bounded memory while they do it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dtl.cluster.timeline.merging import (
    Peak,
    Span,
    add_peak,
    add_span,
    merge_peaks,
    merge_spans,
)

MOST_WORKERS = 2000
"""Worker processes that are kept; of more, only their number, and that of those that were lost."""
MOST_SPANS = 16_000
"""Of all workers and kinds together; a worker's spans of a kind may all become one."""
MOST_PEAKS = 16_000

_FIRST_GAP_S, _FIRST_WIDTH_S = 0.01, 1.0

_TASKS = {
    "starting": "describe_network load_network list_precisions",
    "features": "fill_chunk",
    "loading": "load-shards moments merge-moments scaling count-classes merge-reference reference",
    "training": "local-steps gradient stack",
    "averaging": "average add-gradients begin stats params best unstack",
    "scoring": "score scores merge-scores validation add-validation held-out slopes described "
    "outcomes merge-outcomes novelty-scores merge-novelty-scores",
    "checking": "compare compare_pairs compare_copies score_chunk judge_chunk calibration "
    "merge-calibration calibrate thresholds merge-thresholds find-thresholds guess_chunk",
}
"""Names of tasks without their numbers, by kind."""
OTHER = "other"
KINDS = (*_TASKS, OTHER)
_KIND_OF = {name: kind for kind, names in _TASKS.items() for name in names.split()}


def find_kind(task: str) -> str:
    """Return the kind of a task by its name without numbers.

    Examples
    --------
    >>> find_kind("fill_chunk"), find_kind("lambda")
    ('features', 'other')
    """
    return _KIND_OF.get(task, OTHER)


@dataclass
class _Worker:
    address: str
    name: str
    begin: float
    limit: int
    end: float = 0.0
    fate: str = "stayed"
    again: Counter[str] = field(default_factory=Counter)
    busy: dict[str, list[Span]] = field(default_factory=dict)
    memory: list[Peak] = field(default_factory=list)


class Record:
    """Workers since some moment: their tasks, their memory, and how they came and went.

    It is bounded by `MOST_WORKERS`, `MOST_SPANS` and `MOST_PEAKS`, whatever happens for however
    long: 1.3 MB as JSON for 1,000 workers. Where there are more spans, those nearest each other are
    merged, and where there are more peaks, those of neighbouring intervals. 200,000 tasks of four
    kinds at random on two workers, in an hour, are told apart where 0.64 s lie between those of a
    kind; 120,000 on 1,000 workers, in three days, where 6 hours do, and memory every 5 hours. Tasks
    and the highest peaks stay what they were, and so does busy time, but for what tasks of a merged
    span overlap (`merging.add_span`).

    Parameters
    ----------
    began : float
        All times are given as it is, and returned as seconds since it.

    Examples
    --------
    >>> record = Record(began=100.0)
    >>> record.add_worker("tcp://a:1", "0", limit=1000, at=100.0)
    >>> record.add_task("tcp://a:1", "local-steps", 101.0, 103.5)
    >>> record.remove_worker("tcp://a:1", "lost", ["local-steps"], at=104.0)
    >>> worker = record.to_dict(at=110.0)["workers"][0]
    >>> worker["busy"], worker["again"], worker["end"]
    ({'training': [(1.0, 3.5, 2.5, 1)]}, {'training': 1}, 4.0)
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._workers: list[_Worker] = []
        self._here: dict[str, _Worker] = {}
        self._n_workers = self._n_lost = self._n_spans = self._n_peaks = 0
        self._gap, self._width = 0.0, _FIRST_WIDTH_S

    def add_worker(self, address: str, name: str, *, limit: int, at: float) -> None:
        """Note a worker process that is there, and its limit in bytes; 0 if it has none."""
        self._n_workers += 1
        if len(self._workers) < MOST_WORKERS:
            worker = self._here[address] = _Worker(address, name, self._since(at), limit)
            self._workers.append(worker)

    def remove_worker(self, address: str, fate: str, tasks: Iterable[str], at: float) -> None:
        """Note that a worker is gone.

        Parameters
        ----------
        fate : str
            ``lost`` if nobody asked it to go, else ``left``.
        tasks : iterable of str
            Names, without numbers, of tasks that others have to compute in its place.
        """
        self._n_lost += fate == "lost"
        if (worker := self._here.pop(address, None)) is not None:
            worker.end, worker.fate = self._since(at), fate
            worker.again.update(map(find_kind, tasks))

    def add_task(self, address: str, task: str, begin: float, end: float) -> None:
        """Take the time in which a worker computed a task."""
        if (worker := self._here.get(address)) is None:
            return
        begin = self._since(begin)
        spans = worker.busy.setdefault(find_kind(task), [])
        n_before = len(spans)
        add_span(spans, begin, max(self._since(end), begin), self._gap)
        self._n_spans += len(spans) - n_before
        if self._n_spans > MOST_SPANS:
            self._merge_spans()

    def add_memory(self, n_bytes: Mapping[str, int], at: float) -> None:
        """Take how many bytes each worker has in memory."""
        at = self._since(at)
        for address, n in n_bytes.items():
            if (worker := self._here.get(address)) is not None:
                n_before = len(worker.memory)
                add_peak(worker.memory, at, n, self._width)
                self._n_peaks += len(worker.memory) - n_before
        while self._n_peaks > MOST_PEAKS:
            self._width *= 2
            for worker in self._workers:
                worker.memory = merge_peaks(worker.memory, self._width)
            self._n_peaks = sum(len(worker.memory) for worker in self._workers)

    def _merge_spans(self) -> None:
        """Merge until half are left, or each worker has one of each kind: then none can follow."""
        longest = max(spans[-1][1] for worker in self._workers for spans in worker.busy.values())
        while self._n_spans > MOST_SPANS // 2 and self._gap < longest:
            self._gap = max(2 * self._gap, _FIRST_GAP_S)
            for worker in self._workers:
                worker.busy = {k: merge_spans(v, self._gap) for k, v in worker.busy.items()}
            self._n_spans = sum(len(v) for worker in self._workers for v in worker.busy.values())

    def _since(self, at: float) -> float:
        return max(round(at - self._began, 3), 0.0)

    def to_dict(self, at: float) -> dict[str, Any]:
        """Return all of it, of JSON's types, for `values.Life`; `at` is now."""
        return {
            "workers": [
                {
                    "address": w.address,
                    "name": w.name,
                    "begin": w.begin,
                    "end": self._since(at) if w.fate == "stayed" else w.end,
                    "fate": w.fate,
                    "limit": w.limit,
                    "again": dict(w.again),
                    "busy": {
                        kind: [(b, e, round(busy, 3), n) for b, e, busy, n in spans]
                        for kind, spans in w.busy.items()
                    },
                    "memory": [*w.memory],
                }
                for w in self._workers
            ],
            "n_workers": self._n_workers,
            "n_lost": self._n_lost,
        }

    def list_changes(self, most: int) -> list[tuple[float, str, str]]:
        """Return the last times at which workers came or went, what they did, and which did."""
        changes = [(self._began + w.begin, "joined", w.address) for w in self._workers]
        changes += [
            (self._began + w.end, "gone", w.address) for w in self._workers if w.fate != "stayed"
        ]
        return sorted(changes)[-most:]
