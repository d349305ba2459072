"""The lock of an output folder: one driver at a time, and a dead one is replaced.

A file names the driver that holds the folder, which writes it again every few seconds. A driver
that finds such a file takes over at once if the holder ran on this machine and has ended. If not,
it watches: a file that does not change for a while belongs to a dead driver. No clocks are
compared. A driver that was only suspended finds another's name there when it goes on, and ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtl import storage
from dtl.config.errors import UserError
from dtl.storage.guards import add_guard, guard, remove_guard
from dtl.storage.hdfs import UnreachableError
from dtl.storage.ledger import read_json

log = logging.getLogger(__name__)

_NAME = ".dtl-lock"
_BEAT_S = 5.0
_DEAD_AFTER_S = 30.0
"""Six beats: a NameNode that pauses must not look like a dead driver."""
_GAP_S = 0.3
"""Longer than a file is absent while it is replaced, where it is; see `storage.write_bytes`."""
_FIELDS = {"host": str, "pid": int, "started": str, "token": str, "beat": int}


class LostLockError(BlockingIOError):
    """The lock of a folder belongs to another driver now."""


class Lock:
    """The lock of a folder, held by this driver."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._file = storage.join(url, _NAME)
        self._content: dict[str, Any] = {
            "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()),
            "token": uuid.uuid4().hex, "beat": 0,
        }  # fmt: skip
        # While a beat is written, the file may be away for a moment.
        self._busy = threading.RLock()

    @property
    def token(self) -> str:
        """Token of this driver's lock, which no other driver has."""
        return str(self._content["token"])

    def take(self) -> None:
        """Write the lock, or raise `BlockingIOError` where another driver holds the folder."""
        _refuse_living(self._file, self.url)
        # Of two that find no file at the same time, the last to write holds the folder.
        self._write()
        found = _read(self._file)
        if found is None or found["token"] != self.token:
            raise BlockingIOError(_name_holder(self.url, found or {}))

    def check(self) -> None:
        """Raise `LostLockError` unless this driver still holds the folder.

        A driver that was suspended, or lost its network, may have been taken for dead meanwhile.
        """
        with self._busy:
            _check_token(self.url, self.token)

    def beat(self) -> None:
        """Show that this driver lives; raises as `check`."""
        with self._busy:
            self.check()
            self._content["beat"] += 1
            self._write()

    def release(self) -> None:
        """Remove the lock, if it is still this driver's."""
        with contextlib.suppress(LostLockError), self._busy:
            self.check()
            storage.remove(self._file)

    def _write(self) -> None:
        storage.write_bytes(self._file, json.dumps(self._content).encode())


def check_free(url: str) -> None:
    """Raise `BlockingIOError`, which names the other driver, if one holds a folder."""
    _refuse_living(storage.join(url, _NAME), url)


@contextlib.contextmanager
def hold(url: str) -> Iterator[Lock]:
    """Hold a folder for this driver until the end of the context.

    Whatever this process writes or removes in the folder meanwhile, it does so only after a look
    at the lock. If that is lost, the main thread's work ends with a `LostLockError`; so does any
    write.

    What a killed driver, or a try that failed, left half-written in the folder is removed at either
    end, but not in folders below it.

    Raises `BlockingIOError`, which names the other driver, if one holds the folder.
    """
    lock = Lock(url)
    lock.take()
    storage.remove_partials(url, below=False)
    stop = threading.Event()
    lost: list[LostLockError] = []
    to_interrupt = threading.current_thread() is threading.main_thread()

    def beat() -> None:
        while not stop.wait(_BEAT_S):
            try:
                lock.beat()
            except LostLockError as error:
                lost.append(error)
                if to_interrupt and not stop.is_set():
                    # Unlike `_thread.interrupt_main`, it ends a call that waits, too.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            except (OSError, UserError) as error:
                log.warning("The lock could not be renewed: %s", error)

    thread = threading.Thread(target=beat, name="dtl-lock", daemon=True)
    thread.start()
    reachable = True
    _held.add(url)
    try:
        with guard(url, lock.check):
            yield lock
    except UnreachableError:
        reachable = False
        raise
    except KeyboardInterrupt as interrupt:
        if lost:
            raise lost[0] from interrupt
        raise
    finally:
        _held.discard(url)
        stop.set()
        # Without storage, each try would wait for minutes; the next driver finds a dead one's lock.
        if reachable:
            thread.join()
            if not lost:
                storage.remove_partials(url, below=False)
                lock.release()


_held: set[str] = set()
"""Folders that drivers in this process hold."""


def guard_worker(url: str, token: str) -> None:
    """Refuse changes of a folder by this process, a worker, unless its driver holds it.

    A worker goes on without its driver, when that is suspended or killed; meanwhile another may
    have come and gone. An empty token ends the guard: the driver has let the folder go.
    """
    if url in _held:
        return
    if token:
        add_guard(url, functools.partial(_check_token, url, token))
    else:
        remove_guard(url)


def _check_token(url: str, token: str) -> None:
    found = _read(storage.join(url, _NAME))
    if found is not None and found["token"] == token:
        return
    holder = "nobody" if found is None else f"process {found['pid']} on {found['host']}"
    raise LostLockError(
        f"The lock of {url} was lost: it belongs to {holder} now. This driver was suspended or cut "
        "off for a while, so another took its place. Nothing more is written. If no other driver "
        "runs there, give the same command again."
    )


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
    found = _read_once(file)
    if found is None and not storage.replaces_atomically(file):
        time.sleep(_GAP_S)
        found = _read_once(file)
    return found


def _read_once(file: str) -> dict[str, Any] | None:
    advice = "Remove it if no driver writes to its folder."
    found = read_json(file, advice)
    if found is not None:
        for name, kind in _FIELDS.items():
            if not isinstance(found.get(name), kind):
                raise UserError(
                    f"{file} is damaged: {name} is no {kind.__name__} but {found.get(name)!r}. "
                    f"{advice}"
                )
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
