"""One BLAS thread per product, so that its last bits do not depend on the machine."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import threadpoolctl

_blas_lock = Lock()
_blas_users = 0
_blas_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit every product to one thread, in all of the process's tasks at once.

    The tasks of a process already use its processors, and a product's last bits depend on the
    number of its threads. The limit is the process's: the first task sets it, the last one lifts
    it. After a change OpenBLAS takes three times as long for the next product of a thread, even if
    the number stays the same. So nothing is set where the limit is one already, as in Dask's worker
    processes. Code that runs many tasks in its own process had better enter this around them all.
    """
    global _blas_users, _blas_limit
    with _blas_lock:
        _blas_users += 1
        if _blas_users == 1 and any(lib.num_threads != 1 for lib in _blas().lib_controllers):
            with _in_control():
                _blas_limit = _blas().limit(limits=1)
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0 and _blas_limit is not None:
                with _in_control():
                    _blas_limit.restore_original_limits()
                _blas_limit = None


@contextmanager
def _in_control() -> Iterator[None]:
    """Let this thread set limits, whichever set them before.

    From threadpoolctl 3.8 on, a limit has an effect only from the thread that set the first one.
    """
    controllers = [c for c in _blas().lib_controllers if hasattr(c, "clear_controlling_thread")]
    for controller in controllers:
        controller.clear_controlling_thread(force=True)
    yield
    for controller in controllers:
        controller.clear_controlling_thread(force=True)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    # Finding the process's libraries takes milliseconds; once is enough.
    return threadpoolctl.ThreadpoolController().select(user_api="blas")
