"""Workers: which there are, what they see, and what stops them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dask.utils import format_bytes
from distributed import Client, Future, WorkerPlugin

from dtl import storage

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
"""For whether a worker that is waited for is still there, and for those that have paused."""

MORE_MEMORY = (
    "Give each worker more memory (--cluster.memory-limit on a local cluster, --yarn.worker-memory "
    "on YARN, `dask worker --memory-limit` where a scheduler runs already), or run fewer workers a "
    "machine."
)
"""The advice, whose option depends on what ``cluster.address`` is."""


def known_workers(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """What the scheduler knows of every worker, by address."""
    workers: Mapping[str, Mapping[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return workers


def run_on_each_worker(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Run a function as a task on every worker; `Client.run` would block their event loops.

    Raises
    ------
    ConnectionError
        If a worker is lost on the way; or what the function raises.
    """
    futures = {
        worker: client.submit(function, *args, workers=[worker], pure=False)
        for worker in known_workers(client)
    }
    return {worker: _result_of(client, worker, future) for worker, future in futures.items()}


def _result_of(client: Client, worker: str, future: Future) -> Any:
    # One that comes back has another address, and Dask would wait for the old one for ever.
    while True:
        try:
            return future.result(timeout=_LOOK_EVERY_S)
        except TimeoutError:
            if future.done():  # the function's own, or it came at the last moment
                return future.result()
            if worker not in known_workers(client):
                raise ConnectionError(
                    f"Worker {worker} was lost at the start. Most likely its memory did not "
                    f"suffice: see its log. {MORE_MEMORY} The same command goes on where it was."
                ) from None


@contextmanager
def warn_of_pauses(client: Client) -> Iterator[None]:
    """Warn of each worker that pauses for want of memory while the block runs.

    Dask gives it no tasks until some of its memory is free, without a word to the driver: where all
    have paused, the work would stand still and nobody know why.
    """
    ended = threading.Event()

    def look() -> None:
        told: set[str] = set()
        while not ended.wait(_LOOK_EVERY_S) and client.status == "running":
            workers = client.scheduler_info(n_workers=-1).get("workers", {})
            paused = {name for name, worker in workers.items() if worker["status"] == "paused"}
            for name in sorted(paused - told):
                log.warning(
                    "Worker %s has paused: %s of its %s are taken. It goes on by itself "
                    "when some are free; if the work stands still, stop it and start it again "
                    "otherwise: nothing that is done is lost. %s",
                    name, format_bytes(workers[name]["metrics"]["memory"]),
                    format_bytes(workers[name]["memory_limit"]), MORE_MEMORY,
                )  # fmt: skip
            told = paused

    watcher = threading.Thread(target=look, name="dtl-pauses", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(_LOOK_EVERY_S)  # it may be asking a scheduler that is gone


class _Setup(WorkerPlugin):  # type: ignore[misc]
    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        self._function, self._args = function, args

    def setup(self, worker: Any) -> None:
        self._function(*self._args)


def register_setup(client: Client, function: Callable[..., None], *args: Any) -> None:
    """Call a function once in every worker, those that join later too."""
    client.register_plugin(_Setup(function, *args), name=function.__name__)


def check_shared(client: Client, *urls: str) -> None:
    """Refuse places in the memory of one process where the workers are others.

    Raises
    ------
    ValueError
        For ``memory://`` with worker processes.
    """
    if all(address.startswith("inproc://") for address in known_workers(client)):
        return
    for url in urls:
        if url.startswith("memory://"):
            raise ValueError(
                f"{url}: memory:// is of one process only, so worker processes would lose all they "
                "write. Use a folder, or --cluster.processes false."
            )


def check_visible(client: Client, *urls: str) -> None:
    """Refuse local files and folders that workers on other machines do not have.

    Raises
    ------
    FileNotFoundError
    """
    for url in filter(storage.is_local, urls):
        for worker, there in run_on_each_worker(client, storage.exists, url).items():
            if not there:
                raise FileNotFoundError(
                    f"Worker {worker} does not see {url}. Put it where every worker reads it: "
                    "hdfs://, s3://, or a folder mounted on all machines."
                )
