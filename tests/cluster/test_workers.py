from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError
from helpers import local_cluster, wait_until, when_logged

from dtl.cluster import workers
from dtl.cluster.workers import check_shared, check_visible, run_on_each_worker, warn_of_pauses
from dtl.storage import slow


def test_on_each_worker(threads: Client, processes: Client) -> None:
    found = run_on_each_worker(threads, lambda plus: threading.get_ident() + plus, 0)
    assert list(found) == list(workers.known_workers(threads))
    assert len(set(found.values())) == 2
    assert os.getpid() not in run_on_each_worker(processes, os.getpid).values()


def test_the_client_renewing_its_copy_loses_no_worker(
    threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy of what the scheduler knows may come between, which has no workers in it."""
    whole = threads.scheduler_info
    renewed = [whole(n_workers=-1) | {"workers": {}}]
    monkeypatch.setattr(threads, "scheduler_info", lambda **n: (renewed or [whole(**n)]).pop())
    assert len(workers.known_workers(threads)) == 2
    assert not renewed


def test_a_worker_that_is_lost_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK_EVERY_S", 0.2)

    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as local,
        Client(local) as client,
    ):
        (address,) = workers.known_workers(client)
        message = rf"Worker {address} was lost at the start\. Most likely its memory did not suf"
        with pytest.raises(ConnectionError, match=message):
            run_on_each_worker(client, dies)


def test_what_a_worker_waits_for_is_shown_here(
    processes: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def wait_for_a_file() -> None:
        slow._AFTER_S = slow._LOOK_EVERY_S = 0.1
        with slow.tell_slow("/nas/cat/1.jpg"):
            time.sleep(3)

    workers.show_slow_storage(processes)
    run_on_each_worker(processes, wait_for_a_file)
    wait_until(lambda: "Waiting for /nas/cat/1.jpg, " in caplog.text, "the message", 60)


def test_a_function_may_take_long_and_raise_what_it_likes(
    threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LOOK_EVERY_S", 0.05)

    def times_out() -> None:
        time.sleep(0.3)
        raise TimeoutError("the function's own")

    with pytest.raises(TimeoutError, match="the function's own"):
        run_on_each_worker(threads, times_out)


def test_a_worker_that_does_not_answer_is_told(
    threads: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(workers, "_STILL_S", 0.5)
    told = tmp_path / "told"

    def is_silent(told: Path) -> bool:
        until = time.monotonic() + 120
        while not told.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return told.exists()

    message = r"Waiting for an answer of worker inproc://\S+ for \d+ s\."
    with when_logged(message, told.touch):
        assert set(run_on_each_worker(threads, is_silent, told).values()) == {True}


def test_a_result_at_the_last_moment(threads: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        """It is done just after it was waited for in vain."""

        n_calls = 0

        def done(self) -> bool:
            return self.n_calls > 0

        def result(self, timeout: float | None = None) -> int:
            self.n_calls += 1
            if timeout is not None:
                raise TimeoutError(f"timed out after {timeout} s.")
            return 7

    monkeypatch.setattr(threads, "submit", lambda *_, **__: Late())
    assert set(run_on_each_worker(threads, abs).values()) == {7}


def test_a_worker_that_pauses_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_LOOK_EVERY_S", 0.1)
    before = set(threading.enumerate())
    with (
        dask.config.set({f"distributed.worker.memory.{w}": False for w in ("target", "spill")}),
        # This process has more than that already.
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, memory_limit="50MiB",
            dashboard_address=":0", silence_logs=False,
        ) as local,
        Client(local) as client,
        warn_of_pauses(client),
    ):  # fmt: skip
        (address,) = workers.known_workers(client)
        wait_until(lambda: "has paused" in caplog.text, "a warning of the pause")
        time.sleep(0.5)
    (record,) = (record for record in caplog.records if record.name == "dtl.cluster.workers")
    message = (
        rf"Worker {address} has paused: it uses \S+ .iB of its 50\.00 MiB\. It resumes by itself "
        r".*what is done stays done\. Give each worker more memory \(`cluster\.memory_limit`"
    )
    assert re.match(message, record.message)
    assert "dtl-pauses" not in {t.name for t in set(threading.enumerate()) - before}


def test_nothing_is_logged_of_workers_at_work_nor_after_the_client_is_closed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_LOOK_EVERY_S", 0.05)
    with local_cluster() as local, Client(local) as client, warn_of_pauses(client):
        assert client.submit(abs, -3).result() == 3
        time.sleep(0.3)
        client.close()
        time.sleep(0.3)
    assert not [record for record in caplog.records if record.name == "dtl.cluster.workers"]


def test_memory_of_one_process_is_refused_with_processes(
    threads: Client, processes: Client
) -> None:
    check_shared(threads, "memory://photos", "/somewhere")
    check_shared(processes, "/somewhere", "hdfs:///photos")
    message = (
        r"memory://photos: memory:// belongs to one process.*Use a folder, or set `cluster\.proc"
    )
    with pytest.raises(ValueError, match=message):
        check_shared(processes, "/somewhere", "memory://photos")


def test_a_folder_that_a_worker_does_not_see(processes: Client, tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.write_text("x")
    check_visible(processes, str(tmp_path), f"file://{there}")
    check_visible(processes, "memory://is-no-place-on-a-disk")
    message = rf"Worker tls://.* does not see {gone}\. Put it where every worker reads it: hdfs://"
    with pytest.raises(FileNotFoundError, match=message):
        check_visible(processes, str(there), str(gone))


def test_a_connection_that_has_ended_is_no_failure_of_a_registration(
    threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask takes one that it has kept; it may have ended since."""
    whole, n_tried = Client.register_plugin, []

    def once_ended(self: Client, *arguments: Any, **options: Any) -> Any:
        n_tried.append(1)
        if len(n_tried) == 1:
            raise CommClosedError("ended")
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Client, "register_plugin", once_ended)
    called: list[int] = []
    _calls.append(called)
    workers.register_setup(threads, _note)
    assert len(called) >= 1
    assert len(n_tried) == 2


_calls: list[list[int]] = []


def _note() -> None:
    _calls[-1].append(1)
