"""Events of a run, from the driver to the scheduler."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client

log = logging.getLogger(__name__)

TOPIC = "dtl-live"
"""Of the events that the scheduler's plugin reads."""

PAGE = "dtl/live"
"""Where the page lies in the dashboard."""

_SEND_EVERY_S = 0.5
_MOST_WAITING = 20_000
"""Events that wait to be sent; beyond it the scheduler does not answer, and they are dropped."""


class _Feed:
    """Events that wait to be sent to one scheduler."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._latest: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, of: str = "", **values: Any) -> None:
        event = {"kind": kind, "at": time.time(), **values}
        with self._lock:
            if of:
                self._latest[of] = event
            elif len(self._events) < _MOST_WAITING:
                self._events.append(event)

    def take(self) -> list[dict[str, Any]]:
        with self._lock:
            events = [*self._events, *self._latest.values()]
            self._events.clear()
            self._latest.clear()
        return events


_feeds: list[_Feed] = []
_others: list[str] = []


def tell(kind: str, *, of: str = "", **values: Any) -> None:
    """Tell the live pages of this process's clusters something; without any, do nothing.

    Parameters
    ----------
    kind : str
        Which event of `state.State` it is.
    of : str
        Only the last event `of` something is sent, where several come within half a second.
    values
        What msgpack takes.
    """
    for feed in _feeds:
        feed.add(kind, of, **values)


def name_other(address: str) -> None:
    """Name another address of the page that is served next, such as that of a proxy."""
    _others.append(address)


@contextmanager
def follow(client: Client) -> Iterator[None]:
    """Serve the live page of a cluster, and send it what this process tells while the block runs.

    A scheduler that cannot import dtl has no such page, which is logged.
    """
    try:
        _register(client)
    except Exception as error:  # whatever unpickling raises in the scheduler's process
        log.info(
            "There is no live page, for the scheduler cannot have it (%s: %s). Most likely this "
            "dtl is not installed where it runs.", type(error).__name__, error,
        )  # fmt: skip
        yield
        return
    for address in (find_page(client), *_others):
        log.info("live page: %s", address)
    _others.clear()
    feed, ended = _Feed(), threading.Event()

    def send() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(_SEND_EVERY_S)
            if client.status == "running" and (events := feed.take()):
                # Where the scheduler is lost, the work itself says so.
                with suppress(OSError):
                    client.log_event(TOPIC, events)

    sender = threading.Thread(target=send, name="dtl-live", daemon=True)
    _feeds.append(feed)
    feed.add("begin")
    sender.start()
    try:
        yield
    finally:
        _feeds.remove(feed)
        feed.add("end")
        ended.set()
        sender.join(5 * _SEND_EVERY_S)  # it may be asking a scheduler that is gone


def find_page(client: Client) -> str:
    """Return the address of the live page of a client's scheduler."""
    return f"{client.dashboard_link.rsplit('/', 1)[0]}/{PAGE}"


def begin_record(client: Client, token: str) -> None:
    """Begin a `dtl.cluster.timeline.record.Record` in the scheduler, in place of one before.

    Raises
    ------
    KeyError
        If the scheduler has no plugin of dtl.
    """
    client.run_on_scheduler(_begin_record, token)


def read_record(client: Client, token: str) -> dict[str, Any] | None:
    """Return what `Record.to_dict` says; None if another has begun a record since."""
    found: dict[str, Any] | None = client.run_on_scheduler(_read_record, token)
    return found


def _begin_record(token: str, dask_scheduler: Any) -> None:
    dask_scheduler.plugins[TOPIC].begin_record(token)


def _read_record(token: str, dask_scheduler: Any) -> dict[str, Any] | None:
    found: dict[str, Any] | None = dask_scheduler.plugins[TOPIC].read_record(token)
    return found


def _register(client: Client) -> None:
    from dtl.cluster.live.plugin import LivePage

    client.register_plugin(LivePage(), name=TOPIC)


def read_events(message: Any) -> list[Mapping[str, Any]]:
    """Return the events of a message of the topic; what is none is left out."""
    events = message if isinstance(message, (list, tuple)) else [message]
    return [event for event in events if isinstance(event, dict) and "kind" in event]
