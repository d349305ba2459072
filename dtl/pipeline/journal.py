"""The journal of a command: its stages and its workers, kept in the results while it works."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dtl.cluster.timeline.merging import Peak, add_peak, merge_peaks
from dtl.cluster.timeline.values import Life, Stage, Timeline, Worker
from dtl.pipeline.results import Results

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_WRITE_EVERY_S = (5.0, 30.0)
"""At first, and later; a killed command loses what it did since it wrote last."""
_LATER_S = 600.0

_PATIENCE_S = 10.0
"""For a scheduler or a storage that does not answer: the work does not wait for its journal."""

_MOST_PEAKS = 2000

_SILENCE = "the scheduler was not heard"


class Journal:
    """What one command does: a `Life` in the timeline of its results' folder.

    A command that has no stage, or needs no workers, for all is done, leaves nothing.

    Examples
    --------
    >>> journal = Journal()
    >>> with journal.stage("train"):
    ...     pass
    >>> [stage.name for stage in journal.life().stages]
    ['train']
    """

    def __init__(self) -> None:
        self._began, self._started = time.time(), time.monotonic()
        self._lock = threading.Lock()
        self._stages: list[Stage] = []
        self._open: set[int] = set()
        self._n_ended = 0
        self._memory: list[Peak] = []
        self._width = _LOOK_EVERY_S
        self._workers: dict[str, Any] = {}
        self._problem = self._end = ""
        self._finished: Life | None = None  # as it was written after its last stage
        self._requests: queue.SimpleQueue[threading.Event] | None = None  # to write
        self._is_too_late = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note that a stage goes on while the block runs."""
        if not self._stages and self._requests is None:  # a life begins with its first stage
            self._began, self._started = time.time(), time.monotonic()
        begin = self._now()
        with self._lock:
            self._finished, place = None, len(self._stages)
            self._stages.append(Stage(name, begin, begin))
            self._open.add(place)
        self._look()
        try:
            yield
        finally:
            self._look()
            with self._lock:
                self._open.remove(place)
                self._n_ended += 1
                self._stages[place] = Stage(name, begin, self._now())

    @contextmanager
    def keep(self, client: Client, results: Results) -> Iterator[None]:
        """Write the journal to the results now and then, and when the block ends."""
        from dtl.cluster import live

        earlier, token = (results.timeline() or Timeline()).thin(), uuid.uuid4().hex
        began = self._now()
        try:
            live.begin_record(client, token)
        except Exception as error:  # whatever unpickling raises in the scheduler's process
            self._problem = f"the scheduler cannot record them ({type(error).__name__}: {error})"

        def ask() -> None:
            try:
                found = live.read_record(client, token) if client.status == "running" else {}
            except Exception as error:  # it is lost, which the work itself is told
                log.debug("no record of the workers: %s", error)
                found = {}
            if found is None:
                self._problem = "another run has used the same scheduler"
            elif found:
                self._workers = _take_workers(found, began)

        def write() -> None:
            life, n_ended = self._finished, self._n_ended
            if life is None:
                if not self._problem:
                    ask()
                life = self.life()
            life = replace(life, end=self._end)
            if life.stages and not self._is_too_late:  # without, the folder may be no run's
                results.write_timeline(replace(earlier, lives=(*earlier.lives, life)))
                with self._lock:
                    if n_ended == len(self._stages) > 0:  # before the workers were asked
                        self._finished = life

        requests: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        last_request = threading.Event()

        def work() -> None:
            last, request, has_failed = self._now(), None, False
            while request is not last_request:
                request = _take(requests, _LOOK_EVERY_S)
                self._look()
                every_s = _WRITE_EVERY_S[self._now() > _LATER_S]
                if request is None and self._now() - last < every_s:
                    continue
                try:
                    write()
                except Exception as error:  # what the work itself meets, too, and tells
                    if not has_failed:
                        log.warning("The timeline is not kept: %s", error)
                    has_failed = True
                last = self._now()
                if request is not None:
                    request.set()

        writer = threading.Thread(target=work, name="dtl-journal", daemon=True)
        writer.start()
        requests.put(threading.Event())
        self._requests = requests
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            self._end = "interrupted" if stopped else f"failed: {type(error).__name__}"
            raise
        else:
            self._end = "finished"
        finally:
            self._requests = None
            requests.put(last_request)
            last_request.wait(_PATIENCE_S)
            self._is_too_late = True  # the folder is locked no longer

    def save(self) -> None:
        """Write what there is now, so that a report has it."""
        if self._requests is not None:
            done = threading.Event()
            self._requests.put(done)
            done.wait(_PATIENCE_S)

    def life(self) -> Life:
        """Return what is known.

        It lasts until now, or until its last stage has ended: so a report that is made again later
        shows the same.
        """
        with self._lock:
            now = self._now()
            stages = tuple(
                replace(stage, end=now) if place in self._open else stage
                for place, stage in enumerate(self._stages)
            )
            return Life(
                began=round(self._began, 3),
                seconds=now if self._open else max((stage.end for stage in stages), default=now),
                end=self._end,
                stages=stages,
                memory=tuple(self._memory),
                problem=self._problem or ("" if self._workers else _SILENCE),
                **self._workers,
            )

    def _now(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def _look(self) -> None:
        """Take how much memory this process has."""
        import psutil

        n_bytes = psutil.Process().memory_info().rss
        with self._lock:
            add_peak(self._memory, self._now(), n_bytes, self._width)
            if len(self._memory) > _MOST_PEAKS:
                self._width *= 2
                self._memory = merge_peaks(self._memory, self._width)


def _take(requests: queue.SimpleQueue[threading.Event], timeout_s: float) -> threading.Event | None:
    try:
        return requests.get(timeout=timeout_s)
    except queue.Empty:
        return None


def _take_workers(record: Mapping[str, Any], began: float) -> dict[str, Any]:
    """Return a record's part of a life, in which it began after so many seconds."""

    def later(at: float) -> float:
        return round(began + at, 3)

    workers = tuple(
        Worker(
            **known
            | {
                "begin": later(known["begin"]),
                "end": later(known["end"]),
                "busy": {
                    kind: tuple((later(b), later(e), busy, n) for b, e, busy, n in spans)
                    for kind, spans in known["busy"].items()
                },
                "memory": tuple((later(at), n_bytes) for at, n_bytes in known["memory"]),
            }
        )
        for known in record["workers"]
    )
    return {"workers": workers, "n_workers": record["n_workers"], "n_lost": record["n_lost"]}
