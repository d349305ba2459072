"""A watch over calls that wait for the storage: one that does not return is told by name."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

__all__ = ["on_slow", "tell_slow"]

_AFTER_S = 30.0
"""Time after which a call is told for the first time; then again whenever it has doubled."""
_LOOK_EVERY_S = 2.0

_waiting: dict[object, tuple[str, float]] = {}
"""The place and the start of every call that has not returned."""
_tell: Callable[[str], None] = log.warning
_lock = threading.Lock()
_watcher: threading.Thread | None = None


@contextlib.contextmanager
def tell_slow(place: str) -> Iterator[None]:
    """Tell the name of a place that a call waits for, if the block takes long.

    A thread tells it, which all calls of the process share; calls may lie in each other.
    """
    call = object()
    _waiting[call] = (place, time.monotonic())
    if _watcher is None:
        _start()
    try:
        yield
    finally:
        del _waiting[call]


def on_slow(tell: Callable[[str], None]) -> None:
    """Send warnings about slow calls to a function instead of the log."""
    global _tell
    _tell = tell


def _start() -> None:
    global _watcher
    with _lock:
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, name="dtl-slow", daemon=True)
            _watcher.start()


def _watch() -> None:
    told: dict[object, float] = {}
    while True:
        time.sleep(_LOOK_EVERY_S)
        now, calls = time.monotonic(), dict(_waiting)
        told = {call: after for call, after in told.items() if call in calls}
        for call, (place, began) in calls.items():
            if now - began >= told.get(call, _AFTER_S):
                told[call] = 2 * (now - began)
                message = (
                    f"Waiting for {place}, {now - began:.0f} s so far. If the file is not "
                    "simply large, its disk or server may hang: repair that, or stop and leave the "
                    "file out."
                )
                with contextlib.suppress(Exception):  # the driver may be gone
                    _tell(message)
