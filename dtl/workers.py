"""How work is spread over workers: once on each, a window of chunks, groups of parts, a tree."""

from __future__ import annotations

import itertools
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dask.bag as db
from dask.utils import format_bytes
from distributed import Client, Future, WorkerPlugin, as_completed, wait

from dtl import storage
from dtl.hdfs import UnreachableError

log = logging.getLogger(__name__)

_CHUNKS_A_WORKER = 2
"""One in the network, one that reads ahead or writes: more would only hold memory."""

_RETRIES = 3
"""Of a chunk whose storage failed."""

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


def on_each_worker(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
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
def tell_of_pauses(client: Client) -> Iterator[None]:
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


def hold(client: Client, value: Any, key: str) -> Future:
    """A value of the driver's as a task: unlike scattered data, it outlives a lost worker."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # it is sent once, on purpose
        return client.submit(_same, value, key=key)


def _same(value: Any) -> Any:
    return value


class _Setup(WorkerPlugin):  # type: ignore[misc]
    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        self._function, self._args = function, args

    def setup(self, worker: Any) -> None:
        self._function(*self._args)


def wait_for(client: Client, futures: Iterable[Future]) -> None:
    """Wait until all are computed, or have failed, which those say who ask for their results."""
    with client.as_current():  # it need not be the default one
        wait(list(futures))


def set_up(client: Client, function: Callable[..., None], *args: Any) -> None:
    """Call a function once in every worker, those that join later too."""
    client.register_plugin(_Setup(function, *args), name=function.__name__)


def check_memory(client: Client, *urls: str) -> None:
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
        for worker, there in on_each_worker(client, storage.exists, url).items():
            if not there:
                raise FileNotFoundError(
                    f"Worker {worker} does not see {url}. Put it where every worker reads it: "
                    "hdfs://, s3://, or a folder mounted on all machines."
                )


def map_chunks(
    client: Client, function: Callable[..., Any], chunks: Iterable[Any], **arguments: Any
) -> Iterator[Any]:
    """Map a function over chunks as a Dask bag, a few at a time for each worker.

    Yields results as they come. Workers that join get their share; a chunk whose worker is lost is
    computed again, and one whose storage failed is tried again.
    """

    def submit(chunk: Any) -> Future:
        # A bag for every chunk: the client's work for a task of one large bag grows with the bag.
        bag = db.from_sequence([chunk], npartitions=1).map(function, **arguments)
        future = client.compute(bag)
        chunk_of[future.key] = chunk
        return future

    def wanted() -> int:
        return _CHUNKS_A_WORKER * max(len(known_workers(client)), 1)

    chunk_of: dict[str, Any] = {}
    failures: Counter[str] = Counter()
    waiting = iter(chunks)
    running = as_completed([submit(chunk) for chunk in itertools.islice(waiting, wanted())])
    for future in running:
        chunk = chunk_of.pop(future.key)
        try:
            results = future.result()
        except UnreachableError:
            raise  # it has been tried again for minutes
        except OSError as error:
            failures[str(chunk)] += 1
            if failures[str(chunk)] > _RETRIES:
                raise
            log.warning("%s; trying again", error)
            future.release()  # a bag of the same content has the same key
            running.add(submit(chunk))
            continue
        yield from results
        for more in itertools.islice(waiting, max(wanted() - running.count(), 0)):
            running.add(submit(more))


def tree_reduce(
    client: Client,
    parts: Sequence[Future],
    combine: Callable[[list[Any]], Any],
    *,
    name: str,
    depth: int = 2,
    last: Callable[..., Any] | None = None,
    arguments: Sequence[Any] = (),
) -> Future:
    """Combine futures in `depth` levels, neighbours first; nothing passes through the driver.

    The shape depends on the number of parts alone, and each task but the last of a level combines
    a power of two of them: what `averaging.pairwise` combines has the same bits in any such tree.

    Parameters
    ----------
    combine : callable
        Takes a list of values, returns a value of the same kind.
    name : str
        Of the tasks, in the dashboard; must be unique to this reduction.
    last : callable, optional
        Takes the place of `combine` at the root, with these `arguments` after the list.
    """
    fan_in = _fan_in(len(parts), depth)
    level, parts = 0, list(parts)
    while len(parts) > 1 or level == 0:
        groups = [parts[i : i + fan_in] for i in range(0, len(parts), fan_in)]
        if last is not None and len(groups) == 1:
            return client.submit(last, *groups, *arguments, key=f"{name}-{level}-0")
        parts = [
            client.submit(combine, group, key=f"{name}-{level}-{i}")
            for i, group in enumerate(groups)
        ]
        level += 1
    return parts[0]


def tree_inputs(n_parts: int, depth: int = 2) -> int:
    """How many values the tasks of a `tree_reduce` take in all.

    Examples
    --------
    >>> tree_inputs(8, depth=2)  # two sums of four; then one of these two
    10
    """
    fan_in, total = _fan_in(n_parts, depth), n_parts
    while n_parts > 1:
        n_parts = -(-n_parts // fan_in)
        total += n_parts if n_parts > 1 else 0
    return total


def _fan_in(n: int, depth: int) -> int:
    """The smallest power of two whose tree of `depth` levels holds n leaves."""
    fan_in = 2
    while fan_in**depth < n:
        fan_in *= 2
    return fan_in


_MOST_IN_A_GROUP = 4


def in_groups(client: Client, n_parts: int, size: int = 0) -> list[range]:
    """Runs of neighbouring parts, for a task each.

    What is computed does not depend on it, only how much the tasks cost beside it.

    Parameters
    ----------
    size : int
        A power of two, as `tree_reduce` wants it; 0: the largest, up to 4, that leaves no thread
        idle which would otherwise work. Workers that join later may find nothing to do.
    """
    n_threads = sum(worker["nthreads"] for worker in known_workers(client).values())
    size = size or group_size(n_parts, n_threads or n_parts)
    return [range(i, min(i + size, n_parts)) for i in range(0, n_parts, size)]


def group_size(n_parts: int, n_threads: int) -> int:
    """The largest size of groups with which threads are done as early as with groups of one.

    Examples
    --------
    >>> [group_size(8, n_threads) for n_threads in (1, 2, 3, 4, 8)]
    [4, 4, 1, 2, 1]
    """

    def in_turn(size: int) -> int:
        """Parts that the busiest thread takes: only the last group may be smaller."""
        n_full, rest = divmod(n_parts - 1, size)
        n_turns, others = divmod(n_full, n_threads)
        return n_turns * size + (size if others else rest + 1)

    size = _MOST_IN_A_GROUP
    while in_turn(size) > in_turn(1):
        size //= 2
    return size
