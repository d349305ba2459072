"""Memory that is used again, and never while an array is on it."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from dtl.head import buffers

SHAPE = (513, 257)


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    buffers._waiting.clear()
    buffers._last_given.clear()
    yield
    buffers._waiting.clear()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_view_keeps_the_memory() -> None:
    array = buffers.empty(SHAPE, np.float32)
    array[:] = 1
    view = array[100:200].reshape(-1)
    held = memoryview(array[:5])
    del array
    gc.collect()
    others = [buffers.empty(SHAPE, np.float32) for _ in range(3)]
    for other in others:
        other[:] = 2
    assert (view == 1).all()
    assert (np.asarray(held) == 1).all()


def test_memory_is_used_again_by_other_dtypes_and_shapes_of_its_size() -> None:
    array = buffers.empty(SHAPE, np.float64)
    where = address(array)
    del array
    small = buffers.empty(SHAPE, np.float32)
    assert address(small) != where
    again = buffers.empty((2, *SHAPE), np.float32)
    assert address(again) == where
    assert again.flags.c_contiguous
    assert again.flags.writeable


def test_no_more_waits_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_MOST_BYTES", 2 * 4 * SHAPE[0] * SHAPE[1])
    arrays = [buffers.empty(SHAPE, np.float32) for _ in range(5)]
    del arrays
    assert [len(same) for same in buffers._waiting.values()] == [2]


def test_sizes_that_nobody_wants_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    n_bytes = 4 * SHAPE[0] * SHAPE[1]
    monkeypatch.setattr(buffers, "_MOST_BYTES", 8 * n_bytes)
    shapes = [(k, *SHAPE) for k in (1, 2, 3, 4)]
    for shape in shapes[:3]:
        buffers.empty(shape, np.float32)
    buffers.empty(shapes[0], np.float32)  # wanted again, so the second is the oldest
    buffers.empty(shapes[3], np.float32)
    waiting = {size // n_bytes: len(same) for size, same in buffers._waiting.items()}
    assert waiting == {1: 1, 2: 0, 3: 1, 4: 1}
    buffers.empty((9, *SHAPE), np.float32)  # more than may ever wait
    assert sum(map(len, buffers._waiting.values())) == 3


def test_arrays_pickle_as_others_do() -> None:
    array = buffers.empty((200_000,), np.float32)
    array[:] = np.arange(200_000)
    kept: list[pickle.PickleBuffer] = []
    data = pickle.dumps(array, protocol=5, buffer_callback=kept.append)
    np.testing.assert_array_equal(
        pickle.loads(data, buffers=kept), np.arange(200_000), strict=False
    )
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)), array, strict=True)


def test_threads_never_share_an_array() -> None:
    wrong = []

    def work(value: float) -> None:
        for _ in range(300):
            array = buffers.empty(SHAPE, np.float32)
            array[:] = value
            if not (array == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
