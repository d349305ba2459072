from __future__ import annotations

import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import dask
import psutil
import pytest
from bokeh.client import pull_session
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT
from helpers import wait_until

from dtl.cluster import connection
from dtl.cluster.workers import known_workers, run_on_each_worker
from dtl.config import ClusterConfig


@pytest.fixture
def nothing_is_left_running() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    # Python's own helper of `spawn` stays as long as the interpreter.
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child not in before and "resource_tracker" not in " ".join(child.cmdline())
    ]
    _, alive = psutil.wait_procs(left, timeout=120)
    assert alive == []


def in_worker() -> tuple[int, str | None, str]:
    looks = dask.config.get("distributed.worker.profile.interval")
    return os.getpid(), os.environ.get("TF_NUM_INTRAOP_THREADS"), looks


def test_the_dashboard_is_made_when_it_is_looked_at() -> None:
    """Its imports would keep the workers of every run waiting."""
    config = ClusterConfig(processes=False, dashboard_address=":0")
    with connection.connect(config) as client:
        applications = client.cluster.scheduler.http_application.applications
        assert len(applications) == 2  # what makes the pages, and the live page
        link = client.dashboard_link
        for page in ("status", "workers", "tasks", "graph", "profile"):
            with urllib.request.urlopen(link.replace("status", page)) as answer:
                assert "bokeh" in answer.read().decode(), page
        with urllib.request.urlopen(link.removesuffix("status")) as answer:
            assert answer.url == link
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{link}/nothing")
        assert len(applications) == 3
        session = pull_session(url=link)  # as a browser's script does
        assert session.document.roots
        session.close()


@pytest.mark.usefixtures("nothing_is_left_running")
def test_local_processes() -> None:
    config = ClusterConfig(
        n_workers=2, threads_per_worker=3, memory_limit="1GiB", dashboard_address=":0"
    )
    often = dask.config.set({"distributed.worker.profile.interval": "10ms"})  # Dask's default
    with often, connection.connect(config) as client:
        workers = known_workers(client)
        assert len(workers) == 2
        assert {w["memory_limit"] for w in workers.values()} == {1 << 30}
        assert {w["nthreads"] for w in workers.values()} == {3}
        found = run_on_each_worker(client, in_worker)
        assert all(address.startswith("tls://127.0.0.1:") for address in found)
        pids = {pid for pid, *_ in found.values()}
        assert len(pids) == 2
        assert os.getpid() not in pids
        # TensorFlow would take all processors in each.
        assert {threads for _, threads, _ in found.values()} == {"3"}
        assert {looks for *_, looks in found.values()} == {"250ms"}
        assert client.dashboard_link.startswith("http://")
    assert client.status == "closed"
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.usefixtures("nothing_is_left_running")
def test_local_threads() -> None:
    n_before = len(psutil.Process().children(recursive=True))
    config = ClusterConfig(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    with connection.connect(config) as client:
        workers = known_workers(client)
        assert len(workers) == 2
        assert all(w.startswith("inproc://") for w in workers)
        with urllib.request.urlopen(client.dashboard_link) as page:  # it is where it is said to be
            assert page.status == 200
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        # One writes a chunk while the next is computed.
        assert {w["nthreads"] for w in workers.values()} == {2}
        # Each takes the memory of the whole process for its own.
        assert {w["memory_limit"] for w in workers.values()} == {MEMORY_LIMIT}
        assert {pid for pid, *_ in run_on_each_worker(client, in_worker).values()} == {os.getpid()}
        assert len(psutil.Process().children(recursive=True)) == n_before
    assert client.status == "closed"


@pytest.mark.usefixtures("nothing_is_left_running")
def test_a_local_cluster_is_stopped_by_an_error_too() -> None:
    config = ClusterConfig(processes=False, dashboard_address=":0")
    with pytest.raises(RuntimeError, match="on the way"), connection.connect(config) as client:  # noqa: PT012
        assert client.submit(abs, -3).result() == 3
        raise RuntimeError("on the way")
    assert client.status == "closed"


def test_connects_to_a_running_scheduler_and_leaves_it_running() -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
    ) as running:
        config = ClusterConfig(address=running.scheduler_address)
        for _ in range(2):
            with connection.connect(config) as client:
                assert client.submit(abs, -3).result() == 3
            assert client.status == "closed"
        assert running.status.name == "running"


def test_a_scheduler_whose_first_worker_is_late() -> None:
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=":0"
    ) as running:
        late = threading.Timer(1, running.scale, [1])
        late.start()
        with connection.connect(ClusterConfig(address=running.scheduler_address)) as client:
            assert len(known_workers(client)) == 1
        late.join()


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 2)
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=":0"
    ) as running:
        address = running.scheduler_address
        message = (
            rf"The scheduler at {address} has no workers\. Start some with `dask worker {address}`"
        )
        with (
            pytest.raises(ConnectionError, match=message),
            connection.connect(ClusterConfig(address=address)),
        ):
            pass


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as taken:  # and not listening, so that nobody else does
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        before = threading.active_count()
        message = (
            rf"No Dask scheduler answers at {address}: .*Start one with `dask scheduler`, or set "
            r"`cluster\.address` to local\."
        )
        with (
            pytest.raises(ConnectionError, match=message),
            connection.connect(ClusterConfig(address=address)),
        ):
            pass
    wait_until(lambda: threading.active_count() <= before + 2, "the client's threads to end")


def test_a_terminals_interrupt_does_not_come_to_the_workers(processes: Client) -> None:
    """Else each would end with a traceback beside the driver's message."""
    blocked = processes.run(lambda: signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    assert list(blocked.values()) == [True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
