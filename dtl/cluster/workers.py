"""Workers: which there are, what they can reach, and why they stop."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dask.utils import format_bytes
from distributed import Client, Future, WorkerPlugin
from distributed.comm import CommClosedError

from dtl import storage
from dtl.config.errors import DRIVER, Fault, UserError, refuse

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
"""Time between two looks for workers that are lost or have paused."""

_STILL_S = 60.0
"""Time without an answer of a worker after which that is told."""
_STILL_LONG_S = 600.0
"""Time without an answer of a worker after which that is told; of one that works for long."""

_SLOW_TOPIC = "dtl-slow-storage"
"""Topic of the events by which workers tell the driver of slow storage."""

_ASK_AGAIN_S = 0.01

SETTINGS = {
    # A worker that reads ahead is not stuck: no warning about its event loop.
    "distributed.admin.tick.limit": "60s",
    # Dask looks at every thread's stack 100 times a second, and 50 times at its event loop, for
    # pages of its dashboard: a thirtieth of a processor, 100 MB, and pauses of the network.
    "distributed.worker.profile.interval": "250ms",
    "distributed.admin.tick.interval": "500ms",
}
"""Dask's settings for workers that we start."""

SCHEDULER_LOST = (
    "The Dask scheduler, or the connection to it, was lost. If it still runs, see its log; if not, "
    "start it again, and its workers."
)

MORE_MEMORY = (
    "Give each worker more memory (`cluster.memory_limit` on a local cluster, `yarn.worker_memory` "
    "on YARN, `dask worker --memory-limit` where a scheduler runs already), or run fewer workers "
    "per machine."
)


