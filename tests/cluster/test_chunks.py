from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster, Scheduler
from distributed.scheduler import KilledWorker
from helpers import when_logged

from dtl.cluster.chunks import map_chunks
from dtl.config.errors import UserError


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


def test_nothing_is_kept_of_a_chunk_that_is_done(threads: Client) -> None:
    def count(dask_scheduler: Scheduler) -> int:
        spans = dask_scheduler.extensions["spans"].spans.values()
        return len(dask_scheduler.tasks) + len(spans) + sum(len(span.groups) for span in spans)

    list(map_chunks(threads, abs, range(50)))
    before = threads.run_on_scheduler(count)
    list(map_chunks(threads, abs, range(300)))
    assert threads.run_on_scheduler(count) - before < 10


def test_a_chunk_without_memory_is_tried_again(threads: Client, tmp_path: Path) -> None:
    def lacks(chunk: int, folder: Path) -> int:
        with (folder / str(chunk)).open("a") as file:
            file.write("tried\n")
        if chunk == 2 and len((folder / "2").read_text().splitlines()) < 3:
            raise MemoryError
        return chunk

    assert sorted(map_chunks(threads, lacks, range(4), folder=tmp_path)) == list(range(4))


def test_a_chunk_that_never_has_the_memory_says_what_to_do(threads: Client) -> None:
    def lacks(chunk: int) -> int:
        error = MemoryError("No memory to decode an image.")
        error.add_note("while decoding a.png")
        raise error

    with pytest.raises(UserError, match=r"^No memory to decode an image\. Give each") as caught:
        list(map_chunks(threads, lacks, [1]))
    assert caught.value.__notes__ == ["while decoding a.png"]


def test_a_chunk_that_kills_its_workers_is_described() -> None:
    def die(chunk: int) -> int:
        if chunk == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return chunk

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as local,
        Client(local) as client,
        pytest.raises(KilledWorker) as caught,
    ):
        list(map_chunks(client, die, [3], describe=lambda chunk: f"The images of {chunk}."))
    assert caught.value.__notes__ == ["The images of 3."]


def test_where_nothing_moves_it_is_said_what_is_waited_for(
    threads: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("dtl.cluster.waits._STILL_S", 0.5)

    def stand(chunk: int, released: Path) -> int:
        while chunk == 1 and not released.exists():
            time.sleep(0.01)
        return chunk

    released = tmp_path / "released"
    told = r"No chunk was finished for \d+ s\. Waiting for chunks: 1 on inproc://\S+\."
    with when_logged(told, released.touch):
        assert sorted(map_chunks(threads, stand, range(2), released=released)) == [0, 1]
    assert re.search(told, caplog.text)


def test_no_warning_where_all_goes_on(
    threads: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dtl.cluster.waits._STILL_S", 30.0)
    assert len(list(map_chunks(threads, abs, range(20)))) == 20
    assert "No chunk was finished" not in caplog.text


@pytest.mark.slow
def test_a_file_that_a_worker_waits_for_is_told_to_the_driver(
    processes: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def wait_long(chunk: int) -> int:
        from dtl.storage import slow

        before = slow._AFTER_S
        slow._AFTER_S = 0.5
        with slow.tell_slow(f"/mnt/nfs/{chunk}.jpg"):
            time.sleep(6)
        slow._AFTER_S = before
        return chunk

    assert list(map_chunks(processes, wait_long, [7])) == [7]
    assert re.search(r"Waiting for /mnt/nfs/7\.jpg, \d+ s so far", caplog.text)
