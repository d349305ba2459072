"""The lock of an output folder: one driver at a time, and a dead one is replaced.

A file names the driver that holds the folder, which writes it again every few seconds. A driver
that finds such a file takes over at once if the holder ran on this machine and has ended. If not,
it watches: a file that does not change for a while belongs to a dead driver. No clocks are
compared.
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
from dtl.storage.ledger import read_json

log = logging.getLogger(__name__)

_BEAT_S = 5.0
_DEAD_AFTER_S = 30.0
"""Six beats: a NameNode that pauses must not look like a dead driver."""
_GAP_S = 0.3
"""Longer than a file is absent while it is replaced, where it is; see `storage.write_bytes`."""


@contextmanager
def hold(url: str) -> Iterator[None]:
    """Hold a folder for this driver until the end of the context.

    Raises `BlockingIOError`, which names the other driver, if one holds it.
    """
    file = storage.join(url, ".dtl-lock")
    mine: dict[str, Any] = {
        "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()),
        "token": uuid.uuid4().hex, "beat": 0,
    }  # fmt: skip
    _refuse_living(file, url)
    # Of two that find no file at the same time, the last to write holds the folder.
    storage.write_bytes(file, json.dumps(mine).encode())
    if (found := _read(file)) is None or found["token"] != mine["token"]:
        raise BlockingIOError(_name_holder(url, found or {}))
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
    reachable = True
    try:
        yield
    except UnreachableError:
        reachable = False
        raise
    finally:
        stop.set()
        # Without storage, each try would wait for minutes; the next driver finds a dead one's lock.
        if reachable:
            thread.join()
            if (_read(file) or {}).get("token") == mine["token"]:
                storage.remove(file)


def _refuse_living(file: str, url: str) -> None:
    found = _read(file)
    if found is None or _is_gone(found):
        return
    if found["host"] == socket.gethostname() and found["started"]:
        raise BlockingIOError(_name_holder(url, found))  # alive: its process was found
    holder = _name_holder(url, found)
    log.info("%s Waiting %.0f s to see whether it still lives.", holder, _DEAD_AFTER_S)
    until = time.monotonic() + _DEAD_AFTER_S
    while time.monotonic() < until:
        time.sleep(1)
        if (now := _read(file)) is None:
            return
        if now != found:
            raise BlockingIOError(_name_holder(url, now))
    log.info("That driver is dead; taking its place.")


def _name_holder(url: str, found: dict[str, Any]) -> str:
    return (
        f"Another driver writes to {url}: process {found.get('pid')} on {found.get('host')}. "
        "Wait for its end, stop it, or choose another `out`."
    )


def _read(file: str) -> dict[str, Any] | None:
    advice = "Remove it if no driver writes to its folder."
    found = read_json(file, advice)
    if found is None and not storage.replaces_atomically(file):
        time.sleep(_GAP_S)
        found = read_json(file, advice)
    return found


def _is_gone(found: dict[str, Any]) -> bool:
    """Return whether a driver of this machine has ended; False for any other machine's."""
    here = found["host"] == socket.gethostname()
    return here and bool(found["started"]) and found["started"] != _started(found["pid"])


def _started(pid: int) -> str:
    """Return the kernel's start time of a process; empty if there is none, or no /proc."""
    try:
        # The name, in brackets, may hold spaces; the start time is the 20th field after it.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