def known_workers(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """Return what the scheduler knows of every worker, by address.

    A `ConnectionError` says that the scheduler is lost.
    """
    while True:
        info = client.scheduler_info(n_workers=-1)
        if client.status == "closed" or not info:
            raise ConnectionError(SCHEDULER_LOST)
        # The client renews its copy in the background, without workers: that one may come between.
        # Without a scheduler it stays as it is, until the client gives up.
        if info["workers"] or not info["n_workers"]:
            workers: Mapping[str, Mapping[str, Any]] = info["workers"]
            return workers
        time.sleep(_ASK_AGAIN_S)


def run_on_each_worker(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Run a function as a task on every worker; return what it returns, by address.

    (`Client.run` would block their event loops.)

    Raises
    ------
    ConnectionError
        If a worker is lost meanwhile. Errors of the function pass through.
    """
    futures = _submit_to(client, function, dict.fromkeys(known_workers(client), args))
    return {worker: _wait_for_result(client, worker, f, _STILL_S) for worker, f in futures.items()}


def try_on_each_worker(
    client: Client, function: Callable[..., Any], args_of: Mapping[str, tuple[Any, ...]]
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Run a function on workers, each with arguments of its own.

    Returns
    -------
    results : dict of str to object
        By address, where the function returned.
    errors : dict of str to Exception
        By address, where it raised what a person or the storage can mend.
    """
    futures = _submit_to(client, function, args_of)
    results: dict[str, Any] = {}
    errors: dict[str, Exception] = {}
    for worker, future in futures.items():
        try:
            results[worker] = _wait_for_result(client, worker, future, _STILL_S)
        except (UserError, OSError, ImportError, MemoryError) as error:
            errors[worker] = error
    return results, errors


def _submit_to(
    client: Client, function: Callable[..., Any], args_of: Mapping[str, tuple[Any, ...]]
) -> dict[str, Future]:
    return {
        worker: client.submit(function, *args, workers=[worker], pure=False)
        for worker, args in args_of.items()
    }


def run_on_one_worker(client: Client, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function that takes minutes as a task on one worker; as `run_on_each_worker`."""
    worker = min(known_workers(client))
    future = client.submit(function, *args, workers=[worker], pure=False)
    return _wait_for_result(client, worker, future, _STILL_LONG_S)


def _wait_for_result(client: Client, worker: str, future: Future, patience_s: float) -> Any:
    # A worker that restarts has another address, and Dask would wait for the old one for ever.
    began = time.monotonic()
    while True:
        try:
            return future.result(timeout=_LOOK_EVERY_S)
        except TimeoutError:
            if future.done():  # the function itself timed out, or ended at the last moment
                return future.result()
            if worker not in known_workers(client):
                raise ConnectionError(
                    f"Worker {worker} was lost at the start. Most likely its memory did not "
                    f"suffice: see its log. {MORE_MEMORY} The same command resumes the work."
                ) from None
            if (still_s := time.monotonic() - began) >= patience_s:
                patience_s *= 2
                log.warning("Waiting for an answer of worker %s for %.0f s.", worker, still_s)


@contextmanager
def warn_of_pauses(client: Client) -> Iterator[None]:
    """Log a warning for each worker that pauses for lack of memory while the block runs.

    Dask gives a paused worker no tasks, and does not tell the driver: if all pause, the work would
    stand still without a reason.
    """
    ended = threading.Event()

    def watch() -> None:
        warned: set[str] = set()
        while not ended.wait(_LOOK_EVERY_S) and client.status == "running":
            try:
                workers = known_workers(client)
            except ConnectionError:  # the client has just been closed
                return
            paused = {name for name, worker in workers.items() if worker["status"] == "paused"}
            for name in sorted(paused - warned):
                log.warning(
                    "Worker %s has paused: it uses %s of its %s. It resumes by itself once memory "
                    "is free. If the work stands still, stop it and start it again with more: "
                    "what is done stays done. %s",
                    name, format_bytes(workers[name]["metrics"]["memory"]),
                    format_bytes(workers[name]["memory_limit"]), MORE_MEMORY,
                )  # fmt: skip
            warned = paused

    watcher = threading.Thread(target=watch, name="dtl-pauses", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(_LOOK_EVERY_S)  # it may be asking a scheduler that is gone


_PAUSES_S = (0.0, 0.1, 0.5, 2.0)
"""Between attempts to reach all workers."""


class _Setup(WorkerPlugin):  # type: ignore[misc]
    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        self._function, self._args = function, args

    def setup(self, worker: Any) -> None:
        self._function(*self._args)


def register_setup(client: Client, function: Callable[..., None], *args: Any) -> None:
    """Call a function once in every worker process, also in those that join later."""
    _register(client, _Setup(function, *args), function.__name__)


def _register(client: Client, plugin: WorkerPlugin, name: str) -> None:
    """Register a plugin on all workers, in place of one of this name."""
    for pause_s in _PAUSES_S:
        try:
            client.register_plugin(plugin, name=name)
        except CommClosedError:
            # Dask keeps connections for the next request, and one may have ended meanwhile; or a
            # worker is lost just now, which the scheduler has yet to notice.
            time.sleep(pause_s)
        else:
            return
    client.register_plugin(plugin, name=name)


class _SlowStorage(WorkerPlugin):  # type: ignore[misc]
    def setup(self, worker: Any) -> None:
        if not worker.address.startswith("inproc://"):  # whose log is the driver's
            storage.on_slow(lambda message: worker.log_event(_SLOW_TOPIC, message))


def show_slow_storage(client: Client) -> None:
    """Log in this process which files the workers wait for; see `storage.tell_slow`."""
    client.subscribe_topic(_SLOW_TOPIC, lambda event: log.warning("%s", event[1]))
    _register(client, _SlowStorage(), _SLOW_TOPIC)


def check_shared(client: Client, *urls: str) -> None:
    """Refuse ``memory://`` URLs if workers are other processes, which would not share them.

    Raises
    ------
    UserError
        Naming the URL.
    """
    if all(address.startswith("inproc://") for address in known_workers(client)):
        return
    for url in urls:
        if url.startswith("memory://"):
            raise UserError(
                f"{url}: memory:// belongs to one process, so worker processes would lose what "
                "they write. Use a folder, or set `cluster.processes` to false."
            )


def check_visible(client: Client, *urls: str) -> None:
    """Refuse local files and folders that a worker does not see, being on another machine.

    Raises
    ------
    FileNotFoundError
        Naming the worker and the URL.
    """
    for url in filter(storage.is_local, urls):
        for worker, exists in run_on_each_worker(client, storage.exists, url).items():
            if not exists:
                raise FileNotFoundError(
                    f"Worker {worker} does not see {url}. Put it where every worker reads it: "
                    "hdfs://, s3://, or a folder mounted on all machines."
                )


def check_output(client: Client, url: str) -> None:
    """Refuse a folder in which a worker cannot write, or does not see what the driver writes.

    Raises
    ------
    FaultsError
        With the check ``output``, a fault for each worker.
    """
    workers = known_workers(client)
    _, errors = try_on_each_worker(client, storage.check_writable, dict.fromkeys(workers, (url,)))
    faults = [Fault("output", f"{error}", "", worker) for worker, error in sorted(errors.items())]
    probe = storage.join(url, f".dtl-{uuid.uuid4().hex}.partial")
    storage.write_bytes(probe, DRIVER.encode())
    try:
        seen = run_on_each_worker(client, storage.exists, probe)
    finally:
        storage.remove(probe)
    faults += [
        Fault(
            "output", f"It does not see what the driver writes to {url}.",
            "Set `out` to where all write: hdfs://, s3://, or a folder mounted on all machines.",
            worker,
        )
        for worker, found in sorted(seen.items()) if not found and worker not in errors
    ]  # fmt: skip
    refuse(faults)
