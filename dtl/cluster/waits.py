"""Waits of the driver and its workers, told where they take long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Client

from dtl.cluster.workers import show_slow_storage

log = logging.getLogger(__name__)

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
    names = {_identify(key): _shorten(str(chunk)) for key, chunk in chunk_of.items()}
    names_of = {
        worker: [names[_identify(key)] for key in keys if _identify(key) in names]
        for worker, keys in sorted(keys_of.items())
    }
    places = [
        f"{', '.join(running[:_N_NAMED])}{', …' * (len(running) > _N_NAMED)} on {worker}"
        for worker, running in names_of.items()
        if running
    ]
    n_more = len(places) - _N_NAMED
    places[_N_NAMED:] = [f"others on {n_more} more workers"] if n_more > 0 else []
    n_idle = len(chunk_of) - sum(map(len, names_of.values()))
    if n_idle:
        places.append(f"{n_idle} that no worker has begun")
    log.warning(
        "No chunk was finished for %.0f s. Waiting for chunks: %s.", still_s, "; ".join(places)
    )


def _identify(key: Any) -> Any:
    """Return what a key keeps where Dask fuses its task with those before it: token and number."""
    return (key[0].rsplit("-", 1)[-1], *key[1:]) if isinstance(key, tuple) else key


def _shorten(name: str) -> str:
    return name if len(name) < 100 else f"{name[:100]}…"
