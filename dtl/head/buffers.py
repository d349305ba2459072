"""Memory for large arrays that come and go, kept for the next ones.

What the system gives is cleared page by page as it is first touched, which takes longer than to
copy or to add up what comes into it: of a round of local SGD it was half. Dask's worker processes
hand freed memory back at once (``MALLOC_TRIM_THRESHOLD_``), so every round would pay again.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import defaultdict, deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LEAST_BYTES = 1 << 18
"""Below it an array is the ordinary allocator's."""

_MOST_BYTES = 256 << 20
"""Memory that waits for its next use, in a process. Beyond it, arrays of the size that was given
back the longest ago are freed first: most likely a training wanted them that has ended."""

_waiting: defaultdict[int, deque[NDArray[np.uint8]]] = defaultdict(deque)
_last_given: dict[int, int] = {}
_turn = itertools.count()


class _Lease:
    """What an array's `base` is; when the last view of the array is gone, so is this."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.__array_interface__ = memory.__array_interface__
        weakref.finalize(self, _give_back, memory).atexit = False


def _give_back(memory: NDArray[np.uint8]) -> None:
    # It may run wherever an array is forgotten, in any thread, amid itself too: so no lock is held,
    # and each step is whole by itself, on a dict, deque or counter.
    if memory.nbytes > _MOST_BYTES:
        return
    _last_given[memory.nbytes] = next(_turn)
    _waiting[memory.nbytes].append(memory)
    for n_bytes in sorted(_last_given, key=_last_given.__getitem__):
        while sum(n * len(same) for n, same in list(_waiting.items())) > _MOST_BYTES:
            try:
                _waiting[n_bytes].popleft()
            except IndexError:
                break  # none of this size is left
        else:
            return


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array as `numpy.empty` makes it, on memory that another array had, if there is some.

    Examples
    --------
    >>> first = empty((1000, 257), np.float32)
    >>> address = first.ctypes.data
    >>> del first
    >>> empty((1000, 257), np.float32).ctypes.data == address
    True
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes < _LEAST_BYTES:
        return np.empty(shape, dtype)
    try:
        memory = _waiting[n_bytes].pop()
    except IndexError:
        memory = np.empty(n_bytes, np.uint8)
    return np.asarray(_Lease(memory)).view(dtype).reshape(shape)
