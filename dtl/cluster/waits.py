"""Waits of the driver and its workers, told where they take long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from distributed import Client, Future

from dtl.cluster.workers import show_slow_storage

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_STILL_S = 60.0
"""Time without a finished chunk after which what is waited for is told."""

_N_NAMED = 8
"""Chunks of a worker, and workers, that a message names."""


@contextmanager
def tell_waits(client: Client, chunk_of: Mapping[Any, Any]) -> Iterator[Callable[[], None]]:
    """Yield a function to call at every finished chunk; tell what is waited for if none is.

    Files that workers wait for are named, too.

    Parameters
    ----------
    chunk_of : mapping
        Chunks by key, of those without a result; the caller updates it.
    """
    show_slow_storage(client)
    moved, ended = threading.Event(), threading.Event()

    def watch() -> None:
        began, patience_s = time.monotonic(), _STILL_S
        while not ended.is_set():
            if moved.wait(patience_s):
                moved.clear()
                # Where chunks take minutes, tell only of a wait twice as long as the last chunk's.
                patience_s = max(_STILL_S, 2 * (time.monotonic() - began))
                began = time.monotonic()
            else:
                patience_s *= 2
                _tell_chunks(client, dict(chunk_of), time.monotonic() - began)

    threading.Thread(target=watch, name="dtl-waits", daemon=True).start()
    try:
        yield moved.set
    finally:
        ended.set()
        moved.set()


def _tell_chunks(client: Client, chunk_of: Mapping[Any, Any], still_s: float) -> None:
    try:
        keys_of = client.processing()
    except Exception:  # a scheduler that is gone, which the driver is told elsewhere
        keys_of = {}
    names = {key: str(chunk) for key, chunk in chunk_of.items()}
    names_of = {
        worker: [names[key] for key in keys if key in names]
        for worker, keys in sorted(keys_of.items())
    }
    places = _list_places(names_of)
    n_idle = len(chunk_of) - sum(map(len, names_of.values()))
    if n_idle:
        places.append(f"{n_idle} that no worker has begun")
    log.warning(
        "No chunk was finished for %.0f s. Waiting for chunks: %s.", still_s, "; ".join(places)
    )


def wait_watched(client: Client, futures: Sequence[Future], wait: Callable[[float], _T]) -> _T:
    """Wait for futures; tell which tasks are waited for where none begins or ends for a minute.

    `wait` waits for them all, at most for the time in s that it is given.
    """
    before, since, patience_s = None, time.monotonic(), _STILL_S
    while True:
        try:
            return wait(_STILL_S / 2)
        except TimeoutError:
            if all(future.done() for future in futures):
                return wait(_STILL_S / 2)  # raises what a task itself has raised
        try:
            running = {worker: sorted(map(str, ks)) for worker, ks in client.processing().items()}
        except Exception:  # a scheduler that is gone, which `wait` is told
            continue
        now = time.monotonic()
        if running != before:
            before, since, patience_s = running, now, _STILL_S
        elif now - since >= patience_s:
            patience_s *= 2
            _tell_tasks(running, now - since)


def _tell_tasks(keys_of: Mapping[str, Sequence[str]], still_s: float) -> None:
    places = _list_places(keys_of)
    if not keys_of:
        places = ["workers: the scheduler has none. Start some"]
    log.warning(
        "No task was begun or finished for %.0f s. Waiting for %s.",
        still_s, "; ".join(places) or "tasks that no worker has begun",
    )  # fmt: skip


def _list_places(names_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Say of each worker, as far as a line allows, what runs on it."""
    places = [
        f"{', '.join(map(_shorten, names[:_N_NAMED]))}{', …' * (len(names) > _N_NAMED)} on {worker}"
        for worker, names in sorted(names_of.items())
        if names
    ]
    n_more = len(places) - _N_NAMED
    places[_N_NAMED:] = [f"others on {n_more} more workers"] if n_more > 0 else []
    return places


def _shorten(name: str) -> str:
    return name if len(name) < 100 else f"{name[:100]}…"
