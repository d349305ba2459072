"""The plugin that keeps what a run does in the scheduler, and serves its page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from tornado import web
from tornado.ioloop import PeriodicCallback

from dtl.cluster.live.feed import PAGE, TOPIC, read_events
from dtl.cluster.live.state import State
from dtl.cluster.timeline.record import Record

_FILES = {
    PAGE: ("live.html", "text/html"),
    f"{PAGE}.css": ("live.css", "text/css"),
    f"{PAGE}.js": ("live.js", "text/javascript"),
}
"""Files of the folder `page`, and their types, by place."""

_LOOK_EVERY_MS = 1000
_MOST_CHANGES = 50

_TO_COMPUTE = {"waiting", "queued", "no-worker", "processing"}
"""States of tasks that will be computed, if a worker is there."""

_STEPS = ("local-steps-", "gradient-")
"""Names of tasks that train; before their token are the round, and the number of a group."""


class LivePage(SchedulerPlugin):  # type: ignore[misc]
    """Keeps what `dtl` tells the scheduler, and serves it in its dashboard."""

    # Another client of the same scheduler finds it there, with the page of the last run.
    idempotent = True

    def __init__(self) -> None:
        self.name = TOPIC

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to record, and to serve the page."""
        self._scheduler, self._state = scheduler, State()
        self._going: dict[str, tuple[bool, list[Any]]] = {}
        self.begin_record("")
        self._looking = PeriodicCallback(self._look_at_memory, _LOOK_EVERY_MS)
        self._looking.start()
        routes: list[Any] = [(f"/{PAGE}.json", _Numbers, {"page": self})]
        routes += [(f"/{place}", _File, {"file": file}) for place, file in _FILES.items()]
        scheduler.http_application.add_application(web.Application(routes))

    async def close(self) -> None:
        """Stop looking at the workers."""
        self._looking.stop()

    def begin_record(self, token: str) -> None:
        """Record from now on, for whom the token names; forget what was before."""
        self._record, self._token = Record(time.time()), token
        for worker in self._scheduler.workers:
            self.add_worker(self._scheduler, worker)

    def read_record(self, token: str) -> dict[str, Any] | None:
        """Return what the workers did since `begin_record`; None if another has begun since."""
        return self._record.to_dict(time.time()) if token == self._token else None

    def _look_at_memory(self) -> None:
        workers = self._scheduler.workers.items()
        n_bytes = {address: int(w.metrics.get("memory", 0)) for address, w in workers}
        self._record.add_memory(n_bytes, time.time())

    def log_event(self, topic: str, msg: Any) -> None:
        """Take events of a run, and of the scheduler that a worker goes."""
        if topic == TOPIC:
            for event in read_events(msg):
                self._state.add(event)
        elif topic == "all" and isinstance(msg, dict) and msg.get("action") == "remove-worker":
            # `remove_worker` is told neither why, nor what it was to compute.
            keys = [*msg.get("processing-tasks", ()), *msg.get("lost-computed-tasks", ())]
            self._going[str(msg["worker"])] = (bool(msg.get("expected")), keys)

    def transition(
        self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any
    ) -> None:
        """Take the time of a task that has ended."""
        if finish not in ("memory", "erred") or start != "processing":
            return
        times = [(s["start"], s["stop"]) for s in kwargs.get("startstops") or ()
                 if s["action"] == "compute"]  # fmt: skip
        if not times:
            return
        worker = str(kwargs.get("worker", ""))
        for name in self._name_tasks([key]):
            for begin, end in times:
                self._record.add_task(worker, name, begin, end)
        if finish == "memory" and isinstance(key, str) and key.startswith(_STEPS):
            *_, round_, group, _token = key.split("-")
            if group.isdecimal():
                self._state.add_step(round_, int(group), worker, times[0][0], times[-1][1])

    def _name_tasks(self, keys: Iterable[Any]) -> list[str]:
        """Return the names without numbers of tasks that the scheduler knows."""
        tasks = self._scheduler.tasks
        return [tasks[key].prefix.name for key in keys if key in tasks]

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Note a worker that joins."""
        known = scheduler.workers[worker]
        limit = int(known.memory_limit or 0)
        self._record.add_worker(worker, str(known.name), limit=limit, at=time.time())

    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any
    ) -> None:
        """Note a worker that has gone, and which of its tasks are to be computed again."""
        expected, keys = self._going.pop(worker, (False, []))
        tasks = scheduler.tasks
        again = [key for key in keys if key in tasks and tasks[key].state in _TO_COMPUTE]
        fate = "left" if expected else "lost"
        self._record.remove_worker(worker, fate, self._name_tasks(again), time.time())

    def to_dict(self) -> dict[str, Any]:
        """Return the state, the workers, and what they do just now."""
        workers = []
        for address, worker in self._scheduler.workers.items():
            running = [(task.prefix.name, seconds) for task, seconds in worker.executing.items()]
            workers.append({
                "address": address,
                "status": worker.status.name,
                "memory": int(worker.metrics.get("memory", 0)),
                "limit": int(worker.memory_limit or 0),
                "cpu": float(worker.metrics.get("cpu", 0.0)),
                "waiting": len(worker.processing),
                "running": sorted(running, key=lambda task: -task[1])[:3],
            })  # fmt: skip
        changes = self._record.list_changes(_MOST_CHANGES)
        shown = {"now": time.time(), **self._state.to_dict(), "changes": changes}
        return {**shown, "workers": workers}


class _Page(web.RequestHandler):
    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header(
            "Content-Security-Policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )


class _File(_Page):
    def initialize(self, file: tuple[str, str]) -> None:
        self._name, self._type = file

    def get(self) -> None:
        """Return a file of the page."""
        self.set_header("Content-Type", f"{self._type}; charset=utf-8")
        self.write((Path(__file__).with_name("page") / self._name).read_bytes())


class _Numbers(_Page):
    def initialize(self, page: LivePage) -> None:
        self._page = page

    def get(self) -> None:
        """Return what the page shows."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.write(json.dumps(self._page.to_dict(), allow_nan=False))
