"""The plugin that keeps the state of a run in the scheduler, and serves its page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from tornado import web

from dtl.cluster.live.feed import PAGE, TOPIC, read_events
from dtl.cluster.live.state import State

_FILES = {
    PAGE: ("live.html", "text/html"),
    f"{PAGE}.css": ("live.css", "text/css"),
    f"{PAGE}.js": ("live.js", "text/javascript"),
}
"""Files of the folder `page`, and their types, by place."""

_STEPS = ("local-steps-", "gradient-")
"""Names of tasks that train; before their token is the number of a group of shards."""


class LivePage(SchedulerPlugin):  # type: ignore[misc]
    """Keeps what `dtl` tells the scheduler, and serves it in its dashboard."""

    # Another client of the same scheduler finds it there, with the page of the last run.
    idempotent = True

    def __init__(self) -> None:
        self.name = TOPIC

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to serve the page."""
        self._scheduler, self._state = scheduler, State()
        routes: list[Any] = [(f"/{PAGE}.json", _Numbers, {"page": self})]
        routes += [(f"/{place}", _File, {"file": file}) for place, file in _FILES.items()]
        scheduler.http_application.add_application(web.Application(routes))

    def log_event(self, topic: str, msg: Any) -> None:
        """Take events of a run."""
        if topic == TOPIC:
            for event in read_events(msg):
                self._state.add(event)

    def transition(
        self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any
    ) -> None:
        """Take the time of a task that trained."""
        if finish != "memory" or not isinstance(key, str) or not key.startswith(_STEPS):
            return
        *_, group, _token = key.split("-")
        seconds = [s["stop"] - s["start"] for s in kwargs.get("startstops") or ()
                   if s["action"] == "compute"]  # fmt: skip
        if group.isdecimal() and seconds:
            self._state.add_step(int(group), str(kwargs.get("worker", "")), sum(seconds))

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Note a worker that joins."""
        self._state.add_change("joined", worker)

    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any
    ) -> None:
        """Note a worker that has gone."""
        self._state.add_change("gone", worker)

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
        return {"now": time.time(), **self._state.to_dict(), "workers": workers}


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
