"""The spread of independent chunks over workers: a window of tasks."""

from __future__ import annotations

import itertools
import logging
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dask.utils import funcname
from distributed import Client, as_completed
from distributed.scheduler import KilledWorker

from dtl.cluster.waits import tell_waits
from dtl.cluster.workers import MORE_MEMORY, known_workers
from dtl.config.errors import UserError
from dtl.storage.hdfs import UnreachableError
from dtl.storage.lock import LostLockError

log = logging.getLogger(__name__)

_CHUNKS_PER_WORKER = 2
"""One in the network, one that reads ahead or writes: more would only hold memory."""

_RETRIES = 3
"""Retries of a chunk whose storage failed, or whose worker was out of memory."""


def map_chunks(
    client: Client,
    function: Callable[..., Any],
    chunks: Iterable[Any],
    *,
    describe: Callable[[Any], str] = "It computed chunk {}.".format,
    **arguments: Any,
) -> Iterator[Any]:
    """Map a function over chunks, with two per worker in flight.

    Workers that join get their share. A chunk whose worker is lost is computed again; one whose
    storage or memory failed, up to 3 times. Where no chunk is finished for a minute, a warning says
    which are waited for. What the driver holds does not grow with the number of chunks.

    Parameters
    ----------
    describe : callable
        Says of a chunk what may have cost its workers their memory.

    Yields
    ------
    object
        A value that ``function(chunk, **arguments)`` returned, in the order of completion.

    Raises
    ------
    UserError
        If a chunk found too little memory each time.
    distributed.scheduler.KilledWorker
        If each worker that computed a chunk was lost; a note has the chunk's description.
    OSError
        If the storage failed each time.
    """
    waiting = iter(chunks)
    chunk_of: dict[Any, Any] = {}
    failures: Counter[str] = Counter()
    running = as_completed(loop=client.loop)
    # One prefix for all keys: the scheduler keeps 6 KB for each prefix, for ever.
    name, token, numbers = funcname(function).strip("_"), uuid.uuid4().hex[:8], itertools.count()

    def fill_window() -> int:
        size = _CHUNKS_PER_WORKER * max(len(known_workers(client)), 1)
        if started := [*itertools.islice(waiting, max(size - running.count(), 0))]:
            keys = [f"{name}-{next(numbers)}-{token}" for _ in started]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph")  # paths of many images
                futures = client.map(function, started, key=keys, **arguments)
            chunk_of.update(zip(keys, started, strict=True))
            running.update(futures)
        return size

    window = fill_window()
    with tell_waits(client, chunk_of) as tell_moved:
        for future in running:
            tell_moved()
            chunk = chunk_of.pop(future.key)
            try:
                result = future.result()
            except (UnreachableError, LostLockError):
                raise  # tried for minutes already, or lost for good
            except (OSError, MemoryError) as error:
                failures[str(chunk)] += 1
                if failures[str(chunk)] > _RETRIES:
                    running.clear()
                    if isinstance(error, MemoryError):
                        raise _explain(error) from error
                    raise
                log.warning("%s; trying again", error)
                waiting = itertools.chain([chunk], waiting)
            except KilledWorker as error:
                running.clear()
                error.add_note(describe(chunk))
                raise
            else:
                yield result
            finally:
                future.release()
            # A quarter at a time: chunks that start together cost the driver half as much.
            if running.count() <= window * 3 // 4:
                window = fill_window()


def _explain(error: MemoryError) -> UserError:
    explained = UserError(f"{error or 'Out of memory.'} {MORE_MEMORY}")
    for note in getattr(error, "__notes__", ()):
        explained.add_note(note)
    return explained
