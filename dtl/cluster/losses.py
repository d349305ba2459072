"""Errors of Dask itself, in words: a scheduler or workers that are lost, or that never started."""

from __future__ import annotations

import errno
import shutil
import tempfile
from concurrent.futures import CancelledError
from typing import Any

import dask
from distributed import LocalCluster
from distributed.comm.core import CommClosedError
from distributed.core import RPCClosed
from distributed.scheduler import KilledWorker, NoValidWorkerError

from dtl import storage
from dtl.cluster.workers import MORE_MEMORY, SCHEDULER_LOST

_LEAST_FREE_BYTES = 16 << 20


def explain(error: BaseException) -> str | None:
    """Say why the cluster failed; None for an error that is not the cluster's."""
    if isinstance(error, KilledWorker):
        return f"{error}\nMost likely it had too little memory. {MORE_MEMORY}"
    if isinstance(error, NoValidWorkerError):
        return f"{error}\nNo worker that could run it is left. Start the workers again."
    if isinstance(error, CommClosedError | RPCClosed | CancelledError):
        return SCHEDULER_LOST
    if isinstance(error, RuntimeError) and "deserialization of the task graph" in str(error):
        cause = error.__cause__
        return (
            f"The cluster has other packages than this machine ({cause or 'see its log'}). Give "
            "all its processes the same dtl and the same packages: on YARN by `pack-environment`."
        )
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
            f"{_advise()}"
        ) from error


def _advise() -> str:
    # Dask logs the cause but does not raise it.
    folder = dask.config.get("temporary-directory") or tempfile.gettempdir()
    another = "set DASK_TEMPORARY_DIRECTORY to another folder"
    try:
        n_free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"Their files are to lie in {folder}: {error}. Mend that, or {another}."
    if n_free < _LEAST_FREE_BYTES:
        return storage.describe_full(f"{folder}, where their files lie,", errno.ENOSPC, another)
    return MORE_MEMORY
