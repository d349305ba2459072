"""Errors of Dask itself, in words: a scheduler or workers that are lost, or that never started."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

from distributed import LocalCluster
from distributed.comm.core import CommClosedError
from distributed.core import RPCClosed
from distributed.scheduler import KilledWorker, NoValidWorkerError

from dtl.cluster.workers import MORE_MEMORY, SCHEDULER_LOST


def explain(error: BaseException) -> str | None:
    """Say why the cluster failed; None for an error that is not the cluster's."""
    if isinstance(error, KilledWorker):
        return f"{error}\nMost likely its memory did not suffice. {MORE_MEMORY}"
    if isinstance(error, NoValidWorkerError):
        return f"{error}\nThe workers that could do it are gone. Start them again."
    if isinstance(error, CommClosedError | RPCClosed | CancelledError):
        return SCHEDULER_LOST
    return None


def start_local(**options: Any) -> LocalCluster:
    """Start a `LocalCluster`; a `ConnectionError` says why it did not start."""
    try:
        return LocalCluster(**options)
    except (RuntimeError, TimeoutError, OSError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConnectionError(
            f"The workers on this machine did not start: {str(cause) or type(cause).__name__}. "
            f"{MORE_MEMORY}"
        ) from error
