"""Features that stay in the store while a head is trained, for stores larger than memory."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtl.features.store import FeatureStore
from dtl.head.scaling import Scaling

_CACHE_BYTES = 256 << 20
"""Size of the decoded chunks of a process."""

_LEAST_CHUNKS = 8
"""Chunks that are kept in any case: those of two tasks, and those read ahead."""

_AHEAD = 2
"""Chunks that are read before a batch asks for them."""

_readers = ThreadPoolExecutor(2, thread_name_prefix="dtl-read-ahead")


class StoredFeatures:
    """Rows of a store, scaled, read when a batch asks for them.

    ``features[rows]`` has the bits of an array of all rows in memory. Decoded chunks are kept as
    long as the process has room for them. It pickles without them.

    Parameters
    ----------
    chunk, row : (n,) int32
        Of each row: its chunk in the store, and its row in that chunk.
    """

    def __init__(
        self,
        store: FeatureStore,
        layer: str,
        chunk: NDArray[np.int32],
        row: NDArray[np.int32],
        scaling: Scaling,
    ) -> None:
        self._arguments = (store, layer, chunk, row, scaling)
        self._key = object()
        weakref.finalize(self, _cache.forget, self._key).atexit = False

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredFeatures, self._arguments

    def __len__(self) -> int:
        return len(self._arguments[2])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return len(self), len(self._arguments[4].mean)

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> NDArray[np.float32]:
        _, _, chunk, row, scaling = self._arguments
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        chunks = chunk[rows]
        features = np.empty((len(rows), len(scaling.mean)), np.float32)
        reads = {int(c): self._start(int(c)) for c in np.unique(chunks)}
        for c, read in reads.items():
            chosen = chunks == c
            features[chosen] = self._finish(c, read)[row[rows[chosen]]]
        return features

    def ahead(self, batches: Sequence[NDArray[np.intp]]) -> ReadAhead:
        """Return a reader of the same rows for these batches, in this order."""
        return ReadAhead(self, self._arguments[2], batches)

    def _start(self, chunk: int) -> Future[NDArray[np.float32]]:
        store, _, _, _, scaling = self._arguments
        n_bytes = store.chunk_images * scaling.scale.nbytes
        return _cache.get((self._key, chunk), n_bytes, lambda: _read(self._arguments, chunk))

    def _finish(self, chunk: int, read: Future[NDArray[np.float32]]) -> NDArray[np.float32]:
        try:
            return read.result()
        except BaseException:
            _cache.forget(self._key, chunk)  # to read it again when it is asked for again
            raise


class ReadAhead:
    """A reader of `StoredFeatures` that reads the next chunks while a batch is worked on."""

    def __init__(
        self,
        features: StoredFeatures,
        chunk: NDArray[np.int32],
        batches: Sequence[NDArray[np.intp]],
    ) -> None:
        self._features, self._chunk = features, chunk
        rows = np.concatenate(batches) if batches else np.empty(0, np.intp)
        self._plan = list(dict.fromkeys(chunk[rows].tolist()))

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        at = self._plan.index(int(self._chunk[rows[-1]]))
        reads = [self._features._start(c) for c in self._plan[at : at + 1 + _AHEAD]]
        features = self._features[rows]
        del reads  # held until now, so that a small cache does not drop a chunk in use
        return features


def _read(arguments: tuple[Any, ...], chunk: int) -> NDArray[np.float32]:
    store, layer, _, _, scaling = arguments
    rows: NDArray[np.float32] = scaling.apply(store.read(layer, chunk))
    return rows


class _Cache:
    """Chunks that a process has read last, or is reading."""

    def __init__(self) -> None:
        # Reentrant: a shard may be collected, and forgotten, while this thread is in here.
        self._lock = threading.RLock()
        self._reads: OrderedDict[tuple[object, int], Future[NDArray[np.float32]]] = OrderedDict()

    def get(
        self, key: tuple[object, int], n_bytes: int, read: Callable[[], NDArray[np.float32]]
    ) -> Future[NDArray[np.float32]]:
        with self._lock:
            if key not in self._reads:
                self._reads[key] = _readers.submit(read)
                while len(self._reads) > max(_LEAST_CHUNKS, _CACHE_BYTES // n_bytes):
                    self._reads.popitem(last=False)
            self._reads.move_to_end(key)
            return self._reads[key]

    def forget(self, owner: object, chunk: int | None = None) -> None:
        with self._lock:
            for key in list(self._reads):
                if key[0] is owner and chunk in (None, key[1]):
                    del self._reads[key]


_cache = _Cache()
