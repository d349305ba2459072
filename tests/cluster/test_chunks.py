from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from dtl.cluster.chunks import map_chunks


def test_every_chunk_comes_once(threads: Client) -> None:
    def double(chunk: int, plus: int) -> int:
        return 2 * chunk + plus

    found = list(map_chunks(threads, double, range(50), plus=1))
    assert sorted(found) == list(range(1, 101, 2))
    assert list(map_chunks(threads, double, [], plus=1)) == []
    assert list(map_chunks(threads, double, [3], plus=1)) == [7]


@pytest.mark.slow
def test_two_thousand_tiny_chunks(threads: Client) -> None:
    found = list(map_chunks(threads, abs, range(-2000, 0)))
    assert sorted(found) == list(range(1, 2001))


def test_a_chunk_may_be_a_value_of_any_kind(threads: Client) -> None:
    """A part of predictions is an address and a list."""
    chunks = [("a", ["x", "y"]), ("b", ["z"])]
    assert sorted(map_chunks(threads, lambda c: (c[0], len(c[1])), chunks)) == [("a", 2), ("b", 1)]


def test_a_chunk_that_fails_is_tried_again(threads: Client, tmp_path: Path) -> None:
    def fails_twice(chunk: int, folder: Path) -> int:
        with (folder / str(chunk)).open("a") as file:
            file.write("tried\n")
        if chunk == 4 and len((folder / "4").read_text().splitlines()) < 3:
            raise OSError("the storage failed")
        return chunk

    assert sorted(map_chunks(threads, fails_twice, range(8), folder=tmp_path)) == list(range(8))
    tries = {int(file.name): len(file.read_text().splitlines()) for file in tmp_path.iterdir()}
    assert tries == {chunk: 3 if chunk == 4 else 1 for chunk in range(8)}


def test_a_chunk_that_always_fails_fails_the_work(threads: Client, tmp_path: Path) -> None:
    def fails(chunk: int, folder: Path) -> int:
        with (folder / str(chunk)).open("a") as file:
            file.write("tried\n")
        if chunk == 2:
            raise OSError("the storage failed for good")
        return chunk

    with pytest.raises(OSError, match="the storage failed for good"):
        list(map_chunks(threads, fails, range(4), folder=tmp_path))
    assert len((tmp_path / "2").read_text().splitlines()) == 4


class Counted:
    """Chunks that know how many of them were taken."""

    def __init__(self, n: int) -> None:
        self.n, self.n_taken = n, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        for chunk in range(self.n):
            self.n_taken += 1
            yield chunk


def test_two_chunks_a_worker_are_in_flight(threads: Client) -> None:
    chunks = Counted(40)
    in_flight = []
    for n_done, _ in enumerate(map_chunks(threads, abs, chunks)):
        in_flight.append(chunks.n_taken - n_done)
    assert len(in_flight) == 40
    assert max(in_flight) == 4
    assert set(in_flight[:36]) == {4}
