"""One driver an output: a second is refused, a dead one's place is taken.

A file names the driver that holds the output, and is written anew every few seconds. Whoever finds
one takes the place over at once if that driver ran on this machine and is gone, and otherwise
watches: a file that does not change for a while is a dead driver's. No clocks are compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dtl import storage
from dtl.storage.hdfs import UnreachableError

log = logging.getLogger(__name__)

_BEAT_S = 5.0
_DEAD_AFTER_S = 30.0
"""Six beats: a NameNode that pauses is no dead driver."""
_GAP_S = 0.3
"""Longer than a file that is written anew is away, where it is; see `storage.write_bytes`."""


@contextmanager
def hold(url: str) -> Iterator[None]:
    """Hold a folder for this driver until the end.

    Raises
    ------
    BlockingIOError
        If another driver holds it; the message names it.
    """
    file = storage.join(url, ".dtl-lock")
    mine: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
        "beat": 0,
    }
    _wait_for_the_dead(file, url)
    # Of two that find the place empty at the same time, the last to write has it.
    storage.write_bytes(file, json.dumps(mine).encode())
    if (found := _read(file)) is None or found["token"] != mine["token"]:
        raise BlockingIOError(_held(url, found or {}))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_BEAT_S):
            mine["beat"] += 1
            try:
                storage.write_bytes(file, json.dumps(mine).encode())
            except OSError as error:
                log.warning("The lock could not be renewed: %s", error)

    thread = threading.Thread(target=beat, name="dtl-lock", daemon=True)
    thread.start()
    try:
        yield
    except UnreachableError:
        # The storage is gone: each further try would wait for minutes. Who comes next finds a lock
        # of a driver that is dead.
        stop.set()
        raise
    except BaseException:
        _release(file, str(mine["token"]), stop, thread)
        raise
    _release(file, str(mine["token"]), stop, thread)


def _release(file: str, token: str, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()
    if (_read(file) or {}).get("token") == token:
        storage.remove(file)


def _wait_for_the_dead(file: str, url: str) -> None:
    found = _read(file)
    if found is None or _is_gone(found):
        return
    if found["host"] == socket.gethostname() and found["started"]:
        raise BlockingIOError(_held(url, found))  # alive: its process was found
    log.info("%s Waiting %.0f s to see whether it still lives.", _held(url, found), _DEAD_AFTER_S)
    until = time.monotonic() + _DEAD_AFTER_S
    while time.monotonic() < until:
        time.sleep(1)
        now = _read(file)
        if now is None:
            return
        if now != found:
            raise BlockingIOError(_held(url, now))
    log.info("It is dead; taking its place.")


def _held(url: str, found: dict[str, Any]) -> str:
    return (
        f"Another driver writes to {url}: process {found.get('pid')} on {found.get('host')}. "
        "Wait for its end, stop it, or choose another --out."
    )


def _read(file: str) -> dict[str, Any] | None:
    gaps_s = [] if storage.replaces_at_once(file) else [_GAP_S]
    while True:
        try:
            found: dict[str, Any] = json.loads(storage.read_bytes(file))
        except FileNotFoundError:
            if not gaps_s:
                return None
            time.sleep(gaps_s.pop())
        else:
            return found


def _is_gone(found: dict[str, Any]) -> bool:
    """Whether a driver of this machine has ended; one of another machine is never said to have."""
    if found["host"] != socket.gethostname():
        return False
    return bool(found["started"]) and found["started"] != _started(found["pid"])


def _started(pid: int) -> str:
    """When a process began, by the kernel's count; empty if there is none, or no /proc."""
    try:
        # The name, in brackets, may hold spaces; the start is the 20th field after it.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
