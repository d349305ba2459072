"""Limits on the memory that the threads of a worker hold at the same time."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterator

_SHARE = 4
"""Workers decode in this part of their memory, a quarter: the network has the rest."""


class Budget:
    """Bytes that threads hold at the same time; the first to come is the first to be served.

    Parameters
    ----------
    total_bytes : int
        A larger request waits for the whole budget.

    Examples
    --------
    >>> budget = Budget(1000)
    >>> with budget.hold(300), budget.hold(700):
    ...     pass
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = self._free = total_bytes
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def resize(self, total_bytes: int) -> None:
        """Change the total."""
        with self._changed:
            self._free += total_bytes - self._total
            self._total = total_bytes
            self._changed.notify()

    @contextlib.contextmanager
    def hold(self, n_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them for the context."""
        # Small ones do not overtake a large one, or it would wait for ever.
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= min(n_bytes, self._total))
            held = min(n_bytes, self._total)
            self._free -= held
        try:
            yield
        finally:
            with self._changed:
                self._free += held
                self._changed.notify()

    def hold_all(self) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody holds any bytes, and be alone for the context."""
        return self.hold(_UNLIMITED_BYTES)


_UNLIMITED_BYTES = 1 << 62

DECODING = Budget(1 << 30)
"""Memory of this process for images that are being decoded."""

READING = Budget(1 << 29)
"""Memory of this process for large files that wait to be decoded.

A holder of it may wait for `DECODING`; a holder of `DECODING` must not wait for it.
"""

UNLIMITED = Budget(_UNLIMITED_BYTES)
"""Budget for code that holds all of `DECODING` already."""


def fit_to_worker() -> None:
    """Make `DECODING` a quarter of the memory of the worker that runs this task, if it has a limit.

    Otherwise nothing changes.
    """
    from distributed import get_worker  # workers have it; a driver may do without

    with contextlib.suppress(ValueError):  # no task of Dask's
        if limit := get_worker().memory_manager.memory_limit:
            DECODING.resize(limit // _SHARE)
            READING.resize(limit // (2 * _SHARE))


def has_memory(n_bytes: int) -> bool:
    """Return whether the system would allocate so many bytes now."""
    try:
        mmap.mmap(-1, max(n_bytes, mmap.PAGESIZE)).close()
    except (OSError, ValueError, MemoryError, OverflowError):
        return False
    return True


def return_freed() -> None:
    """Return freed memory to the system; glibc keeps for each thread what the thread has freed."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
